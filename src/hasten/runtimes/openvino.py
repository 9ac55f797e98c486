"""OpenVINO on the CPU (extra `openvino`): often the fastest for int8, and it computes in bf16 when it may."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import Unsupported
from hasten.history import Skip
from hasten.runtimes import Feeds, Outputs, Profiled, Target
from hasten.runtimes.onnxruntime import one_line

if TYPE_CHECKING:
    from hasten.model import Model

HINTS = {"float32": "f32", "bfloat16": "bf16"}
QUANTIZED_TYPES = ("INT16", "UINT16", "INT2", "UINT2")
PROFILES = 3
"""Fresh compilations that are profiled: OpenVINO counts from the first call on and can't be set back."""


class OpenVino:
    """OpenVINO with an explicit precision hint (its own default is bf16 on some CPUs) and reshaped to the target's batch."""

    name = "openvino"
    hints = ("float32", "bfloat16")

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        if importlib.util.find_spec("openvino") is None:
            return (Skip("", "openvino is not installed: pip install 'hasten[openvino]'"),)
        if target.precision not in HINTS:
            return (Skip("", f"openvino has no {target.precision} hint; use one of {', '.join(HINTS)}"),)
        return tuple(
            Skip(node.name or node.op_type, f"openvino has no {value.dtype.name.lower()} QDQ")
            for node in model.ir.graph
            if node.op_type == "DequantizeLinear"
            and (value := node.inputs[0]) is not None
            and value.dtype is not None
            and value.dtype.name in QUANTIZED_TYPES
        )

    def compile(self, model: Model | Path, target: Target) -> OpenVinoSession:
        if not isinstance(model, Path) and not model.fits_in_memory:
            raise Unsupported("openvino: weights above 1.5 GB can't be passed in memory; save the model and compile its path")
        return OpenVinoSession(_readable(model), target)


class OpenVinoSession:
    """One compiled model and one infer request. `batch` is the batch it was compiled for, None if the model's own is used."""

    def __init__(self, source: bytes | str, target: Target, profile: bool = False) -> None:
        import openvino as ov

        core = ov.Core()
        try:
            model = core.read_model(source)
            self.batch = _fix_batch(model, target.batch)
            self._names = [port.get_any_name() for port in model.outputs]
            compiled = core.compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_NUM_THREADS": target.threads,
                    "INFERENCE_PRECISION_HINT": HINTS[target.precision],
                    "PERFORMANCE_HINT": "LATENCY",
                    "NUM_STREAMS": 1,
                    "PERF_COUNT": profile,
                },
            )
        except Exception as e:
            raise Unsupported(f"openvino can't load the model: {one_line(e)}") from e
        self._request: Any = compiled.create_infer_request()

    def run(self, feeds: Feeds) -> Outputs:
        values = self._request.infer(dict(feeds), share_inputs=True, share_outputs=False)
        return dict(zip(self._names, values.to_tuple(), strict=True))

    def counted(self) -> list[Profiled]:
        """(node, kind, mean seconds a call) of every node, in order; in whole microseconds, 0 where it was fused away or took less."""
        return [(info.node_name, info.node_type, info.real_time.total_seconds()) for info in self._request.get_profiling_info()]


def profile(path: Path, target: Target, feeds: Feeds, calls: int, seconds: float) -> list[Profiled]:
    """(node, kind, seconds a call) of every node that takes time, in order, over at most `calls` calls and about `seconds`.

    OpenVINO's own counters are means over all calls, in whole microseconds; the value is the median over a few fresh compilations, whose
    nodes agree by their place and not by their name (it holds a running number).
    """
    counts = []
    for _ in range(PROFILES):
        session = OpenVinoSession(_readable(path), target, profile=True)
        end, done = time.perf_counter() + seconds / PROFILES, 0
        while done < 3 or (done < calls // PROFILES and time.perf_counter() < end):
            session.run(feeds)
            done += 1
        counts.append(session.counted())
    alike = [count for count in counts if [kind for _, kind, _ in count] == [kind for _, kind, _ in counts[0]]]
    values = [statistics.median(spent) for spent in zip(*([s for _, _, s in count] for count in alike), strict=True)]
    return [(node, kind, spent) for (node, kind, _), spent in zip(counts[0], values, strict=True) if spent > 0]


def _fix_batch(model: Any, batch: int) -> int | None:
    """Fix a dynamic first axis of every input to `batch`: a dynamic one costs up to 1.45 times."""
    import openvino as ov

    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if shape.rank.is_static and len(shape) and shape[0].is_dynamic:
            shape[0] = ov.Dimension(batch)
            shapes[port] = shape
    if shapes:
        model.reshape(shapes)
    return batch if shapes else None


def _readable(model: Model | Path) -> bytes | str:
    """What `read_model` takes. OpenVINO refuses local functions, so a model that has some is inlined first."""
    if isinstance(model, Path):
        import onnx

        # A quick look at the header would not do: functions stand at the end of the file.
        if not onnx.load(model, load_external_data=False).functions:
            return str(model)
    return _inlined(model)


def _inlined(model: Model | Path) -> bytes:
    """The file's bytes, local functions in place of their calls."""
    import onnx_ir as ir
    from onnx_ir.passes.common import InlinePass

    from hasten.model import OPSET, Model

    edited = ir.load(model) if isinstance(model, Path) else model.edit()
    if edited.functions:
        InlinePass()(edited)
        edited.opset_imports[""] = OPSET
    return Model(edited).to_bytes()


RUNTIME = OpenVino()
