"""fuse_operators: what an exporter wrote out in small operators becomes one of ONNX's own. Effect: rounding.

LayerNormalization: γ (x − μ) / √(σ² + ε) + β over the last axis (Ba et al., arXiv 1607.06450), also as x·s + (β − μ·s) with s = γ / √(σ² + ε).
Gelu: 0.5 x (1 + erf(x/√2)), or with tanh(√(2/π)(x + 0.044715 x³)) (Hendrycks and Gimpel, arXiv 1606.08415).
HardSigmoid: clip(x + 3, 0, 6) / 6, and other slopes; HardSwish: x times that (Howard et al., arXiv 1905.02244).
Softplus: log(1 + eˣ), which as one operator does not overflow; Mish: x tanh(softplus(x)) (Misra, arXiv 1908.08681).

RMSNormalization: γ x / √(mean(x²) + ε) over the last axis (Zhang and Sennrich, arXiv 1910.07467). Opset 21 has no operator for it, so it is spelled
as Pow, ReduceMean, Add, Sqrt, Div, Mul: in this form onnxruntime and OpenVINO make one operator of it while they load the model. They do not
in each that exporters write: onnxruntime passes over x · x, over Reciprocal, which is torch's rsqrt, and over a norm without a scale, which stays so.

The order of factors and addends does not matter, nor does the place of a constant (see `polynomial`). SiLU, x·sigmoid(x), stays: opset 21 has no
operator for it.

A pattern must stand in one graph as a whole; branches, loops' bodies and local functions are such graphs. A function's values have no shapes: there
the activations are fused whose numbers say that all is float32, and norms, whose last axis nobody knows, stay.

When: for exports of an older opset, or of a framework that wrote its activations by hand; other techniques then see the layer that was meant.
Cost: nothing at run time; no data. onnxruntime finds most of these patterns itself when it loads a model, so there it is no faster (MiniLM: 1.00 to
1.02 of its speed). With RMS normalization it is, a little: a Llama of 260,000 weights ran at 1.07 of its speed with 16 tokens and at 1.03 with
128, layers of 256 channels from torch's exporter at 1.00 to 1.03 with 128 (one thread, CPU time; the same model twice: 0.99 to 1.00).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, begin, constant, may_rewrite, scalar, settle, sole_consumer, take_place
from hasten.model import Model, Skip, Step
from hasten.passes.polynomial import PRODUCTS, Terms, alike, factors, origins, results, terms
from hasten.rewrite import Edit, graph_of, keeps_shape, made_by, plain
from hasten.task import BoundTask


@dataclasses.dataclass(frozen=True)
class FuseOperators:
    """No settings."""


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
    """One operator in place of several. `root` writes the result, `source` is the only computed value that goes in.

    weights: further inputs, constants of the graph or new ones. why: what forbids it all the same, empty if nothing does.
    """

    operator: str
    root: ir.Node
    source: ir.Value
    attributes: Mapping[str, float | int | str] = dataclasses.field(default_factory=dict)
    weights: tuple[ir.Value | Array, ...] = ()
    why: str = ""


def fuse_operators(model: Model, settings: FuseOperators, task: BoundTask | None) -> Model:
    """Replace each pattern of PATTERNS that stands in one graph; one that may not be replaced is skipped with the reason."""
    edited = begin(model)
    edit = Edit(edited)
    skipped: dict[str, Skip] = {}
    changed = 0
    for kinds, pattern in PATTERNS:
        for node in [n for n in edit.nodes() if n.op_type in kinds and plain(n)]:
            found = pattern(node) if node.graph is not None else None
            if found is None:
                continue
            name = found.root.name or found.operator
            inside = between(found.root, (found.source,))
            if why := found.why or refusal(found, inside):
                skipped.setdefault(name, Skip(name, f"{found.operator}: {why}"))
                continue
            if not may_rewrite(found.root):
                continue
            skipped.pop(name, None)
            _replace(edit, found, inside)
            changed += 1
    if changed:
        settle(edited)
    return model.then(edited, Step("fuse_operators", dataclasses.asdict(settings), changed, tuple(skipped.values())))


def between(root: ir.Node, sources: Iterable[ir.Value]) -> set[ir.Node]:
    """The nodes that compute the root's output from `sources`, the root among them."""
    todo, found, stop = [root], set(), set(sources)
    while todo:
        node = todo.pop()
        found.add(node)
        before = [v.producer() for v in node.inputs if v is not None and v not in stop and constant(v) is None]
        todo += [n for n in before if n is not None and n not in found]
    return found


