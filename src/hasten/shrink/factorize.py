"""factorize: two thin layers in place of one wide layer, where that is faster (low rank). Effect: lossy.

A layer is y = W p + b for each patch p of its input (a product: p is the input itself), W (out, D), D = in · kernel. With Ŵ = G F of rank r,
first F, then G are run. How F may look is the form:

- `product`: x U, then (x U) V. `kxk-1x1`: r channels with the whole kernel, then 1×1 to all channels (Zhang et al., arXiv 1505.06798).
- `1x1-kxk`: 1×1 to r channels, then the kernel. `kx1-1xk`: a column, then a row (Jaderberg et al., arXiv 1405.3866).

What is made least is the error of the *output*, tr((W − Ŵ) S (W − Ŵ)ᵀ), S being the second moment of the patches on the calibration samples (the
identity without data: plain SVD). For `product` and `kxk-1x1` the optimum is Ŵ = U Uᵀ W, U the first r eigenvectors of W S Wᵀ: the output's own
principal directions. For the others F comes from the SVD of W laid out in the form's way and whitened by its part of S; then G is the least-squares
optimum given F, G = W S Fᵀ (F S Fᵀ)⁻¹. Where a bias can take it, S is the covariance and b + (W − Ŵ) E[p] the new bias: the mean is kept exactly.

Rank: the largest that keeps to the budget of multiply-accumulates (`keep_macs`), or the smallest that keeps a share of the output's energy.
Time: each new shape is timed beside the layer that it would replace, both in fresh processes of onnxruntime; what isn't faster beyond the noise
is left alone. All forms within the budget are tried, the one of least error first.
A plan that was run holds forms and ranks, not the factors: where data made them, a replay needs the same samples, and is refused without.

When: for wide layers (products, and 3×3 convolutions of many channels), before recovery training and batch norm folding.
Cost: an eigendecomposition a layer, one pass over the calibration samples for each two, and some seconds of timing for each new shape.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from hasten.calibrate import check_finite, check_same, digest, tensors
from hasten.errors import BadInput, Refused
from hasten.graph import Array, add_weight, constant, finish, sole_consumer, take_place, unique_name
from hasten.measure.beside import duel
from hasten.measure.judge import Failure
from hasten.measure.machine import cores
from hasten.measure.process import Subject
from hasten.model import IR_VERSION, OPSET, Model, Skip
from hasten.patches import drawn, each, patches, slide
from hasten.runtimes import Target
from hasten.shrink.moments import Moments
from hasten.task import BoundTask
from hasten.voice import voice

PRODUCT, AFTER, BEFORE, SPATIAL = "product", "kxk-1x1", "1x1-kxk", "kx1-1xk"

EVEN = 8
"""Ranks of at least twice this are multiples of it: the kernels' tiles are."""

ROUNDS, HOPELESS = 4, 0.95
"""Rounds of fresh processes of a layer and its factors; after two no more where the factors had less than this share of its speed."""

POSITIONS = 8192
"""Patches of a layer that its moments are made of, at least (and four for each number of a patch), where the samples hold so many."""

LARGEST = 4608
"""Numbers in a patch; the moments of a larger one (their square) are not taken, and the layer is factorized without data."""

MOMENTS_BYTES = 256 << 20
"""Moments that are held at a time."""

RIDGE = 1e-3
"""Share of the mean variance that is added to each: an input that calibration never saw active keeps a little weight."""


