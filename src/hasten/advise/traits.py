"""Traits: what the rules of advice look at. Operator kinds, sizes, time and what bounds it, the machine, and what may be tried."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
from collections.abc import Sequence

from hasten.advise.roofline import Roofline
from hasten.facts import MATRIX, Facts
from hasten.graph import constant
from hasten.measure.machine import cores, machine
from hasten.measure.peaks import Peaks
from hasten.model import Model
from hasten.runtimes import DEFAULT, native

INT8_DOT = frozenset(("avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"))
"""Instruction sets that multiply 8-bit codes and add them to 32-bit sums in one step."""

BF16 = frozenset(("avx512_bf16", "amx_bf16", "bf16"))
"""Instruction sets that multiply 16-bit brain floats."""

CONVOLUTIONS = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv")
PRODUCTS = ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")
RECURRENT = ("LSTM", "GRU", "RNN")


@dataclasses.dataclass(frozen=True)
class Traits:
    """A model on a machine. Shares are of the multiply-accumulates; seconds are of a call of one batch.

    conv, depthwise, product, recurrent: shares of convolutions (depthwise ones counted apart too), of products with weights, of recurrent
    layers. attention: products of two activations followed by a Softmax are there. embedding: share of the weights' bytes that are tables.
    latency: None where nothing was timed. overhead: seconds of the call and of the nodes in onnxruntime. bound: compute, memory or overhead.
    openvino_call: the least that a call of OpenVINO takes, None where it is not installed or not asked for. native: whether hasten's own engine may
    be used, has more than scalar kernels for this processor, and takes the model as it is or will be when quantized.
    """

    conv: float
    depthwise: float
    product: float
    recurrent: float
    attention: bool
    embedding: float
    nodes: int
    parameters: int
    macs: int
    weight_bytes: int
    intensity: float
    quantized: bool
    float16: bool
    transposes: int
    batch_norms: int
    dynamic: tuple[str, ...]
    latency: float | None
    overhead: float
    roof: float
    bound: str
    cached: bool
    int8_gain: float
    openvino_call: float | None
    int8_dot: bool
    bf16: bool
    runtimes: tuple[str, ...]
    threads: int
    batch: int
    lossy: bool
    native: bool = False

    @property
    def openvino(self) -> bool:
        """Whether OpenVINO may be used, and what the original takes at the very least is well above an OpenVINO call that computes nothing.

        The least time and not the measured one: a busy machine makes a call of 50 µs one of 200, and OpenVINO's longer still.
        """
        if "openvino" not in self.runtimes:
            return False
        return self.openvino_call is None or self.roof + self.overhead > PAYS * self.openvino_call


PAYS = 4.0
"""OpenVINO pays where the original takes so many times as long as an OpenVINO call that computes nothing: below, the call alone eats the gain,
and onnxruntime's int8 brings as much without it. A CNN of 4 M multiply-accumulates at 2.4 lost to onnxruntime's int8, a ResNet-20 at 8 won."""


def _installed(runtime: str) -> bool:
    return native.available() if runtime == "native" else importlib.util.find_spec(runtime) is not None


def _native_takes(model: Model) -> bool:
    """Whether the native engine has kernels for all of it, and for this processor."""
    from hasten import _native, lower

    return _native.isa() != "scalar" and not lower.unsupported(model)


def traits(
    model: Model,
    facts: Facts,
    roof: Roofline,
    peaks: Peaks,
    runtimes: Sequence[str] = DEFAULT,
    threads: int | None = None,
    batch: int = 1,
    lossy: bool = True,
) -> Traits:
    """The traits of a model whose facts and roofline are known. `runtimes`: those that may be tried; `lossy`: whether there is data to judge
    what changes the results."""
    nodes = list(model.ir.graph)
    total = max(1, facts.macs)
    share = {kind: sum(r.macs or 0 for r in facts.rows if r.op in kind) / total for kind in (CONVOLUTIONS, PRODUCTS, RECURRENT)}
    depthwise = {n.name for n in nodes if n.op_type in CONVOLUTIONS and n.attributes.get_int("group", 1) > 1}
    counts = collections.Counter(n.op_type for n in nodes)
    tables = {n.inputs[0] for n in nodes if n.op_type == "Gather" and n.inputs[0] is not None and n.inputs[0].is_initializer()}
    table_bytes = sum(v.const_value.nbytes for v in tables if v.const_value is not None)
    widths = {r.bits for r in facts.rows if r.op in MATRIX and r.bits is not None}
    isa, quantized = set(machine().isa), bool(widths) and min(widths) <= 8
    usable = tuple(r for r in runtimes if _installed(r))
    return Traits(
        conv=share[CONVOLUTIONS],
        depthwise=sum(r.macs or 0 for r in facts.rows if r.name in depthwise) / total,
        product=share[PRODUCTS],
        recurrent=share[RECURRENT] if share[RECURRENT] or not any(counts[op] for op in RECURRENT) else 1.0,
        attention=counts["Softmax"] > 0 and any(n.op_type == "MatMul" and constant(n.inputs[1]) is None for n in nodes),
        embedding=table_bytes / max(1, facts.weight_bytes),
        nodes=len(facts.rows),
        parameters=facts.parameters,
        macs=facts.macs,
        weight_bytes=facts.weight_bytes,
        intensity=facts.intensity,
        quantized=quantized,
        float16=16 in widths,
        transposes=counts["Transpose"],
        batch_norms=counts["BatchNormalization"],
        dynamic=tuple(sorted({str(d) for p in model.inputs for d in p.shape if not isinstance(d, int)})),
        latency=roof.whole.seconds,
        overhead=roof.overhead,
        roof=roof.whole.roof,
        bound=roof.whole.bound,
        cached=roof.cached,
        int8_gain=peaks.int8 / peaks.float32,
        openvino_call=peaks.openvino_call,
        int8_dot=bool(isa & INT8_DOT),
        bf16=bool(isa & BF16),
        runtimes=usable,
        threads=threads or cores(),
        batch=batch,
        lossy=lossy,
        native="native" in usable and _native_takes(model),
    )
