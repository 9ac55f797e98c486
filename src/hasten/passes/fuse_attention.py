"""fuse_attention: attention, and a sum with its norm, become onnxruntime's own operators. Effect: rounding.

MultiHeadAttention: softmax(α Q Kᵀ + mask) V of h heads (Vaswani et al., arXiv 1706.03762). Q, K and V come as (batch, positions, h·d), so the
Transposes that part the heads and join them again go: the operator does that while it reads. What the exporter wrote between the projections
and the products is followed by where the axes lie (see `layout`), not by its form.
SkipLayerNormalization: LayerNormalization(a + b). SkipSimplifiedLayerNormalization: the RMS normalization of a + b. The sum comes out too where it
is read again.

All stand in the domain com.microsoft, which onnxruntime and OpenVINO know; the torch runtime refuses such a model, node by node. RMS
normalization of anything but a sum stays in pieces (see `fuse_operators`): the operator that onnxruntime has for it claims ONNX's own domain, in
which opset 21 knows no such name, so the file would break ONNX's rules.

When: a transformer over long inputs that is shipped for onnxruntime, and a measurement says that it pays. It is the last step: no other
technique knows the operators.
Cost: no data; the model no longer runs in torch. onnxruntime parts and joins heads about as fast by itself: MiniLM at 128 tokens ran at 0.96 to 1.0
of its speed, two layers of that width at 512 tokens, without a mask, at 1.03; so it stands in no recipe. RMS normalization does not ask for it
either: with the sums in it a small Llama ran as fast as with what `fuse_operators` makes of it, six layers of 256 channels at 0.97 to 0.98 of that
speed (128 tokens, one thread).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import begin, constant, may_rewrite, settle, sole_consumer, take_place
from hasten.model import Model, Skip, Step
from hasten.passes.fuse_operators import Found, as_values, between, ones, other_readers, rms_norm
from hasten.passes.layout import View, layout, views
from hasten.rewrite import Edit, graph_of
from hasten.task import BoundTask

DOMAIN, VERSION = "com.microsoft", 1

SKIP = {"LayerNormalization": "SkipLayerNormalization", "RMSNormalization": "SkipSimplifiedLayerNormalization"}
"""A norm → that of a sum."""

Size = int | ir.SymbolicDim | None
Masks = dict[tuple[ir.Value, int, int], ir.Value]
"""(mask, queries, keys) → the mask as large as the scores."""


@dataclasses.dataclass(frozen=True)
class FuseAttention:
    """No settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class Attention:
    """softmax(scale · Q Kᵀ + bias) V. `queries`, `keys`, `values` each as a view with the letters b, h, s (positions) and d."""

    queries: View
    keys: View
    values: View
    scale: float
    bias: ir.Value | None
    product: ir.Node
    """The MatMul with V, whose output has the axes b, h, s, d."""


def fuse_attention(model: Model, settings: FuseAttention, task: BoundTask | None) -> Model:
    """Replace every attention and every sum with a layer norm in the main graph; those that do not fit are skipped, each with the reason."""
    edited = begin(model)
    graph = edited.graph
    edit = Edit(edited)
    skipped: list[Skip] = []
    changed = 0
    masks: Masks = {}
    for softmax in [n for n in graph if n.op_type == "Softmax" and n.domain == ""]:
        found = attention(softmax)
        if found is None:
            continue
        if isinstance(found, str):
            skipped.append(Skip(softmax.name or "", found))
            continue
        if not may_rewrite(softmax):
            continue
        _write_attention(edit, found, masks)
        changed += 1
    for node in list(graph):
        norm = _norm(node)
        why = None if norm is None else skip_norm(norm)
        if norm is None or why is None:
            continue
        if why:
            skipped.append(Skip(norm.root.name or "", why))
            continue
        if not may_rewrite(norm.root):
            continue
        _write_skip_norm(edit, norm)
        changed += 1
    if changed:
        edited.opset_imports[DOMAIN] = VERSION
        graph.sort()
        settle(edited)
    return model.then(edited, Step("fuse_attention", dataclasses.asdict(settings), changed, tuple(skipped)))


# --- what is attention