@dataclasses.dataclass(frozen=True)
class Factorize:
    """`keep_macs`: the share of a layer's multiply-accumulates that its factors may take, or, where `energy` is given, the share of the output's
    energy (its variance) that they keep at least. `time`: leave alone what isn't faster. `smallest`: layers of fewer weights are left alone.
    `samples`: at most so many of the calibration split are looked at. `threads`, `batch`: what is timed with, 0 being all cores.
    `exclude`: node names.
    """

    keep_macs: float = 0.5
    energy: float = 0.0
    time: bool = True
    smallest: int = 4096
    samples: int = 128
    threads: int = 0
    batch: int = 1
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.keep_macs <= 1:
            raise BadInput(f"factorize: keep_macs is {self.keep_macs}, expected a share above 0 and up to 1")
        if not 0 <= self.energy <= 1:
            raise BadInput(f"factorize: energy is {self.energy}, expected a share up to 1, or 0 to go by keep_macs")
        for name, least in (("smallest", 0), ("samples", 1), ("threads", 0), ("batch", 1)):
            if getattr(self, name) < least:
                raise BadInput(f"factorize: {name} is {getattr(self, name)}, expected at least {least}")


def factorize(model: Model, settings: Factorize, task: BoundTask | None) -> Model:
    """Factorize every Conv, Gemm and MatMul with constant weights that the budget and the clock let.

    Raises Refused where the plan's factors were made with data, and none or other data came.
    """
    seen = task.observation if task is not None else None
    seen = seen if seen is not None else observe(model, settings, task)
    wanted = seen["data"]
    if wanted is not None:
        check_same("factorize", wanted, task, settings.samples)
    edited = model.edit()
    layers, skipped = _layers(edited, settings)
    by_name = {layer.name: layer for layer in layers}
    if unknown := sorted(set(seen["layers"]) - set(by_name)):
        raise Refused(f"factorize: the plan factorizes {unknown[0]!r}, which this model has not as a layer; use the original model")
    chosen = [by_name[name] for name in seen["layers"]]
    for layer, moment in _with_moments(edited, chosen, settings, task if wanted is not None else None):
        how = seen["layers"][layer.name]
        if wanted is not None and moment is None:
            skipped.append(
                Skip(layer.name, f"its patches have {layer.weight.shape[1]} numbers, more than {LARGEST}: factorized without data")
            )
        _replace(edited.graph, layer, _factors(layer, how["form"], how["rank"], moment))
    skipped += [Skip(name, why) for name, why in seen["left"].items()]
    return finish(model, edited, settings, "factorize", len(chosen), skipped)


def observe(model: Model, settings: Factorize, task: BoundTask | None) -> dict[str, Any]:
    """Form, rank, share of the output's energy that is lost, and measured speed of each layer that is to be factorized; why others are left.

    `data`: a digest of the calibration samples that the factors depend on, None where there are none.
    """
    edited = model.edit()
    layers, _ = _layers(edited, settings)
    shapes = _shapes(edited, settings.batch)
    clock: dict[str, float | str] = {}
    taken: dict[str, Any] = {}
    left: dict[str, str] = {}
    for number, (layer, moment) in enumerate(_with_moments(edited, layers, settings, task)):
        voice().step("low rank", number, len(layers))
        choices, why = _choices(layer, settings, moment)
        ratios: list[tuple[str, float]] = []
        shape = shapes.get(layer.input.name or "") or _seen_shape(layer, moment, settings)
        for factors in choices:
            ratio: float | None = None
            if settings.time:
                timed = _time(layer, factors, shape, settings, clock)
                if isinstance(timed, str):
                    why = timed
                    break
                low, ratio = timed
                ratios.append((f"{factors.form} of rank {factors.rank}", ratio))
                if low <= 1:
                    continue
            lost, ratio = round(factors.error, 6), None if ratio is None else round(ratio, 3)
            taken[layer.name] = {"form": factors.form, "rank": factors.rank, "lost": lost, "speed": ratio}
            break
        if layer.name not in taken:
            slower = ", ".join(f"{name}: {ratio:.2f} times the layer's speed" for name, ratio in ratios)
            left[layer.name] = why or f"its factors are not faster beyond the noise, as measured ({slower})"
    voice().step("low rank", len(layers), len(layers))
    return {"layers": taken, "left": left, "data": digest(task, settings.samples) if taken else None}


