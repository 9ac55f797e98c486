"""The rules of advice: a literal table, the most telling first. What a rule predicts is a candidate that `hasten optimize` really tries.

The gains are ranges that we set after what such candidates gained over the original in onnxruntime on the models of benchmarks/results; they
are not fitted. Where the machine's own peaks bound a gain, the bound is taken (`Rule.gain` gives the range before that).
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable

from hasten.advise.roofline import MEMORY, OVERHEAD
from hasten.advise.traits import Traits
from hasten.runtimes import Target
from hasten.search.candidates import RECIPES, SMALL_MODEL, Candidate

FLOAT, HINT = "float32", "bfloat16"

MOSTLY = 0.5
"""A kind of operator is what the model is about where it does this share of the multiply-accumulates."""

WORTH = 4096
"""Weights below which `quantize_dynamic` leaves a product alone: quantizing its input costs more than it saves."""

LINES = 4
"""Lines of advice, at most."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """If `when` holds, try the recipe in the runtime, computing in `precision`, on one thread if `single`, else on all.

    gain: (least, most) times faster than the original in onnxruntime that such models reached. reason: one sentence, in which `{}` fields
    are those of Traits.
    """

    name: str
    when: Callable[[Traits], bool]
    recipe: str
    runtime: str
    precision: str
    gain: tuple[float, float]
    reason: str
    single: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of advice: the candidate by the name that `optimize` gives it, the command that tries it, the expected gain, the reason."""

    candidate: str
    recipe: str
    runtime: str
    command: str
    gain: tuple[float, float]
    reason: str
    rule: str


def _products_only(t: Traits) -> bool:
    """A perceptron: products with weights, nothing else that multiplies."""
    return t.product > MOSTLY and t.conv == 0 and t.recurrent == 0 and not t.attention


def _tiny(t: Traits) -> bool:
    return t.latency is not None and t.latency < SMALL_MODEL


def _idle(t: Traits) -> bool:
    """So little to compute that nothing which makes the computing faster can be seen."""
    return t.latency is not None and t.roof < IDLE * t.latency and t.bound == OVERHEAD and t.macs < NOTHING


IDLE, NOTHING = 0.1, 10_000
"""Less than a tenth of the time is computing, and 10,000 multiply-accumulates take below a microsecond on any core of today."""


def _convolutions(t: Traits) -> bool:
    return t.conv > MOSTLY


def _float(t: Traits) -> bool:
    return t.lossy and not t.quantized