def attention(softmax: ir.Node) -> Attention | str | None:
    """The attention that this Softmax is the middle of; why it can't be one operator; None where it is no attention."""
    weights, scores = softmax.outputs[0], softmax.inputs[0]
    product = next((use.node for use in weights.uses() if use.node.op_type == "MatMul" and use.idx == 0), None)
    if product is None or scores is None:
        return None
    scale, bias, first = _scores(scores)
    if first is None:
        masked = scores.producer()
        return "its scores are masked by Where, not by one sum" if masked is not None and masked.op_type == "Where" else None
    q, k, v = first.inputs[0], first.inputs[1], product.inputs[1]
    if q is None or k is None or v is None or any(constant(x) is not None for x in (q, k, v)):
        return None
    axes = [layout(x, letters) for x, letters in ((q, "bhsd"), (k, "bhds"), (v, "bhsd"))]
    starts = [View(x, a) for x, a in zip((q, k, v), axes, strict=True) if a is not None]
    if len(starts) < 3:
        return f"its products have {'an unknown number of' if q.shape is None else len(q.shape)} axes, expected batch, heads, positions, channels"
    if softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return "its Softmax is not over the keys"
    if sole_consumer(weights) is not product:
        return "its weights, the Softmax's output, have other readers"
    if q.dtype != ir.DataType.FLOAT or product.outputs[0].shape is None:
        return "its values are not float32, or of unknown shape"
    sizes = [start.sizes for start in starts]
    if any(len({s[letter] for s in sizes}) > 1 for letter in "bh") or None in {s[letter] for s in sizes for letter in "hd"}:
        return f"queries, keys and values must have one batch, and one known number of heads and of channels; they have {sizes}"
    if bias is not None and (why := _mask_refusal(bias, starts[0], starts[1])):
        return why
    queries, keys = _nearest_to_rows(views(starts[0])), _nearest_to_rows(views(starts[1]))
    # A factor of the values is none of the scores: they are read after it.
    values = _nearest_to_rows(v for v in views(starts[2]) if v.factor == 1)
    return Attention(queries, keys, values, scale * queries.factor * keys.factor, bias, product)


def _scores(value: ir.Value) -> tuple[float, ir.Value | None, ir.Node | None]:
    """(factor, mask, the MatMul Q Kᵀ) of α Q Kᵀ + mask; no MatMul where the scores are anything else."""
    node = value.producer()
    if node is not None and node.op_type == "Add" and node.domain == "" and sole_consumer(value) is not None:
        for index, mask in enumerate(node.inputs):
            source = node.inputs[1 - index]
            if source is None or mask is None:
                continue
            factor, inner, product = _scores(source)
            if product is not None and inner is None:
                return factor, mask, product
        return 1.0, None, None
    start = View(value, layout(value, "bhsl"[: len(value.shape)]) or ()) if value.shape is not None else View(value, ())
    view = [v for v in views(start) if v.layout == start.layout][-1]
    product = view.value.producer()
    if product is None or product.op_type != "MatMul" or product.domain != "":
        return 1.0, None, None
    return view.factor, None, product


def _nearest_to_rows(found: Iterable[View]) -> View:
    """Of values that hold the same numbers the one that is brought to (batch, positions, heads · channels) with the fewest operators, and of
    several such the first to be computed: what was made of it falls away."""
    costs = [(cost, -place, view) for place, view in enumerate(found) if (cost := _cost(view)) is not None]
    return min(costs, key=lambda entry: entry[:2])[2]  # the value itself, with an axis for each letter, is always among them


def _order(view: View) -> list[int] | None:
    """The axes of the view in the order batch, positions, heads, channels; None where one of them holds letters that do not follow each other."""
    order = sorted((i for i, g in enumerate(view.layout) if g), key=lambda i: "bshd".index(view.layout[i][0][0]))
    return order if [a for i in order for a, _ in view.layout[i]] == list("bshd") else None


def _cost(view: View) -> int | None:
    """Operators that bring it to rows: a Transpose counts more than a Reshape, which moves nothing. None: it can't be brought there."""
    order = _order(view)
    if order is None or view.value.shape is None:
        return None
    letters = ["".join(a for a, _ in group) for group in view.layout]
    if letters == ["b", "s", "hd"]:
        return 0
    if view.sizes["s"] is None and [letters[i] for i in order[:2]] != ["b", "s"]:
        return None
    turned = 0 if order == sorted(order) else 2
    return turned + (0 if turned and sorted(letters) == ["b", "hd", "s"] else 1)


def _mask_refusal(mask: ir.Value, queries: View, keys: View) -> str:
    """Why a mask can't be brought to (batch or 1, heads or 1, queries, keys), empty if it can."""
    if mask.shape is None or len(mask.shape) > 4:
        return "the shape of its mask is unknown"
    if mask.dtype != ir.DataType.FLOAT:
        return "its mask is not float32"
    scores = [queries.sizes["b"], queries.sizes["h"], queries.sizes["s"], keys.sizes["s"]]
    for found, full in zip(_four(mask), scores, strict=True):
        if found != 1 and (found if isinstance(found, int) else None) != full:
            return f"its mask has shape {[str(d) for d in mask.shape]}, which is not that of its scores"
    if any(d == 1 and full is None for d, full in zip(_four(mask)[2:], scores[2:], strict=True)):
        return "its mask must be as large as the scores, whose size is known at run time only"
    return ""