# --- layers


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """A layer as y = W p + b: `weight` (out, D) in float64, D = in · kernel in that order; kernel () for a product.

    `bias_after`: the Add behind a MatMul, whose constant is the bias.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    kernel: tuple[int, ...] = ()
    bias_after: ir.Node | None = None

    @property
    def name(self) -> str:
        return self.node.name or ""

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def channels(self) -> int:
        return self.weight.shape[1] // math.prod(self.kernel)

    @property
    def takes_bias(self) -> bool:
        """Whether the mean that is lost can go into a bias without an operator more."""
        return self.node.op_type != "MatMul" or self.bias_after is not None

    @property
    def forms(self) -> tuple[str, ...]:
        if math.prod(self.kernel) == 1:
            return (PRODUCT,) if not self.kernel else (AFTER,)
        return (AFTER, BEFORE, SPATIAL) if len(self.kernel) == 2 and min(self.kernel) > 1 else (AFTER, BEFORE)


def _layers(edited: ir.Model, settings: Factorize) -> tuple[list[Layer], list[Skip]]:
    """The layers that may be factorized, and the others with the reason."""
    found: list[Layer] = []
    skipped: list[Skip] = []
    for node in edited.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.domain == "":
            layer = _layer(node, settings)
            if isinstance(layer, str):
                skipped.append(Skip(node.name or "", layer))
            else:
                found.append(layer)
    return found, skipped


def _layer(node: ir.Node, settings: Factorize) -> Layer | str:
    """The node as a layer, or why it can't be factorized."""
    w = constant(node.inputs[1])
    if node.name in settings.exclude:
        return "excluded by the settings"
    if w is None or constant(node.inputs[0]) is not None:
        return "it multiplies two activations, or two constants"
    if w.dtype != np.float32 or w.ndim < 2 or (node.op_type != "Conv" and w.ndim != 2):
        return f"its weights are {w.dtype} with {w.ndim} axes; a float32 matrix or kernel was expected"
    if w.size < settings.smallest:
        return f"its {w.size} weights are fewer than {settings.smallest}: two layers are then not faster than one"
    if len(tuple(node.inputs[1].uses())) > 1:  # type: ignore[union-attr]
        return "its weights are shared with another node"
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(given)
    if given is not None and bias is None:
        return "its bias is computed, not constant"
    w = w.astype(np.float64)
    if node.op_type == "Conv":
        if node.attributes.get_int("group", 1) != 1:
            return "it is grouped: its channels are apart already"
        return Layer(node, w.reshape(len(w), -1), bias, w.shape[2:])
    if node.op_type == "MatMul":
        after = _bias_after(node, w.shape[1])
        return Layer(node, w.T, None if after is None else constant(after[1]), (), None if after is None else after[0])
    if node.attributes.get_int("transA", 0):
        return "its first input is transposed"
    w = w if node.attributes.get_int("transB", 0) else w.T
    if bias is not None:
        if bias.size not in (1, len(w)) or bias.size != max(bias.shape[-1:], default=1):
            return "its bias is not one number for each output"
        bias = np.broadcast_to(bias.ravel() * np.float64(node.attributes.get_float("beta", 1.0)), (len(w),))
    return Layer(node, w * node.attributes.get_float("alpha", 1.0), bias)


def _bias_after(node: ir.Node, outputs: int) -> tuple[ir.Node, ir.Value] | None:
    """The Add of one number for each output right behind a product, and its constant."""
    add = sole_consumer(node.outputs[0])
    if add is None or add.op_type != "Add":
        return None
    for value in add.inputs:
        array = constant(value)
        if value is not None and array is not None and array.ndim and array.shape[-1] == array.size == outputs:
            return add, value
    return None