def refusal(found: Found, inside: set[ir.Node]) -> str:
    """Why what was found can't be replaced, empty if it can."""
    source, output = found.source, found.root.outputs[0]
    arrays = [array for node in inside for v in node.inputs if (array := constant(v)) is not None]
    # What is added to or multiplied with a number has its type, and the shape that it had: this alone is known in a function.
    dtype = source.dtype or next((ir.DataType.from_numpy(array.dtype) for array in arrays), None)
    if dtype != ir.DataType.FLOAT:
        return f"its values are {'of unknown type' if dtype is None else dtype.name.lower()}, not float32"
    if source.shape is None or output.shape is None:
        if any(array.ndim for array in arrays):
            return "its constants may make the result another shape than what goes in: the shapes are unknown"
    elif len(source.shape) != len(output.shape):
        return "its constants make the result another shape than what goes in"
    return other_readers(found.root, inside)


def other_readers(root: ir.Node, inside: set[ir.Node]) -> str:
    """Which value inside of what would be one node is read or computed outside, empty if none is."""
    for node in inside - {root}:
        if node.graph is not root.graph:
            return f"{node.outputs[0].name}, computed on the way, stands in another graph"
        for value in node.outputs:
            if value.is_graph_output() or any(use.node not in inside for use in value.uses()):
                return f"{value.name}, computed on the way, has other readers"
    return ""


def _replace(edit: Edit, found: Found, inside: set[ir.Node]) -> None:
    graph, old = graph_of(found.root), found.root.outputs[0]
    weights = as_values(edit, found)
    name = edit.unique(f"{found.root.name}_{found.operator}")
    if found.operator == "RMSNormalization":
        nodes = _spelled(edit, found, weights, name)
    else:
        nodes = [ir.node(found.operator, [found.source, *weights], found.attributes, name=name)]
    new = nodes[-1].outputs[0]
    new.name, new.type, new.shape = edit.unique(f"{old.name}_fused"), old.type, old.shape
    graph.insert_after(found.root, nodes)
    take_place(old, new)
    graph.remove(inside, safe=True)


def as_values(edit: Edit, found: Found) -> list[ir.Value]:
    """The further inputs, those that are new made constants of the graph."""
    return [w if isinstance(w, ir.Value) else edit.weight(found.root, f"{found.root.name}_weight", w) for w in found.weights]


def _spelled(edit: Edit, found: Found, weights: list[ir.Value], name: str) -> list[ir.Node]:
    """RMS normalization in the nodes that runtimes know it by: γ · (x / √(mean(x²) + ε))."""
    two, last = edit.weight(found.root, "two", np.array(2, np.float32)), edit.weight(found.root, "last", np.array([-1]))
    epsilon = edit.weight(found.root, "epsilon", np.array(found.attributes["epsilon"], np.float32))
    nodes = [ir.node("Pow", [found.source, two])]
    for operator, behind in (("ReduceMean", [last]), ("Add", [epsilon]), ("Sqrt", [])):
        nodes.append(ir.node(operator, [nodes[-1].outputs[0], *behind]))
    nodes.append(ir.node("Div", [found.source, nodes[-1].outputs[0]]))
    nodes += [ir.node("Mul", [nodes[-1].outputs[0], scale]) for scale in weights]
    for node in nodes:
        node.name = edit.unique(f"{name}_{node.op_type.lower()}")
        node.outputs[0].name = edit.unique(f"{node.name}_value")
    return nodes