def _four(value: ir.Value) -> list[Size]:
    """The shape with ones in front, four in all."""
    assert value.shape is not None
    return [*[1] * (4 - len(value.shape)), *value.shape]


# --- what is written in its place


def _write_attention(edit: Edit, found: Attention, masks: Masks) -> None:
    product, old, sizes = found.product, found.product.outputs[0], found.values.sizes
    assert old.shape is not None
    heads, channels = int(sizes["h"] or 0), int(sizes["d"] or 0)
    inputs: list[ir.Value | None] = [_rows(edit, product, view) for view in (found.queries, found.keys, found.values)]
    if found.bias is not None:
        inputs += [None, None, _mask(edit, product, found, masks)]  # no bias of the projections, no padding mask
    name = edit.unique(f"{product.name}_attention")
    node = ir.node("MultiHeadAttention", inputs, {"num_heads": heads, "scale": found.scale}, domain=DOMAIN, name=name)
    rows = node.outputs[0]
    rows.name, rows.type = edit.unique(f"{old.name}_rows"), old.type
    rows.shape = ir.Shape([old.shape[0], old.shape[2], heads * channels])
    graph_of(product).insert_before(product, node)
    if not _joined(edit, rows, old):
        parted = _node(
            edit, product, "Reshape", [rows, _int64(edit, product, [0, 0, heads, channels])], {}, [*rows.shape[:2], heads, channels]
        )
        take_place(old, _node(edit, product, "Transpose", [parted], {"perm": [0, 2, 1, 3]}, [*old.shape]))


def _joined(edit: Edit, rows: ir.Value, old: ir.Value) -> bool:
    """Let the Transpose and Reshape that join the heads read the rows, in which they are joined already. False where something else is read."""
    turn = sole_consumer(old)
    if turn is None or turn.op_type != "Transpose" or turn.domain != "" or "perm" not in turn.attributes:
        return False
    perm = tuple(turn.attributes["perm"].as_ints())
    join = sole_consumer(turn.outputs[0])
    if perm not in ((0, 2, 1, 3), (2, 0, 1, 3)) or join is None or join.op_type != "Reshape" or join.domain != "":
        return False
    if perm == (0, 2, 1, 3) and _fits(join.outputs[0], rows, 3):
        take_place(join.outputs[0], rows)
        return True
    shape = constant(join.inputs[1])
    # A 0 takes over the size at its own place: of the first two axes only these are the same in the rows.
    if shape is None or (join.attributes.get_int("allowzero", 0) == 0 and np.any(shape[2:] == 0)):
        return False
    assert rows.shape is not None
    if perm == (2, 0, 1, 3):
        rows = _node(edit, turn, "Transpose", [rows], {"perm": [1, 0, 2]}, [rows.shape[1], rows.shape[0], rows.shape[2]])
    join.replace_input_with(0, rows)
    return True


def _rows(edit: Edit, before: ir.Node, view: View) -> ir.Value:
    """The view as (batch, positions, heads · channels)."""
    value, order = view.value, _order(view)
    assert order is not None and value.shape is not None
    if _cost(view) == 0:
        return value
    sizes = view.sizes
    batch, width = value.shape[order[0]], int(sizes["h"] or 0) * int(sizes["d"] or 0)
    empty = [i for i in range(len(view.layout)) if i not in order]
    perm = [*order, *empty]
    if perm != sorted(perm):
        value = _node(edit, before, "Transpose", [value], {"perm": perm}, [value.shape[i] for i in perm])
    assert value.shape is not None
    if len(value.shape) == 3 and [len(view.layout[i]) for i in order] == [1, 1, 2]:
        return value  # [positions, batch, heads · channels], turned
    apart = [len(view.layout[i]) for i in order[:2]] == [1, 1]
    shape = [0, 0, width] if apart else [-1, sizes["s"], width]
    return _node(edit, before, "Reshape", [value, _int64(edit, before, shape)], {}, [batch if apart else None, sizes["s"], width])


def _mask(edit: Edit, before: ir.Node, found: Attention, masks: Masks) -> ir.Value:
    """The mask, as large as the scores of one head at least; made once for all that share it."""
    mask, queries, keys = found.bias, found.queries.sizes["s"], found.keys.sizes["s"]
    assert mask is not None
    key = (mask, queries or 0, keys or 0)
    if key in masks:
        return masks[key]
    array, shape = constant(mask), _four(mask)
    wide = [*shape[:2], *(full if d == 1 else d for d, full in zip(shape[2:], (queries, keys), strict=True))]
    made = mask
    if array is not None:
        made = edit.weight(before, f"{mask.name}_wide", np.broadcast_to(array, [d for d in wide if isinstance(d, int)]))
    else:
        if missing := 4 - len(mask.shape or ()):
            made = _node(edit, before, "Unsqueeze", [made, _int64(edit, before, range(missing))], {}, shape)
        if wide != shape:
            made = _node(edit, before, "Expand", [made, _int64(edit, before, [1, 1, *wide[2:]])], {}, wide)
    masks[key] = made
    return made