def _shapes(edited: ir.Model, batch: int) -> dict[str, tuple[int, ...]]:
    """The shapes of the values that are known once the first axis of every input is `batch`."""
    copy = edited.clone()
    for value in copy.graph.inputs:
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([d if isinstance(d, int) or i else batch for i, d in enumerate(value.shape)])
    for node in copy.graph:
        for value in node.outputs:
            value.shape = None
    copy = ShapeInferencePass(strict_mode=False, data_prop=True)(copy).model
    values = [*copy.graph.inputs, *(o for n in copy.graph for o in n.outputs)]
    return {v.name or "": tuple(map(int, v.shape)) for v in values if v.shape is not None and v.shape.is_static()}  # type: ignore[arg-type]


def _seen_shape(layer: Layer, moment: Moment | None, settings: Factorize) -> tuple[int, ...] | None:
    """The shape of a layer's input where the graph does not tell: that of the samples, or a matrix' of `batch` rows."""
    if moment is not None:
        return (settings.batch, *moment.shape[1:])
    return (settings.batch, layer.channels) if layer.node.op_type == "Gemm" else None


# --- the arithmetic


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """Of a layer's patches: the mean (D,) and the covariance (D, D), or 0 and the second moment where no bias can take the mean.

    `shape`: of the layer's input for the samples that were looked at last.
    """

    mean: Array
    second: Array
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Factors:
    """`first` (r, in · …) and `second` (out, r · …) as matrices, the bias to use, the share of the output's energy that is lost."""

    form: str
    rank: int
    first: Array
    second: Array
    bias: Array | None
    error: float


def _choices(layer: Layer, settings: Factorize, moment: Moment | None) -> tuple[list[Factors], str]:
    """Factors in each form at the rank that the settings ask for, least error first; or none and why."""
    found = []
    whole = layer.weight.size
    for form in layer.forms:
        cost = _macs(layer, form)
        energies, _ = _basis(layer, form, moment)
        if settings.energy:
            share = np.cumsum(energies) / max(float(energies.sum()), np.finfo(np.float64).tiny)
            rank = _even(int(np.searchsorted(share, settings.energy * (1 - 1e-12))) + 1, up=True)
        else:
            rank = _even(int(settings.keep_macs * whole / cost), up=False)
        rank = min(rank, len(energies))
        if rank and (not settings.energy or rank * cost < whole):
            found.append(_factors(layer, form, rank, moment))
    if not found:
        asked = f"to keep {settings.energy:g} of its energy takes" if settings.energy else "every rank takes"
        limit = "the layer itself" if settings.energy else f"{settings.keep_macs:g} of the layer"
        return [], f"{asked} more multiply-accumulates than {limit}"
    return sorted(found, key=lambda f: (f.error, f.rank * _macs(layer, f.form))), ""