# --- activations. Each takes the node that is no arithmetic, T, finds x before it, and looks for the right polynomial of x and T behind it.


def gelu(node: ir.Node) -> Found | None:
    """0.5·x·(1 + T), T = erf(x/√2) or tanh(√(2/π)(x + 0.044715 x³))."""
    slope = math.sqrt(2 / math.pi)
    forms: dict[str, tuple[Terms, str]] = {
        "Erf": ({(1,): math.sqrt(0.5)}, "none"),
        "Tanh": ({(1,): slope, (3,): 0.044715 * slope}, "tanh"),
    }
    wanted, approximate = forms[node.op_type]
    for x in origins(node.inputs[0]):
        if alike(terms(node.inputs[0], (x,)), wanted) and (root := _result(x, node, {(1, 0): 0.5, (1, 1): 0.5})):
            return Found("Gelu", root, x, {"approximate": approximate})
    return None


def softplus(node: ir.Node) -> Found | None:
    """log(1 + T), T = eˣ."""
    total = node.inputs[0].producer() if node.inputs[0] is not None else None
    for exp in [v.producer() for v in total.inputs if v is not None] if total is not None else []:
        if exp is not None and exp.op_type == "Exp" and alike(terms(node.inputs[0], (exp.outputs[0],)), {(0,): 1.0, (1,): 1.0}):
            assert exp.inputs[0] is not None
            return Found("Softplus", node, exp.inputs[0])
    return None


def mish(node: ir.Node) -> Found | None:
    """x·T, T = tanh(softplus(x))."""
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    if before is None or before.op_type != "Softplus" or before.inputs[0] is None:
        return None
    root = _result(before.inputs[0], node, {(1, 1): 1.0})
    return None if root is None else Found("Mish", root, before.inputs[0])


def hard_swish(node: ir.Node) -> Found | None:
    """x·T/6, T = clip(x + 3, 0, 6); or x·T with T such a HardSigmoid."""
    if node.op_type == "HardSigmoid":
        slope, shift = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
        if not alike({(0,): shift, (1,): slope}, {(0,): 0.5, (1,): 1 / 6}) or node.inputs[0] is None:
            return None
        root = _result(node.inputs[0], node, {(1, 1): 1.0})
        return None if root is None else Found("HardSwish", root, node.inputs[0])
    for x, slope, shift, top in _clipped(node):
        if alike({(0,): shift / top, (1,): slope / top}, {(0,): 0.5, (1,): 1 / 6}) and (root := _result(x, node, {(1, 1): 1 / top})):
            return Found("HardSwish", root, x)
    return None


def hard_sigmoid(node: ir.Node) -> Found | None:
    """T/m, T = clip(a·x + b, 0, m) with b ≠ 0: max(0, min(1, α·x + β)) with α = a/m and β = b/m."""
    found = [
        Found("HardSigmoid", root, x, {"alpha": slope / top, "beta": shift / top})
        for x, slope, shift, top in _clipped(node)
        if shift != 0 and (root := _result(x, node, {(0, 1): 1 / top}))
    ]
    return _farthest(found)


def _farthest(found: Sequence[Found]) -> Found | None:
    """The last one takes the most operators along; a nearer one will do where what lies between is read elsewhere."""
    free = [f for f in found if not other_readers(f.root, between(f.root, (f.source,)))]
    return (free or found)[-1] if found else None


def _clipped(node: ir.Node) -> Iterable[tuple[ir.Value, float, float, float]]:
    """(x, a, b, m) where the node is clip(a·x + b, 0, m)."""
    low, high = (scalar(node.inputs[i]) if len(node.inputs) > i else None for i in (1, 2))
    if low != 0 or high is None or high <= 0:
        return
    for x in origins(node.inputs[0]):
        line = terms(node.inputs[0], (x,))
        if line is not None and x is not node.inputs[0] and max(e for (e,) in line) == 1:
            yield x, line.get((1,), 0.0), line.get((0,), 0.0), high


