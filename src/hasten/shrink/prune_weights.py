"""prune_weights: set the weights to zero that count least, at once, without training. Effect: lossy.

Layer by layer, of the weights W (outputs × inputs, see shrink/weights.py) those of the smallest score go:

- `magnitude`: |w| (Han et al., arXiv 1506.02626). No data.
- `wanda`: |w| · ‖x‖₂ with x the input of the weight on calibration samples, compared within each row, so every output keeps as many (Sun et al.,
  arXiv 2306.11695).
- `sparsegpt`: what the layer's outputs lose at best, w² / [H⁻¹]_jj with H = XᵀX of the inputs, and the weights that stay are moved so that they
  lose that little (Frantar and Alistarh, arXiv 2301.00774; shrink/sparsegpt.py). Every layer sees the inputs of the dense model.

Convolutions are seen through im2col. Patterns: `unstructured`; `N:M`, at most N of every M inputs stay, side by side at one place of the kernel
(the summed axis, as hardware reads it: Mishra et al., arXiv 2104.08378); blocks of outputs × inputs such as `1x4`, `4x1`, `16x1`. Depthwise
convolutions stay dense, and so does a first or last layer with less than 5 % of all weights, unless it is asked for. Zeros that a weight has stay,
here and in every later training and quantization.

Zeros do not make a model faster in the runtimes here, which multiply by them. They make it smaller once packed, and N:M is for hardware that has it.

When: before a training that recovers (`distill`, `train`, `qat`), which holds the zeros; alone up to about half of the weights. With data to train
on, any training prunes gradually too (its `sparsity`), and needs no calibration.
Cost: magnitude takes milliseconds, wanda one pass over the calibration samples, sparsegpt inputs³ operations and three matrices of inputs² a layer
besides (layers of more than 8192 inputs stay dense). At run time nothing changes.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

from hasten.calibrate import check_finite, tensors
from hasten.errors import BadInput, Refused
from hasten.graph import Array, constant, finish
from hasten.model import Model, Skip
from hasten.shrink import inputs
from hasten.shrink.masks import SCOPES, Pattern, mask, masks_of_all, pattern_of, share_of
from hasten.shrink.moments import Moments
from hasten.shrink.sparsegpt import solve
from hasten.shrink.weights import Weight, small_ends, weights
from hasten.task import BoundTask

METHODS = ("magnitude", "wanda", "sparsegpt")

LARGEST = 8192
"""Inputs of a layer whose Hessian is made: it has 0.5 GB."""

AT_ONCE = 1 << 27
"""Numbers in the Hessians of one pass over the calibration samples: 1 GB. Where all have more there are several passes."""


@dataclasses.dataclass(frozen=True)
class PruneWeights:
    """`sparsity`: the share of zeros; left out it is 0.5, or what N:M says. `pattern`: unstructured, N:M (2:4: at most two of four inputs stay) or
    blocks of outputs x inputs (4x1). `method`: magnitude, or wanda and sparsegpt, which want data. `scope`: layer, global for one threshold
    for all layers, or adaptive for one threshold on |w|² over the sum of the layer's squares that are no smaller (LAMP, arXiv 2010.07611;
    both with magnitude alone). `first_last`: a first and a last layer with less than 5 % of
    the weights too. `exclude`: names of nodes that stay dense. `samples`: at most
    so many calibrate."""

    sparsity: float | None = None
    pattern: str = "unstructured"
    method: str = "magnitude"
    scope: str = "layer"
    first_last: bool = False
    exclude: tuple[str, ...] = ()
    samples: int = 128

    def __post_init__(self) -> None:
        share_of("prune_weights", self.sparsity, self.form)
        for name, known in (("method", METHODS), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise BadInput(f"prune_weights: {name} {getattr(self, name)!r} is unknown; use one of {', '.join(known)}")
        if self.scope != "layer" and self.form.of:
            raise BadInput(
                f"prune_weights: pattern {self.pattern} gives every layer the same sparsity, so scope {self.scope} has no meaning; leave it out"
            )
        if self.scope != "layer" and self.method != "magnitude":
            raise BadInput(
                f"prune_weights: {self.method} compares within a layer, so scope {self.scope} has no meaning; use method magnitude, or scope layer"
            )
        if self.samples < 1:
            raise BadInput(f"prune_weights: samples is {self.samples}, expected at least 1")

    @property
    def form(self) -> Pattern:
        return pattern_of("prune_weights", self.pattern)

    @property
    def share(self) -> float:
        return share_of("prune_weights", self.sparsity, self.form) or 0.5


def prune_weights(model: Model, settings: PruneWeights, task: BoundTask | None) -> Model:
    """The model with its zeros. Raises Refused where nothing can be pruned, or where the method wants data and there is none."""
    seen = (task.observation if task is not None else None) or observe(model, settings, task)
    edited = model.edit()
    graph = edited.graph
    chosen, skipped = _chosen(model, settings)
    before = {w.name: w.matrix(_array(graph, w)) for w in chosen}
    if settings.method == "sparsegpt":
        after = {w.name: from_text(_seen(seen, "weights", w), before[w.name]) for w in chosen}
    else:
        scores = {name: np.abs(m) for name, m in before.items()}
        if settings.method == "wanda":
            scores = {w.name: scores[w.name] * np.repeat(np.asarray(_seen(seen, "norms", w)), w.height, axis=0) for w in chosen}
        if settings.scope != "layer":
            adaptive = settings.scope == "adaptive"
            gone = dict(zip(scores, masks_of_all(list(scores.values()), settings.form, settings.share, adaptive=adaptive), strict=True))
        else:
            gone = {n: mask(s, settings.form, settings.share, by_row=settings.method == "wanda") for n, s in scores.items()}
        after = {name: np.where(gone[name], 0, matrix) for name, matrix in before.items()}
    for w in chosen:
        put = np.ascontiguousarray(w.back(after[w.name]).astype(_array(graph, w).dtype))
        put.flags.writeable = False
        graph.initializers[w.name].const_value = ir.Tensor(put, name=w.name)
    return finish(model, edited, settings, "prune_weights", len(chosen), [*skipped, counted(chosen, after)])


def observe(model: Model, settings: PruneWeights, task: BoundTask | None) -> dict[str, Any]:
    """What the calibration samples show, as plain JSON values: for wanda the norms of each weight's input (groups × columns), for sparsegpt
    the weights that it gives (as compressed text: the Hessians that they follow from are larger). Nothing for magnitude.
    """
    if settings.method == "magnitude":
        return {}
    if task is None or task.calibrate is None:
        raise Refused(
            f"prune_weights: method {settings.method} looks at the inputs of the layers, and no data came; give --data, or use method magnitude"
        )
    chosen, _ = _chosen(model, settings)
    graph = model.ir.graph
    if settings.method == "wanda":
        squares = {w.name: Moments(whole=False) for w in chosen}
        for w, x in _inputs(model, chosen, settings, task):
            squares[w.name].add(x)
        return {"norms": {name: np.sqrt(s.second).tolist() for name, s in squares.items()}}
    found: dict[str, dict[str, str]] = {}
    for some in _passes(chosen):
        hessians = {w.name: Moments() for w in some}
        for w, x in _inputs(model, some, settings, task):
            hessians[w.name].add(x)
        for w in some:
            matrix = w.matrix(_array(graph, w))
            parts = matrix.reshape(-1, w.height, matrix.shape[1])
            solved = [solve(part, h, settings.form, settings.share) for part, h in zip(parts, hessians.pop(w.name).second, strict=True)]
            found[w.name] = as_text(np.concatenate(solved).astype(matrix.dtype))
    return {"weights": found}


def counted(chosen: list[Weight], matrices: dict[str, Array]) -> Skip:
    """How many weights are zero, in a sentence for the history."""
    zero = {w.name: int(np.sum(matrices[w.name] == 0)) for w in chosen}
    total = sum(w.size for w in chosen)
    each = ", ".join(f"{w.node} {zero[w.name] / w.size:.1%}" for w in chosen)
    return Skip("", f"{sum(zero.values())} of {total} weights are zero ({sum(zero.values()) / total:.1%}): {each}")


def _chosen(model: Model, settings: PruneWeights) -> tuple[list[Weight], list[Skip]]:
    """(the weights that are pruned, what stays dense and why). Raises Refused where nothing is left, BadInput for an unknown name to exclude."""
    graph = model.ir.graph
    found, skipped = weights(graph)
    ends = {} if settings.first_last else small_ends(graph, found)
    if unknown := sorted(set(settings.exclude) - {w.node for w in found} - {s.node for s in skipped}):
        raise BadInput(
            f"prune_weights: there is no layer {unknown[0]!r} to exclude; there are {', '.join(dict.fromkeys(w.node for w in found))}"
        )
    chosen = []
    for w in found:
        why = w.why or settings.form.refusal(w)
        if w.node in settings.exclude:
            why = "excluded by the settings"
        elif w.node in ends:
            why = f"{ends[w.node]}; `first_last` prunes it too"
        elif not why and settings.method != "magnitude":
            why = inputs.refusal(_node(graph, w))
            if settings.method == "sparsegpt" and w.size // w.rows > LARGEST:
                why = f"its {w.size // w.rows} inputs are more than the {LARGEST} that sparsegpt takes; method wanda prunes it"
        if why:
            skipped.append(Skip(w.node, why))
        else:
            chosen.append(w)
    if not chosen:
        reasons = "; ".join(f"{s.node}: {s.why}" for s in skipped[:4])
        raise Refused(f"prune_weights: there is nothing to prune ({reasons or 'the model has no layer with weights'})")
    return chosen, skipped


def _inputs(model: Model, chosen: list[Weight], settings: PruneWeights, task: BoundTask) -> Iterator[tuple[Weight, Array]]:
    """(weight, (groups, samples, columns) that it is summed with), batch by batch."""
    readers: dict[str, list[Weight]] = {}
    graph = model.ir.graph
    for w in chosen:
        source = _node(graph, w).inputs[0]
        assert source is not None
        readers.setdefault(source.name or "", []).append(w)
    for name, value, _ in tensors(model.edit(), list(readers), settings.samples, task):
        check_finite("prune_weights", name, value)
        for w in readers[name]:
            yield w, inputs.columns(_node(graph, w), w.shape, np.asarray(value, np.float32))


def _passes(chosen: list[Weight]) -> Iterator[list[Weight]]:
    """The weights in parts, so that the Hessians of each are AT_ONCE numbers at most (one weight's may be more)."""
    some: list[Weight] = []
    count = 0
    for w in chosen:
        numbers = w.rows // w.height * (w.size // w.rows) ** 2
        if some and count + numbers > AT_ONCE:
            yield some
            some, count = [], 0
        some.append(w)
        count += numbers
    yield some


def _node(graph: ir.Graph, w: Weight) -> ir.Node:
    (use,) = graph.initializers[w.name].uses()
    return use.node


def _array(graph: ir.Graph, w: Weight) -> Array:
    array = constant(graph.initializers[w.name])
    assert array is not None
    return array


def _seen(seen: dict[str, Any], kind: str, w: Weight) -> Any:
    """What was observed of the weight. Raises Refused where that was of another model."""
    if w.name not in seen.get(kind, {}):
        raise Refused(f"prune_weights: the plan's calibration saw no weight {w.name!r}; it was made for another model")
    return seen[kind][w.name]


def as_text(matrix: Array) -> dict[str, str]:
    """Which of its numbers are not zero, and these, as compressed text."""
    kept = matrix != 0
    parts = {"kept": np.packbits(kept).tobytes(), "values": matrix[kept].tobytes()}
    return {key: base64.b64encode(zlib.compress(data)).decode() for key, data in parts.items()}


def from_text(packed: dict[str, str], like: Array) -> Array:
    """The inverse, for a matrix of that shape and type."""
    data = {key: zlib.decompress(base64.b64decode(text)) for key, text in packed.items()}
    kept = np.unpackbits(np.frombuffer(data["kept"], np.uint8), count=like.size).astype(bool)
    matrix = np.zeros(like.size, like.dtype)
    matrix[kept] = np.frombuffer(data["values"], like.dtype)
    return matrix.reshape(like.shape)