def _even(rank: int, up: bool) -> int:
    """A multiple of EVEN where the rank is large enough for that to matter."""
    return rank if rank < 2 * EVEN else EVEN * (-(-rank // EVEN) if up else rank // EVEN)


def _macs(layer: Layer, form: str) -> float:
    """Multiply-accumulates of one rank, for each position of the layer's output."""
    out, kernel, stride = len(layer.weight), layer.kernel, each(layer.node, "strides", len(layer.kernel))
    if form == BEFORE:
        return layer.channels * math.prod(stride) + out * math.prod(kernel)
    if form == SPATIAL:
        return layer.channels * kernel[0] * stride[1] + out * kernel[1]
    return layer.weight.shape[1] + out


def _basis(layer: Layer, form: str, moment: Moment | None) -> tuple[Array, Array]:
    """Energies of the directions, the largest first, and the rows of the first factor in their order."""
    w, (out, size) = layer.weight, layer.weight.shape
    second = None if moment is None else moment.second
    if form in (PRODUCT, AFTER):
        values, vectors = np.linalg.eigh(w @ (w.T if second is None else second @ w.T))
        rows = vectors.T[::-1] @ w
        return np.maximum(values[::-1], 0)[: min(out, size)], rows[: min(out, size)]
    # The weights with what the first factor sees as rows: (in, …) for 1x1-kxk, (in, kernel rows, …) for kx1-1xk.
    kernel, seen = math.prod(layer.kernel), layer.channels
    if form == SPATIAL:
        seen, kernel = layer.channels * layer.kernel[0], layer.kernel[1]
    laid = w.reshape(out, seen, kernel).transpose(1, 0, 2).reshape(seen, -1)
    white = np.eye(seen)
    if second is not None:
        # Patches that lie side by side are taken as alike: the mean over the kernel's other positions is what the first factor sees.
        mean = np.einsum("akbk->ab", second.reshape(seen, kernel, seen, kernel)) / kernel
        white = np.linalg.cholesky(mean + np.eye(seen) * np.finfo(np.float64).eps * max(1e-30, float(np.trace(mean))))
    scaled = white.T @ laid
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    rows = np.linalg.solve(white.T, vectors[:, ::-1]).T
    count = min(scaled.shape)
    return np.maximum(values[::-1], 0)[:count], rows[:count]


def _factors(layer: Layer, form: str, rank: int, moment: Moment | None) -> Factors:
    """The factors of that form and rank; the second is the least-squares optimum given the first."""
    w = layer.weight
    first = _basis(layer, form, moment)[1][:rank]
    spread = _spread(layer, form, first)
    seen = w if moment is None else w @ moment.second
    gram = spread @ (spread.T if moment is None else moment.second @ spread.T)
    gram += np.eye(len(gram)) * np.finfo(np.float64).eps * max(1e-30, float(np.trace(gram)))
    second = np.linalg.solve(gram, spread @ seen.T).T
    difference = w - second @ spread
    lost = difference if moment is None else difference @ moment.second
    error = float(np.sum(lost * difference)) / max(float(np.sum(seen * w)), np.finfo(np.float64).tiny)
    bias = layer.bias
    if moment is not None and layer.takes_bias:
        shift = difference @ moment.mean
        bias = shift if bias is None else bias + shift.reshape(bias.shape)
    # Both factors of one size: they are quantized and trained better so.
    blocks = second.reshape(len(w), rank, -1)
    norms = np.linalg.norm(first, axis=1), np.linalg.norm(blocks, axis=(0, 2))
    scale = np.sqrt(np.divide(norms[1], norms[0], out=np.ones(rank), where=(norms[0] > 0) & (norms[1] > 0)))
    blocks = blocks / scale[:, None]
    return Factors(form, rank, first * scale[:, None], blocks.reshape(second.shape), bias, max(error, 0.0))


def _spread(layer: Layer, form: str, first: Array) -> Array:
    """The first factor as a map of a whole patch: (r, D), or (r · positions that the second factor reads, D)."""
    if form in (PRODUCT, AFTER):
        return first
    positions = math.prod(layer.kernel) if form == BEFORE else layer.kernel[1]
    return np.einsum("ri,kl->rkil", first, np.eye(positions)).reshape(len(first) * positions, -1)


# --- the inputs' moments


def _with_moments(
    edited: ir.Model, layers: Sequence[Layer], settings: Factorize, task: BoundTask | None
) -> Iterator[tuple[Layer, Moment | None]]:
    """Each layer with the moments of its patches (None without data), so many at a time as memory allows."""
    original = edited.clone() if task is not None and task.calibrate is not None else None  # the caller may change the other meanwhile
    waiting: list[Layer] = []
    for number, layer in enumerate(layers):
        waiting.append(layer)
        more = layers[number + 1].weight.shape[1] if number + 1 < len(layers) else 0
        if more and 16 * (more**2 + sum(other.weight.shape[1] ** 2 for other in waiting)) <= MOMENTS_BYTES:
            continue
        found = {} if original is None or task is None else _moments(original, waiting, settings, task)
        for other in waiting:
            yield other, found.get(other.name)
        waiting = []


def _moments(edited: ir.Model, layers: Sequence[Layer], settings: Factorize, task: BoundTask) -> dict[str, Moment]:
    """Moments by layer, over at most `samples` of the calibration split. A layer of too large patches has none."""
    assert task.calibrate is not None
    within = [layer for layer in layers if layer.weight.shape[1] <= LARGEST]
    readers: dict[str, list[Layer]] = {}
    for layer in within:
        readers.setdefault(layer.input.name or "", []).append(layer)
    sums = {layer.name: Moments() for layer in within}
    shapes: dict[str, tuple[int, ...]] = {}
    samples = min(settings.samples, len(task.calibrate))
    for name, value, so_far in tensors(edited, list(readers), settings.samples, task) if readers else ():
        check_finite("factorize", name, value)
        for layer in readers[name]:
            size = layer.weight.shape[1]
            wanted = -(-max(POSITIONS, 4 * size) * len(value) // samples)
            sums[layer.name].add(_rows(layer, value, wanted, np.random.default_rng(so_far))[None])
            shapes[layer.name] = value.shape
    found = {}
    for layer in within:
        total = sums[layer.name]
        if not total.count:
            continue
        second, mean = total.second[0] / total.count, total.first[0] / total.count
        if layer.takes_bias:
            second -= np.outer(mean, mean)
        else:
            mean = np.zeros_like(mean)
        second[np.diag_indices_from(second)] += RIDGE * max(float(np.trace(second)) / len(second), 1e-12)
        found[layer.name] = Moment(mean, second, shapes[layer.name])
    return found


def _rows(layer: Layer, value: Array, wanted: int, rng: np.random.Generator) -> Array:
    """At most so many patches (P, D) of a layer's input, drawn at random."""
    if not layer.kernel:
        rows = value.reshape(-1, value.shape[-1])
        found: Array = rows[drawn(len(rows), rng, wanted)]
        return found
    how = slide(layer.node, layer.kernel, value.shape[2:])
    chosen = drawn(len(value) * math.prod(how.out(value.shape[2:])), rng, wanted)
    return patches(value, how, chosen).reshape(len(chosen), -1)


# --- the graph


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """One operator with its weight: what takes a layer's place is two of them."""

    op: str
    weight: Array
    bias: Array | None
    attributes: dict[str, Any]


def _pieces(layer: Layer, factors: Factors | None) -> list[Piece]:
    """The operators of the factors, or of the layer itself."""
    op, out, rank = layer.node.op_type, len(layer.weight), factors.rank if factors else 0
    bias = factors.bias if factors else layer.bias
    bias = None if op == "MatMul" or bias is None else bias
    if not layer.kernel:
        parts = [layer.weight.T] if factors is None else [factors.first.T, factors.second.T]
        return [Piece(op, part, bias if part is parts[-1] else None, {}) for part in parts]
    ones = (1,) * len(layer.kernel)
    axes = range(len(layer.kernel))
    if factors is None:
        return [Piece(op, layer.weight.reshape(out, layer.channels, *layer.kernel), bias, _attributes(layer, axes))]
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...], Any, Any]] = {
        AFTER: (layer.kernel, ones, axes, ()),
        BEFORE: (ones, layer.kernel, (), axes),
        SPATIAL: ((layer.kernel[0], 1), (1, layer.kernel[-1]), (0,), (1,)),
    }
    kernel, behind, here, there = shapes[factors.form]
    return [
        Piece(op, factors.first.reshape(rank, layer.channels, *kernel), None, _attributes(layer, here)),
        Piece(op, factors.second.reshape(out, rank, *behind), bias, _attributes(layer, there)),
    ]