def _node(
    edit: Edit, before: ir.Node, operator: str, inputs: Sequence[ir.Value], attributes: dict[str, list[int]], shape: Sequence[Size]
) -> ir.Value:
    """The output of a new node that stands before another one."""
    name = edit.unique(f"{inputs[0].name}_{operator.lower()}")
    node = ir.node(operator, inputs, attributes, name=name)
    output = node.outputs[0]
    output.name, output.type, output.shape = edit.unique(f"{name}_value"), inputs[0].type, ir.Shape(shape)
    graph_of(before).insert_before(before, node)
    return output


def _int64(edit: Edit, reader: ir.Node, numbers: Iterable[Size]) -> ir.Value:
    return edit.weight(reader, "sizes", np.array(list(numbers), np.int64))


# --- a sum and its norm


def _norm(node: ir.Node) -> Found | None:
    """The norm that the node is, or the root of."""
    if node.op_type in ("Sqrt", "Pow") and node.domain == "":
        found = rms_norm(node)
        if found is None or found.weights or found.why:
            return found
        return dataclasses.replace(found, weights=(ones(found.source),))
    x = node.inputs[0] if node.op_type == "LayerNormalization" and node.domain == "" else None
    if x is None:
        return None
    weights = tuple(v for v in node.inputs[1:] if v is not None)
    return Found(node.op_type, node, x, {"epsilon": node.attributes.get_float("epsilon", 1e-5)}, weights)


def skip_norm(norm: Found) -> str | None:
    """Why a norm and the sum before it can't be one operator, empty if they can; None where there is no sum."""
    x = norm.source
    total = x.producer()
    if total is None or total.op_type != "Add" or total.domain != "":
        return None
    if norm.why:
        return norm.why
    if x.dtype != ir.DataType.FLOAT or x.shape is None or len(x.shape) != 3 or norm.root.attributes.get_int("axis", -1) not in (-1, 2):
        return "onnxruntime's operator takes float32 values of three axes, the last normalized"
    if _summands(total, x) is None:
        return "the two that are summed have other shapes"
    computed = any(isinstance(w, ir.Value) and constant(w) is None for w in norm.weights)
    if computed or any(o.uses() or o.is_graph_output() for o in norm.root.outputs[1:]):
        return "its scale or bias is computed, or its mean is read"
    return other_readers(norm.root, between(norm.root, (x,)))


def _summands(total: ir.Node, x: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """(a, b) of a + b, a of the sum's shape, b too or without its batch; None where they have other shapes."""
    one, other = total.inputs
    if one is not None and other is not None:
        for a, b in ((one, other), (other, one)):
            if constant(a) is None and _fits(a, x, 3) and (_fits(b, x, 3) or _fits(b, x, 2)):
                return a, b
    return None


def _fits(value: ir.Value, x: ir.Value, rank: int) -> bool:
    """Whether it has that many axes, of x's sizes; a batch that is known at run time only may go by two names."""
    if value.shape is None or x.shape is None or len(value.shape) != rank:
        return False
    pairs = list(zip(value.shape, x.shape[3 - rank :], strict=True))
    return all(a == b or (rank == 3 and i == 0 and not isinstance(a, int) and not isinstance(b, int)) for i, (a, b) in enumerate(pairs))


def _write_skip_norm(edit: Edit, norm: Found) -> None:
    total, old = norm.source, norm.root.outputs[0]
    add = total.producer()
    summands = _summands(add, total) if add is not None else None
    assert summands is not None
    inside = between(norm.root, (total,))
    read_again = total.is_graph_output() or any(use.node not in inside for use in total.uses())
    node = ir.node(
        SKIP[norm.operator],
        [*summands, *as_values(edit, norm)],
        {"epsilon": norm.attributes["epsilon"]},
        domain=DOMAIN,
        num_outputs=4 if read_again else 1,
        name=edit.unique(f"{norm.root.name}_skip"),
    )
    graph_of(norm.root).insert_before(norm.root, node)
    for output, of in ((node.outputs[0], old), *(((node.outputs[3], total),) if read_again else ())):
        output.name, output.type, output.shape = edit.unique(f"{of.name}_fused"), of.type, of.shape
        take_place(of, output)
    for unused in node.outputs[1:3]:
        unused.name = ""