def _result(x: ir.Value, node: ir.Node, wanted: Terms) -> ir.Node | None:
    """The node that computes the polynomial `wanted` of x and the node's output."""
    return next((root for root in results(node.outputs[0]) if alike(terms(root.outputs[0], (x, node.outputs[0])), wanted)), None)


# --- normalization


def layer_norm(node: ir.Node) -> Found | None:
    """From √(σ² + ε) or its inverse back to x, and on to the scale and the bias."""
    under = _root(node)
    if under is None:
        return None
    difference, axes, epsilon, inverse = under
    x, mean = _centred(difference)
    if x is None or mean is None:
        return None
    scaled = _by_difference(node.outputs[0], inverse, x, mean) or _by_scale(node.outputs[0], inverse, x, mean)
    if scaled is None:
        return None
    root, scale, bias = scaled
    if why := _norm_refusal(x, (axes, _mean(mean)[1]), epsilon):
        return Found("LayerNormalization", root, x, why=why)
    vectors = tuple(v for v in (ones(x) if scale is None else _vector(scale), _vector(bias)) if v is not None)
    return Found("LayerNormalization", root, x, {"axis": -1, "epsilon": epsilon}, vectors)


def rms_norm(node: ir.Node) -> Found | None:
    """From √(mean(x²) + ε) or its inverse on through products, in whatever order x and γ stand in them."""
    under = _root(node)
    if under is None or _centred(under[0])[0] is not None:
        return None
    x, axes, epsilon, inverse = under
    deviation = node.outputs[0]
    wanted = {x: 1, deviation: 1 if inverse else -1}
    attributes, why = {"axis": -1, "epsilon": epsilon}, _norm_refusal(x, (axes,), epsilon)
    found = []
    for last in results(deviation, PRODUCTS):
        powers = factors(last.outputs[0], tuple(wanted)) or {}
        scale = _scale({v: e for v, e in powers.items() if v not in wanted}, x)
        if scale is not None and wanted.items() <= powers.items():
            found.append(Found("RMSNormalization", last, x, attributes, scale, why))
    return _farthest(found)


def misspelled_rms_norm(node: ir.Node) -> Found | None:
    """An RMS normalization that runtimes do not know by its form."""
    found = rms_norm(node)
    return None if found is None or (not found.why and _is_spelled(found)) else found


def ends_rms_norm(node: ir.Node) -> bool:
    """Whether the node is the last of an RMS normalization that is spelled as runtimes know it, with a scale."""
    quotients = [quotient for v in node.inputs if (quotient := made_by(v, "Div")) is not None]
    found = [rms_norm(root) for quotient in quotients if (root := made_by(quotient.inputs[1], "Sqrt")) is not None]
    return any(f is not None and f.root is node and not f.why and _is_spelled(f) for f in found)


def _is_spelled(found: Found) -> bool:
    """Whether an RMS normalization stands there as `_spelled` writes it."""
    inside = between(found.root, (found.source,))
    wanted = ["Add", "Div", "Pow", "ReduceMean", "Sqrt", *("Mul" for _ in found.weights)]
    divided = [n.inputs[0] for n in inside if n.op_type == "Div" and made_by(n.inputs[1], "Sqrt")]
    vectors = all(isinstance(w, ir.Value) for w in found.weights)
    return sorted(n.op_type for n in inside) == sorted(wanted) and divided == [found.source] and vectors