def _attributes(layer: Layer, axes: Sequence[int]) -> dict[str, Any]:
    """The convolution's strides, dilations and padding along these axes; along the others it does not slide."""
    rank = len(layer.kernel)
    kept = {name: [n if a in axes else 1 for a, n in enumerate(each(layer.node, name, rank))] for name in ("strides", "dilations")}
    kind = layer.node.attributes.get_string("auto_pad", "NOTSET")
    if kind in ("SAME_UPPER", "SAME_LOWER"):
        return {**kept, "auto_pad": kind}
    pads = np.transpose(slide(layer.node, layer.kernel).pads).ravel()
    return {**kept, "pads": [int(n) if a % rank in axes else 0 for a, n in enumerate(pads)]}


def _replace(graph: ir.Graph, layer: Layer, factors: Factors) -> None:
    """The pieces of the factors in the layer's place."""
    node, value = layer.node, layer.input
    base = node.inputs[1].name or "weight"  # type: ignore[union-attr]
    for end, piece in zip(("first", "second"), _pieces(layer, factors), strict=True):
        arguments = [value, add_weight(graph, f"{base}_{end}", piece.weight.astype(np.float32))]
        if piece.bias is not None:
            arguments.append(add_weight(graph, f"{base}_bias", piece.bias.astype(np.float32)))
        made = ir.node(piece.op, arguments, piece.attributes, name=unique_name(graph, f"{node.name}_{end}"))
        made.outputs[0].name = unique_name(graph, f"{node.outputs[0].name}_{end}")
        made.outputs[0].type = node.outputs[0].type
        graph.insert_before(node, made)
        value = made.outputs[0]
    value.shape = node.outputs[0].shape
    if layer.bias_after is not None and factors.bias is not None:
        index = next(i for i, v in enumerate(layer.bias_after.inputs) if v is not None and v is not node.outputs[0])
        layer.bias_after.replace_input_with(index, add_weight(graph, f"{base}_bias", factors.bias.astype(np.float32)))
    take_place(node.outputs[0], value)
    graph.remove(node, safe=True)


