"""What legal IR is, and whether two models compute the same: against the oracle, onnxruntime with graph optimisation off."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from hasten.errors import BadInput, CheckFailed
from hasten.model import OPSET, Model, Port

__all__ = ["BITS", "FLOAT16", "FLOAT32", "CheckFailed", "Tolerance", "legal", "oracle", "random_feeds", "same"]

Feeds = dict[str, NDArray[Any]]
SIZES = (1, 3)
"""Sizes that every dynamic axis is tried at."""


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The largest error allowed, relative to the largest magnitude in the output itself; 0: the same bits."""

    name: str
    relative: float


BITS = Tolerance("BITS", 0.0)

FLOAT32 = Tolerance("FLOAT32", 2e-4)
"""Reordering a float32 sum of k terms moves it by about √k · 2⁻²⁴ of the terms' size: 1e-5 for k = 25,000. Twenty layers that each do so
stay within 2e-4 of the output's scale, and a wrong model (a bias missed, a scale off by 1 %) does not."""

FLOAT16 = Tolerance("FLOAT16", 5e-2)
"""The same with 2⁻¹¹ in place of 2⁻²⁴, the sums kept in float32."""


def legal(model: Model) -> None:
    """Raises CheckFailed where the model breaks ONNX's rules or the house's (opset 21, no initializer among the inputs, named nodes)."""
    version = model.ir.opset_imports.get("")
    if version != OPSET:
        raise CheckFailed(f"the model has opset {version}, inside the house it is {OPSET}")
    inputs = {v.name for v in model.ir.graph.inputs}
    if both := [name for name in model.ir.graph.initializers if name in inputs]:
        raise CheckFailed(f"initializer {both[0]!r} is a graph input too")
    names = [n.name for n in model.ir.graph]
    if len(set(names)) != len(names) or not all(names):
        raise CheckFailed("a node has no name, or two have the same")
    try:
        onnx.checker.check_model(model.to_bytes(), full_check=False)
    except onnx.checker.ValidationError as e:
        raise CheckFailed(f"the model breaks ONNX's rules: {' '.join(str(e).split())[:300]}") from e


def same(before: Model, after: Model, within: Tolerance, feeds: Sequence[Mapping[str, NDArray[Any]]] | None = None, seed: int = 0) -> None:
    """Raises CheckFailed, with output, error and what is allowed, where two models differ on `feeds` (random ones by default).

    An output's error is measured against its own largest magnitude; NaN and infinities must stand in the same places.
    """
    one, other = oracle(before), oracle(after)
    for number, feed in enumerate(feeds if feeds is not None else _feeds(before, seed)):
        expected, found = one.run(None, dict(feed)), other.run(None, dict(feed))
        names = [o.name for o in one.get_outputs()]
        if names != [o.name for o in other.get_outputs()]:
            raise CheckFailed(f"outputs are {[o.name for o in other.get_outputs()]}, expected {names}")
        for name, a, b in zip(names, expected, found, strict=True):
            _compare(name, np.asarray(a), np.asarray(b), within, number)


def oracle(model: Model) -> Any:
    """An onnxruntime session with graph optimisation off, one thread: with it on, both sides are folded alike and the error is always 0."""
    import onnxruntime as ort

    ort.set_default_logger_severity(3)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    except Exception as e:
        raise CheckFailed(f"the oracle can't load the model: {' '.join(str(e).split())[:300]}") from e


def random_feeds(model: Model, batch: int = 1, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Feeds:
    """Inputs by name: floats from N(0, 1), whole numbers from the range of the table that they index (else 0 and 1), dynamic axes of size
    `sizes[name]`, the first one `batch`, any other 8."""
    rng = np.random.default_rng(seed)
    sizes = sizes or {}
    feeds: Feeds = {}
    for port in model.inputs:
        shape = [d if isinstance(d, int) else sizes.get(str(d), batch if axis == 0 else 8) for axis, d in enumerate(port.shape)]
        dtype = np.dtype(port.dtype)
        if dtype.kind == "f":
            feeds[port.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iub":
            feeds[port.name] = rng.integers(0, index_range(model, port), shape).astype(dtype)
        else:
            raise BadInput(f"input {port.name!r} has type {port.dtype}, for which hasten makes no random values; give data")
    return feeds


def index_range(model: Model, port: Port) -> int:
    """The number of rows of the table that an input of whole numbers indexes (through Cast, Reshape …); 2 where it indexes none."""
    value = next(v for v in model.ir.graph.inputs if v.name == port.name)
    rows, todo, seen = [], [value], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        for node, index in value.uses():
            if node.op_type == "Gather" and index == 1:
                table = node.inputs[0]
                if table is not None and table.shape is not None:
                    size = table.shape[node.attributes.get_int("axis", 0)]
                    rows += [size] if isinstance(size, int) else []
            elif node.op_type in ("Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Transpose"):
                todo += node.outputs
    return min(rows, default=2)


def _feeds(model: Model, seed: int) -> list[Feeds]:
    axes = {str(d) for p in model.inputs for d in p.shape if not isinstance(d, int)}
    if not axes:
        return [random_feeds(model, seed=seed)]
    return [random_feeds(model, size, seed=seed + size) for size in SIZES]


def _compare(name: str, expected: NDArray[Any], found: NDArray[Any], within: Tolerance, number: int) -> None:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise CheckFailed(f"output {name!r} is {found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}")
    if expected.dtype.kind != "f":
        if not np.array_equal(expected, found):
            raise CheckFailed(f"output {name!r} differs in {int(np.sum(expected != found))} of {expected.size} values; none may")
        return
    a, b = expected.astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        raise CheckFailed(f"output {name!r}: NaN or infinite values stand in other places")
    scale = float(np.max(np.abs(a[finite]), initial=0.0))
    error = float(np.max(np.abs(a[finite] - b[finite]), initial=0.0))
    if error > within.relative * scale:
        raise CheckFailed(
            f"output {name!r} is off by {error:.3g}, {error / scale if scale else float('inf'):.3g} of its scale {scale:.3g}; "
            f"{within.name} allows {within.relative:g} (random input {number})"
        )