def _scale(powers: Mapping[ir.Value, int], x: ir.Value) -> tuple[ir.Value | Array, ...] | None:
    """The product of constants as one number for each element of x's last axis; () where it is 1, None where it has another shape."""
    match [*powers.items()]:
        case [(value, 1)] if _is_vector(value, x) and (vector := _vector(value)) is not None:
            return (vector,)
    product: Array = np.ones(())
    for value, exponent in powers.items():
        product = product * np.asarray(constant(value), np.float64) ** exponent
    if product.size == np.sum(product == 1) == 1:
        return ()
    if x.shape is None or not isinstance(x.shape[-1], int) or not keeps_shape(x, product) or product.size != (1, *product.shape)[-1]:
        return None
    return (ones(x) * product.ravel().astype(np.float32),)


def _root(node: ir.Node) -> tuple[ir.Value, Array, float, bool] | None:
    """(v, axes, ε, whether it is the inverse) where the node computes √(mean(v²) + ε) or its inverse."""
    exponent = 0.5 if node.op_type == "Sqrt" else scalar(node.inputs[1])
    if exponent not in (0.5, -0.5):
        return None
    mean, epsilon = _plus_number(node.inputs[0])
    squares, axes = _mean(mean)
    value = _squared(squares)
    return None if value is None or axes is None else (value, axes, epsilon, exponent < 0)


def _centred(difference: ir.Value) -> tuple[ir.Value | None, ir.Value | None]:
    """(x, μ) where the value is x − μ, μ a mean of x."""
    x, mean = _operands(difference, "Sub")
    over, axes = _mean(mean)
    return (x, mean) if over is x and axes is not None else (None, None)


def _norm_refusal(x: ir.Value, means: Iterable[Array | None], epsilon: float) -> str:
    """Why a norm of x with means over these axes is none over the last axis, empty if it is one."""
    if x.shape is None or not isinstance(x.shape[-1], int):
        return "the size of its last axis is unknown"
    for axes in means:
        if axes is None or [int(a) % len(x.shape) for a in axes] != [len(x.shape) - 1]:
            return f"it is computed over axes {[] if axes is None else axes.tolist()}, here only the last is meant"
    return "" if epsilon > 0 else f"ε is {epsilon:g}, which must be positive"


def ones(x: ir.Value) -> Array:
    """A scale that changes nothing, for each element of x's last axis, whose size is known."""
    assert x.shape is not None
    return np.ones(int(x.shape[-1]), np.float32)  # type: ignore[arg-type]


def _by_difference(
    deviation: ir.Value, inverse: bool, x: ir.Value, mean: ir.Value
) -> tuple[ir.Node, ir.Value | None, ir.Value | None] | None:
    """(x − μ) / √…, times γ if there is one, plus β if there is one: the last of these nodes, γ, β."""
    for use in deviation.uses():
        node = use.node
        one, other = _two(node)
        if node.domain != "":
            continue
        if not inverse and (node.op_type == "Reciprocal" or (node.op_type == "Div" and scalar(one) == 1 and other is deviation)):
            return _by_difference(node.outputs[0], True, x, mean)
        divides = node.op_type == "Div" and not inverse and other is deviation
        multiplies = node.op_type == "Mul" and inverse
        numerator = one if divides or other is deviation else other
        if (divides or multiplies) and _operands(numerator, "Sub") == (x, mean):
            node, scale = _then(node, "Mul", x)
            node, bias = _then(node, "Add", x)
            return node, scale, bias
    return None


def _by_scale(deviation: ir.Value, inverse: bool, x: ir.Value, mean: ir.Value) -> tuple[ir.Node, ir.Value | None, ir.Value | None] | None:
    """x·s + (β − μ·s), s = γ / √… (TensorFlow writes it so), without γ or β too."""
    for use in deviation.uses():
        node = use.node
        one, other = _two(node)
        if not inverse and (node.op_type == "Reciprocal" or (node.op_type == "Div" and scalar(one) == 1 and other is deviation)):
            return _by_scale(node.outputs[0], True, x, mean)
    if not inverse:
        return None
    for scale, s in [(None, deviation), *((v, n.outputs[0]) for n, v in _times_vector(deviation, x))]:
        products = {p: n for n in _readers(s, "Mul") for p in _two(n) if p is x or p is mean}
        if x not in products or mean not in products:
            continue
        for root in _readers(products[x].outputs[0], "Add", "Sub"):
            one, other = _two(root)
            subtracted = products[mean].outputs[0]
            if root.op_type == "Sub" and (one, other) == (products[x].outputs[0], subtracted):
                return root, scale, None
            rest = other if one is products[x].outputs[0] else one
            bias, taken = _operands(rest, "Sub")
            if root.op_type == "Add" and taken is subtracted and _is_vector(bias, x):
                return root, scale, bias
    return None


