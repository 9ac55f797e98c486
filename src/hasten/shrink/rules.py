"""rules: how channels go through each operator. RULES is the whole list; what is not in it freezes the channels that reach it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from hasten.graph import constant
from hasten.shrink import moves
from hasten.shrink.sizes import Axis
from hasten.shrink.trace import FIXED, Axes, Rule, Trace, axes_of, because, given, inferred, is_weight, numbers, size_of, sizes_of


def elementwise(t: Trace, node: ir.Node) -> str | None:
    """Same positions in, same positions out."""
    inputs = [axes for value in node.inputs if (axes := t.of(value)) is not None]
    out = t.broadcast(inputs, because(node, FIXED))
    for value in node.outputs:
        t.put(value, out)
    return None


def conv(t: Trace, node: ir.Node) -> str | None:
    """W (out, in/g, kernel…). Depthwise: a channel in and its channels out are one. Other groups: the same channel of every group."""
    x, w, group = axes_of(t, node, 0), axes_of(t, node, 1), node.attributes.get_int("group", 1)
    for kernel in w[2:]:
        t.freeze(kernel, "")
    for spatial in x[2:]:
        t.freeze(spatial, because(node, "it slides along that axis"))
    source, made, inner = x[1], w[0], w[1]
    if group == 1:
        contract(t, node, source, inner)
    elif not isinstance(made, np.ndarray) or len(made) % group:
        t.freeze(source, because(node, "its grouped weights are computed"))
    elif not isinstance(inner, np.ndarray) and inner == 1:
        if isinstance(source, np.ndarray):
            t.equal(np.repeat(source, len(made) // group), made)
            t.mend("group", {0: source})
        else:
            t.freeze(made, because(node, "a channel of its own for each channel of fixed number"))
    else:
        t.summed(inner)
        t.together(made.reshape(group, -1).T)
        if isinstance(source, np.ndarray):
            by_group = source.reshape(group, -1)
            t.together(by_group.T)
            t.join(by_group[0], inner, "")
        else:
            t.freeze(inner, "")
    _layer_output(t, node, made, x)
    return None


def conv_transpose(t: Trace, node: ir.Node) -> str | None:
    """W (in, out/g, kernel…)."""
    x, w, group = axes_of(t, node, 0), axes_of(t, node, 1), node.attributes.get_int("group", 1)
    for kernel in w[2:]:
        t.freeze(kernel, "")
    for spatial in x[2:]:
        t.freeze(spatial, because(node, "it slides along that axis"))
    if group == 1:
        contract(t, node, x[1], w[0])
        _layer_output(t, node, w[1], x)
        return None
    if isinstance(w[1], np.ndarray) or not isinstance(x[1], np.ndarray):
        return "grouped, but not one channel a group"
    t.join(x[1], w[0], because(node, FIXED))
    t.mend("group", {0: x[1]})
    _layer_output(t, node, x[1], x)
    return None


def _layer_output(t: Trace, node: ir.Node, made: Axis, x: Axes) -> None:
    bias = t.of(given(node, 2))
    if bias is not None:
        made = t.join(made, bias[0], because(node, FIXED))
    t.put(node.outputs[0], [x[0], made, *sizes_of(node.outputs[0], 2, len(x))])


def gemm(t: Trace, node: ir.Node) -> str | None:
    a, b = axes_of(t, node, 0), axes_of(t, node, 1)
    a = a[::-1] if node.attributes.get_int("transA", 0) else a
    b = b[::-1] if node.attributes.get_int("transB", 0) else b
    contract(t, node, a[1], b[0])
    out: Axes = [a[0], b[1]]
    added = t.of(given(node, 2))
    t.put(node.outputs[0], out if added is None else t.broadcast([out, added], because(node, FIXED)))
    return None


def matmul(t: Trace, node: ir.Node) -> str | None:
    a, b = axes_of(t, node, 0), axes_of(t, node, 1)
    if len(a) < 2 or len(b) < 2:
        return "a vector"
    contract(t, node, a[-1], b[-2])
    batch = t.broadcast([a[:-2], b[:-2]], because(node, FIXED)) if len(a) > 2 or len(b) > 2 else []
    t.put(node.outputs[0], [*batch, a[-2], b[-1]])
    return None


def einsum(t: Trace, node: ir.Node) -> str | None:
    """Axes of one letter are one axis; a letter that is summed over needs no more."""
    left, arrow, right = (node.attributes.get_string("equation") or "").replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in left or any(len(set(term)) != len(term) for term in terms):
        return "an equation with dots, a diagonal, or no arrow"
    letters: dict[str, Axis] = {}
    for number, term in enumerate(terms):
        for letter, axis in zip(term, axes_of(t, node, number), strict=True):
            letters[letter] = t.join(letters[letter], axis, because(node, FIXED)) if letter in letters else axis
            if letter not in right and is_weight(node.inputs[number]):
                t.summed(axis)
    for letter, axis in letters.items():
        if letter not in right and not any(letter in term and is_weight(v) for term, v in zip(terms, node.inputs, strict=True)):
            t.mean_over(axis, because(node, INNER))
    t.put(node.outputs[0], [letters[letter] for letter in right])
    return None


GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrent(t: Trace, node: ir.Node) -> str | None:
    """X (T, N, in), W (D, gates · H, in), R (D, gates · H, H), B (D, 2 · gates · H), states (D, N, H): unit h in every gate."""
    if node.attributes.get_int("layout", 0):
        return "batch first"
    x, w, r, gates = axes_of(t, node, 0), axes_of(t, node, 1), axes_of(t, node, 2), GATES[node.op_type]
    contract(t, node, x[2], w[2])
    unit: Axis = r[2]
    if not isinstance(unit, np.ndarray):
        return "its weights are computed"
    why = because(node, FIXED)
    for index, axis, times in ((1, 1, gates), (2, 1, gates), (3, 1, 2 * gates), (5, 2, 1), (6, 2, 1), (7, 1, 3)):
        axes = t.of(given(node, index))
        if axes is not None:
            t.join(axes[axis], np.tile(unit, times), why)
    t.summed(unit)
    t.mend("hidden_size", {0: unit})
    directions = size_of(w[0])
    for number, value in enumerate(node.outputs):
        t.put(value, [x[0], directions, x[1], unit] if number == 0 else [directions, x[1], unit])
    for index in (1, 2, 3, 5, 6, 7):
        for direction in (t.of(given(node, index)) or [1])[:1]:
            t.freeze(direction, "")
    return None


INNER = "a sum over them of what is computed (as queries times keys), with no weight that could be zero"


def contract(t: Trace, node: ir.Node, x: Axis, w: Axis) -> None:
    """x's axis is summed against w's. Where x is fixed, w is too: that is how it is."""
    for axis, value in ((x, node.inputs[0]), (w, node.inputs[1])):
        if is_weight(value):
            t.summed(axis)
    if not any(is_weight(value) for value in node.inputs[:2]):
        t.mean_over(x, because(node, INNER))
    t.join(x, w, because(node, "what it is multiplied with is computed, or of fixed size") if isinstance(x, np.ndarray) else "")


def norm_per_channel(t: Trace, node: ir.Node) -> str | None:
    """BatchNormalization, InstanceNormalization: vectors along axis 1."""
    x = axes_of(t, node, 0)
    channel = x[1]
    for number in range(1, len(node.inputs)):
        channel = t.join(channel, axes_of(t, node, number)[0], because(node, FIXED))
    if node.op_type == "InstanceNormalization":
        for axis in x[2:]:
            t.mean_over(axis, because(node, "a mean over the channels"))
    t.put(node.outputs[0], [x[0], channel, *x[2:]])
    return None


def layer_norm(t: Trace, node: ir.Node) -> str | None:
    """Normalises over the axes from `axis` on, together."""
    x = axes_of(t, node, 0)
    start = node.attributes.get_int("axis", -1) % len(x)
    for axis in x[start:]:
        t.mean_over(axis, because(node, "its mean and variance then run over fewer channels"))
    extra = [axes for value in node.inputs[1:] if (axes := t.of(value)) is not None]
    t.put(node.outputs[0], t.broadcast([x, *extra], because(node, FIXED)))
    return None


def group_norm(t: Trace, node: ir.Node) -> str | None:
    """Whole groups go."""
    x, groups = axes_of(t, node, 0), node.attributes.get_int("num_groups", 1)
    channel = x[1]
    for number in (1, 2):
        channel = t.join(channel, axes_of(t, node, number)[0], because(node, FIXED))
    if isinstance(channel, np.ndarray):
        rows = channel.reshape(groups, -1)
        t.together(rows)
        t.mend("num_groups", {0: rows[:, 0]})
    for axis in x[2:]:
        t.mean_over(axis, because(node, "a mean over the channels"))
    t.put(node.outputs[0], [x[0], channel, *x[2:]])
    return None


def pool(t: Trace, node: ir.Node) -> str | None:
    x = axes_of(t, node, 0)
    for axis in x[2:]:
        t.freeze(axis, because(node, "it slides along that axis"))
    for value in node.outputs:
        t.put(value, [x[0], x[1], *([1] * (len(x) - 2) if node.op_type.startswith("Global") else sizes_of(value, 2, len(x)))])
    return None


def resize(t: Trace, node: ir.Node) -> str | None:
    x, known = axes_of(t, node, 0), sizes_of(node.outputs[0], 0, len(axes_of(t, node, 0)))
    named = [a % len(x) for a in node.attributes.get_ints("axes", tuple(range(len(x)))) or ()]
    scales, sizes = constant(given(node, 2)), t.sizes.of(given(node, 3))
    for index in (1, 2):
        for axis in t.of(given(node, index)) or []:
            t.freeze(axis, "")  # a number for each axis, no channels
    out: Axes = list(known)
    for number, axis in enumerate(x):
        if number not in named:
            out[number] = axis
            continue
        entry = named.index(number)
        if not isinstance(axis, np.ndarray):
            continue
        if scales is not None and scales.size and scales.reshape(-1)[entry] == 1:
            out[number] = axis
        elif sizes is not None and size_of(sizes[entry]) == len(axis):
            t.mend(3, {entry: axis})
            out[number] = axis
        else:
            t.freeze(axis, because(node, "it resizes that axis, or the size there is computed"))
    t.put(node.outputs[0], out)
    return None


def softmax(t: Trace, node: ir.Node) -> str | None:
    """Normalised over the axis: nothing of it goes."""
    x = axes_of(t, node, 0)
    t.freeze(x[node.attributes.get_int("axis", -1) % len(x)], because(node, "it normalises over these channels"))
    t.put(node.outputs[0], x)
    return None


def along(t: Trace, node: ir.Node) -> str | None:
    """Operators that tell the positions of one axis from each other (ArgMax, TopK, CumSum, …)."""
    x = axes_of(t, node, 0)
    named = numbers(node, 1) if node.op_type == "CumSum" else None
    axis = named[0] if named else node.attributes.get_int("axis", -1 if node.op_type == "TopK" else 0)
    t.freeze(x[axis % len(x)], because(node, "it goes along these channels"))
    for value in node.outputs:
        known = inferred(value)
        kept = [a for i, a in enumerate(x) if i != axis % len(x)]
        if known is not None and len(known) == len(x):
            kept.insert(axis % len(x), known[axis % len(x)])
        t.put(value, kept)
    return None


def reduce(t: Trace, node: ir.Node) -> str | None:
    x = axes_of(t, node, 0)
    named = numbers(node, 1)
    if given(node, 1) is not None and named is None:
        return "its axes are computed"
    named = named or list(node.attributes.get_ints("axes", ()) or ())
    if not named and node.attributes.get_int("noop_with_empty_axes"):
        t.put(node.outputs[0], x)
        return None
    gone = {a % len(x) for a in named} or set(range(len(x)))
    for number in gone:
        t.mean_over(x[number], because(node, "it runs over fewer channels"))
    keepdims = node.attributes.get_int("keepdims", 1)
    t.put(node.outputs[0], [1 if i in gone else a for i, a in enumerate(x) if i not in gone or keepdims])
    return None


def quantize(t: Trace, node: ir.Node) -> str | None:
    """One scale for all, or one for each position of an axis."""
    if node.attributes.get_int("block_size", 0):
        return "its scales are of blocks"
    x = list(axes_of(t, node, 0))
    for index in (1, 2):
        vector = t.of(given(node, index))
        if vector and not (not isinstance(vector[0], np.ndarray) and vector[0] == 1):
            at = node.attributes.get_int("axis", 1) % len(x)
            x[at] = t.join(x[at], vector[0], because(node, FIXED))
    t.put(node.outputs[0], x)
    return None


ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div "
    "Dropout Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean "
    "Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Sub Sum Tan Tanh "
    "ThresholdedRelu Where Xor"
).split()

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, elementwise),
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
    "BatchNormalization": norm_per_channel,
    "InstanceNormalization": norm_per_channel,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "AveragePool": pool,
    "MaxPool": pool,
    "LpPool": pool,
    "GlobalAveragePool": pool,
    "GlobalMaxPool": pool,
    "GlobalLpPool": pool,
    "Resize": resize,
    "Softmax": softmax,
    "LogSoftmax": softmax,
    "Hardmax": softmax,
    "ArgMax": along,
    "ArgMin": along,
    "TopK": along,
    "CumSum": along,
    "ReduceL1": reduce,
    "ReduceL2": reduce,
    "ReduceLogSum": reduce,
    "ReduceLogSumExp": reduce,
    "ReduceMax": reduce,
    "ReduceMean": reduce,
    "ReduceMin": reduce,
    "ReduceProd": reduce,
    "ReduceSum": reduce,
    "ReduceSumSquare": reduce,
    "Transpose": moves.transpose,
    "Squeeze": moves.squeeze,
    "Unsqueeze": moves.unsqueeze,
    "Concat": moves.concat,
    "Split": moves.split,
    "Slice": moves.slice_,
    "Pad": moves.pad,
    "Expand": moves.expand,
    "Tile": moves.tile,
    "Gather": moves.gather,
    "ConstantOfShape": moves.constant_of_shape,
    "Flatten": moves.flatten,
    "Reshape": moves.reshape,
    "DepthToSpace": moves.depth_to_space,
    "SpaceToDepth": moves.space_to_depth,
    "QuantizeLinear": quantize,
    "DequantizeLinear": quantize,
    "Shape": moves.shape_of,
    "Size": moves.shape_of,
}
"""Operator → rule. What is not here freezes the channels that reach it."""