RULES = (
    # --- what is quantized already, or may not be changed
    Rule(
        "quantized, native", lambda t: t.quantized and t.native,
        "graph", "native", FLOAT, (1.4, 8.0),
        "the weights are 8-bit already, so the runtime is what is left to choose: hasten's own engine gives the very numbers of onnxruntime, and "
        "its call costs next to nothing",
    ),
    Rule(
        "quantized, OpenVINO pays", lambda t: t.quantized and t.openvino,
        "graph", "openvino", FLOAT, (1.0, 2.5),
        "the weights are 8-bit already, so the runtime is what is left to choose: OpenVINO runs the same QDQ file with fewer conversions",
    ),
    Rule(
        "quantized", lambda t: t.quantized,
        "graph", "onnxruntime", FLOAT, (1.0, 1.2),
        "the weights are 8-bit already; only the graph around them is left to clean",
    ),
    # --- where the call itself is most of the time
    Rule(
        "nothing to compute, native", lambda t: _idle(t) and t.native,
        "graph", "native", FLOAT, (2.0, 8.0),
        "{macs} multiply-accumulates are less than the call itself, and the call of hasten's own engine costs next to nothing, that of onnxruntime "
        "{call}",
        single=True,
    ),
    Rule(
        "nothing to compute", _idle,
        "graph", "onnxruntime", FLOAT, (1.0, 1.2),
        "{macs} multiply-accumulates are less than the call itself: onnxruntime has the shortest call, and one thread waits for no other",
        single=True,
    ),
    # --- hasten's own engine: the shortest call, and the fastest 8-bit kernels where it has them all
    Rule(
        "convolutional, native, int8", lambda t: _float(t) and _convolutions(t) and t.int8_dot and t.native,
        "int8 static", "native", FLOAT, (2.5, 7.0),
        "{conv} of the work are convolutions, which this CPU computes in 8 bits {int8_gain} × as fast as in float; hasten's own engine takes "
        "this model whole: all values between layers stay 8-bit codes, and its call costs next to nothing",
    ),
    Rule(
        "perceptron, native, int8", lambda t: _float(t) and _products_only(t) and t.int8_dot and t.native and t.cached,
        "int8 static", "native", FLOAT, (2.5, 9.0),
        "a product of one row reads every weight once, and 8-bit weights are a quarter of the bytes; the call of hasten's own engine costs next "
        "to nothing, that of onnxruntime {call}",
    ),
    Rule(
        "tiny float, native", lambda t: _tiny(t) and t.native and not t.quantized,
        "graph", "native", FLOAT, (1.0, 5.0),
        "so short a call is mostly what the runtime does around the layers: hasten's own engine computes the same float32 arithmetic, and its call "
        "costs next to nothing, that of onnxruntime {call}",
        single=True,
    ),
    # --- the same without it
    Rule(
        "tiny perceptron", lambda t: _float(t) and _tiny(t) and _products_only(t) and t.parameters > WORTH,
        "int8 dynamic", "onnxruntime", FLOAT, (1.0, 2.5),
        "a product of one row reads every weight once, and 8-bit weights are a quarter of the bytes; so short a call is over before a second "
        "thread has woken",
        single=True,
    ),
    Rule(
        "tiny convolutional", lambda t: _float(t) and _convolutions(t) and t.int8_dot and "openvino" in t.runtimes and not t.openvino,
        "int8 static", "onnxruntime", FLOAT, (1.0, 3.0),
        "convolutions compute in 8 bits {int8_gain} × as fast on this machine, and onnxruntime has the shorter call: "
        "OpenVINO's alone takes {openvino_call}, and the model at its best {least}",
    ),
    Rule(
        "convolutional, onnxruntime, int8",
        lambda t: _float(t) and _convolutions(t) and t.int8_dot and "openvino" not in t.runtimes,
        "int8 static", "onnxruntime", FLOAT, (1.0, 3.0),
        "{conv} of the work are convolutions, which this CPU computes in 8 bits {int8_gain} × as fast as in float",
    ),
    # --- convolutions
    Rule(
        "convolutional, OpenVINO, int8", lambda t: _float(t) and _convolutions(t) and t.int8_dot and t.openvino and t.bf16,
        "int8 static", "openvino", HINT, (1.6, 4.5),
        "{conv} of the work are convolutions, which this CPU computes in 8 bits {int8_gain} × as fast as in float; OpenVINO keeps the values "
        "between them in 8 bits, and computes in bf16 what stays float",
    ),
    Rule(
        "convolutional, OpenVINO, int8, no bf16", lambda t: _float(t) and _convolutions(t) and t.int8_dot and t.openvino,
        "int8 static", "openvino", FLOAT, (1.6, 4.0),
        "{conv} of the work are convolutions, which this CPU computes in 8 bits {int8_gain} × as fast as in float; OpenVINO keeps the values "
        "between them in 8 bits",
    ),
    # --- transformers
    Rule(
        "transformer, OpenVINO, int8", lambda t: _float(t) and t.attention and t.int8_dot and t.openvino,
        "int8 static", "openvino", HINT, (1.8, 3.2),
        "{product} of the work are products with weights: 8 bits for those, bf16 for attention and the residual stream, which stay float",
    ),
    Rule(
        "transformer, OpenVINO, bf16", lambda t: t.lossy and t.attention and t.bf16 and t.openvino,
        "graph", "openvino", HINT, (1.5, 2.5),
        "this CPU multiplies bf16 in one step; no calibration, and it keeps more of the accuracy than 8 bits where the budget is strict",
    ),
    Rule(
        "transformer, onnxruntime", lambda t: _float(t) and t.attention and t.int8_dot and not t.openvino,
        "int8 dynamic", "onnxruntime", FLOAT, (1.0, 2.0),
        "the products with weights are most of the work, and their inputs' ranges change from token to token: ranges are taken as they come",
    ),
    # --- products with weights
    Rule(
        "weights beyond the caches", lambda t: _float(t) and _products_only(t) and t.bound == MEMORY and not t.cached,
        "int8 dynamic", "onnxruntime", FLOAT, (1.5, 3.8),
        "reading the weights is the work, {weight_bytes} of them for each call: 8 bits are a quarter of the bytes",
    ),
    Rule(
        "perceptron, OpenVINO", lambda t: _float(t) and _products_only(t) and t.openvino and t.int8_dot,
        "int8 static", "openvino", HINT, (1.3, 3.5),
        "products with weights are all there is, and this CPU computes them in 8 bits {int8_gain} × as fast as in float",
    ),
    Rule(
        "perceptron", lambda t: _float(t) and _products_only(t) and t.int8_dot,
        "int8 dynamic", "onnxruntime", FLOAT, (1.0, 2.5),
        "products with weights are all there is, and this CPU computes them in 8 bits {int8_gain} × as fast as in float",
    ),
    # --- without an 8-bit dot product, or where results may not change
    Rule(
        "channels last", lambda t: t.transposes > 4 and t.conv > 0,
        "graph", "onnxruntime", FLOAT, (1.2, 4.0),
        "{transposes} Transposes stand between the layers; pushed down they cancel each other, and convolutions meet their biases again",
    ),
    Rule(
        "OpenVINO, bf16", lambda t: t.lossy and not t.quantized and t.bf16 and t.openvino and t.recurrent == 0,
        "graph", "openvino", HINT, (1.2, 2.5),
        "OpenVINO computes in bf16, which this CPU multiplies in one step; no calibration is needed",
    ),
    Rule(
        "OpenVINO", lambda t: t.openvino and t.recurrent == 0,
        "graph", "openvino", FLOAT, (1.0, 1.6),
        "the results stay the same within rounding; OpenVINO merges more of the graph than onnxruntime",
    ),
    Rule(
        "8 bits without a dot product", lambda t: _float(t) and _convolutions(t) and not t.int8_dot,
        "int8 static", "onnxruntime", FLOAT, (0.8, 1.6),
        "this CPU has no 8-bit dot product, so 8 bits bring little beside a smaller file: measure before you hope",
    ),
    # --- what is left
    Rule(
        "short call", _tiny,
        "graph", "onnxruntime", FLOAT, (1.0, 1.3),
        "a call of {latency} is over before a second thread has woken",
        single=True,
    ),
    Rule(
        "clean graph", lambda t: True,
        "graph", "onnxruntime", FLOAT, (1.0, 1.3),
        "constants, batch norms and biases folded ahead of time: {nodes} nodes become fewer, and nothing else is known to help here",
    ),
)  # fmt: skip