def _then(node: ir.Node, operator: str, x: ir.Value) -> tuple[ir.Node, ir.Value | None]:
    """The node's only reader where it is that operator with a constant of one number for each element of the last axis; else the node."""
    reader = sole_consumer(node.outputs[0])
    if reader is None or reader.op_type != operator or reader.domain != "":
        return node, None
    vector = next((v for v in reader.inputs if v is not node.outputs[0] and _is_vector(v, x)), None)
    return (node, None) if vector is None else (reader, vector)


def _times_vector(value: ir.Value, x: ir.Value) -> list[tuple[ir.Node, ir.Value]]:
    return [(n, v) for n in _readers(value, "Mul") for v in _two(n) if v is not None and v is not value and _is_vector(v, x)]


def _is_vector(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether a constant holds one number for each element of x's last axis."""
    array = constant(value)
    if array is None or x.shape is None or array.ndim == 0 or array.ndim > len(x.shape):
        return False
    return array.size == array.shape[-1] == x.shape[-1] and array.dtype == np.float32


def _vector(value: ir.Value | None) -> ir.Value | Array | None:
    """A constant as a vector: the graph's own where it is one."""
    array = constant(value)
    return value if array is None or array.ndim == 1 else array.ravel()


def _plus_number(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """v and c of v + c."""
    one, other = _operands(value, "Add")
    number = scalar(other)
    if number is None:
        one, number = other, scalar(one)
    return (one, number) if number is not None else (None, 0.0)


def _mean(value: ir.Value | None) -> tuple[ir.Value | None, Array | None]:
    """What a mean with kept axes is computed of, and the axes."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "ReduceMean" or not plain(node) or node.attributes.get_int("keepdims", 1) != 1:
        return None, None
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return node.inputs[0], axes if axes is None else axes.ravel()


def _squared(value: ir.Value | None) -> ir.Value | None:
    """v of v² or v·v."""
    power, exponent = _operands(value, "Pow")
    if power is not None and scalar(exponent) == 2:
        return power
    one, other = _operands(value, "Mul")
    return one if one is other else None


def _operands(value: ir.Value | None, operator: str) -> tuple[ir.Value | None, ir.Value | None]:
    """Both inputs of the operator that makes the value, (None, None) where another does."""
    node = value.producer() if value is not None else None
    return _two(node) if node is not None and node.op_type == operator and node.domain == "" else (None, None)


def _two(node: ir.Node) -> tuple[ir.Value | None, ir.Value | None]:
    return (node.inputs[0], node.inputs[1]) if len(node.inputs) == 2 else (None, None)


def _readers(value: ir.Value, *kinds: str) -> list[ir.Node]:
    return [use.node for use in value.uses() if use.node.op_type in kinds and use.node.domain == ""]


PATTERNS: tuple[tuple[tuple[str, ...], Callable[[ir.Node], Found | None]], ...] = (
    (("Sqrt", "Pow"), layer_norm),
    (("Sqrt", "Pow"), misspelled_rms_norm),
    (("Erf", "Tanh"), gelu),
    (("Log",), softplus),
    (("Tanh",), mish),
    (("Clip", "HardSigmoid"), hard_swish),
    (("Clip",), hard_sigmoid),
)
"""In this order: the operators that a pattern is looked for at, and the pattern. HardSwish stands before the HardSigmoid that is in it."""