# --- the clock


def _time(
    layer: Layer, factors: Factors, shape: tuple[int, ...] | None, settings: Factorize, clock: dict[str, Any]
) -> tuple[float, float] | str:
    """How many times faster the factors are than the layer: the one-sided 95 % bound and the estimate; or why that can't be told."""
    if shape is None:
        return "its input's shape is not known, so it can't be timed; give --shape AXIS=SIZE, or --no-time"
    sides = {"layer": _alone(_pieces(layer, None), shape), "factors": _alone(_pieces(layer, factors), shape)}
    key = hashlib.sha256(b"|".join(Model(ir.from_proto(proto)).structure.encode() for proto in sides.values())).hexdigest()
    if key not in clock:
        clock[key] = _duel(sides, shape, settings)
    found: tuple[float, float] | str = clock[key]
    return found


def _duel(sides: dict[str, onnx.ModelProto], shape: tuple[int, ...], settings: Factorize) -> tuple[float, float] | str:
    """The two models side by side, each time in fresh processes."""
    feeds = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    with tempfile.TemporaryDirectory(prefix="hasten-") as place:
        subjects = {}
        for name, proto in sides.items():
            path = Path(place) / f"{name}.onnx"
            path.write_bytes(proto.SerializeToString())
            subjects[name] = Subject("onnxruntime", path, Target(settings.threads or cores(), shape[0]))
        found = duel(subjects, feeds, ROUNDS, HOPELESS)
    if isinstance(found, Failure):
        return f"it could not be timed: {found.reason}"
    return (found.low if found.bound_low is None else found.bound_low), found.estimate


def _alone(pieces: Sequence[Piece], shape: tuple[int, ...]) -> onnx.ModelProto:
    """A model of these pieces alone, x of that shape → y."""
    nodes, weights, value = [], [], "x"
    for number, piece in enumerate(pieces):
        names = [f"w{number}"] + ([f"b{number}"] if piece.bias is not None else [])
        arrays = [piece.weight] + ([np.ravel(piece.bias)] if piece.bias is not None else [])
        weights += [onnx.numpy_helper.from_array(a.astype(np.float32), n) for a, n in zip(arrays, names, strict=True)]
        after = "y" if number == len(pieces) - 1 else f"h{number}"
        nodes.append(onnx.helper.make_node(piece.op, [value, *names], [after], f"n{number}", **piece.attributes))
        value = after
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
    graph = onnx.helper.make_graph(nodes, "layer", ends[:1], ends[1:], weights)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