def advise(t: Traits, model: str = "MODEL", lines: int = LINES) -> tuple[Line, ...]:
    """The lines of the rules that hold, in the table's order, each command once. `model`: what the commands call it."""
    found: dict[str, Line] = {}
    for rule in RULES:
        if len(found) < lines and rule.runtime in t.runtimes and rule.when(t):
            line = _line(rule, t, model)
            found.setdefault(line.command, line)
    return tuple(found.values())


def _line(rule: Rule, t: Traits, model: str) -> Line:
    from hasten.report.numbers import count, seconds, size

    spelled = {
        "macs": count(t.macs),
        "conv": f"{t.conv:.0%}",
        "product": f"{t.product:.0%}",
        "int8_gain": f"{t.int8_gain:.1f}",
        "openvino_call": seconds(t.openvino_call),
        "call": seconds(t.overhead),
        "latency": seconds(t.latency),
        "least": seconds(t.roof + t.overhead),
        "weight_bytes": size(t.weight_bytes),
        "transposes": str(t.transposes),
        "nodes": str(t.nodes),
    }
    threads = 1 if rule.single else t.threads
    precision = rule.precision if t.bf16 or rule.precision == FLOAT else FLOAT
    recipe = next(r for r in RECIPES if r.name == rule.recipe)
    candidate = Candidate(recipe, rule.runtime, Target(threads, t.batch, precision))
    return Line(
        candidate.name, rule.recipe, rule.runtime, _command(candidate, t, model), _gain(rule, t), rule.reason.format(**spelled), rule.name
    )


def _gain(rule: Rule, t: Traits) -> tuple[float, float]:
    """The rule's range, its upper end bounded by what is left when the call's own cost can't shrink."""
    low, high = rule.gain
    if t.latency and t.overhead < t.latency:
        work = t.latency - t.overhead
        # The native engine has none of that cost: what overhead bounds elsewhere is its gain.
        high = min(high, t.latency / (t.overhead + work / high)) if high > 1 and rule.runtime != "native" else high
    return min(low, high), high


def _command(candidate: Candidate, t: Traits, model: str) -> str:
    """What tries this recipe alone in this runtime."""
    parts = ["hasten", "optimize", shlex.quote(model)]
    if candidate.lossy:
        parts += ["--data", "DATA"]
    parts += ["--recipes", shlex.quote(candidate.recipe.name), "--runtimes", candidate.runtime]
    if candidate.target.threads != t.threads:
        parts += ["--threads", str(candidate.target.threads)]
    if t.batch != 1:
        parts += ["--batch", str(t.batch)]
    return " ".join(parts)
