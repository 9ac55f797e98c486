"""Our vocabulary over onnx_ir: constants, new weights with names of their own, finishing an edit."""

from __future__ import annotations

import contextlib
import contextvars
import copy
import dataclasses
import functools
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

from hasten.model import OPSET, Model, Skip, Step, all_graphs, all_nodes, subgraphs
from hasten.shapes import better, infer, infer_missing

Array = NDArray[Any]


@dataclasses.dataclass(eq=False)
class Rewrites:
    """What a pass did: names of the nodes that it rewrote at, in order; `refused`: nodes at which it must not."""

    refused: Collection[str] = ()
    done: list[str] = dataclasses.field(default_factory=list)


_rewrites: contextvars.ContextVar[Rewrites | None] = contextvars.ContextVar("rewrites", default=None)


@contextlib.contextmanager
def rewrites(refused: Collection[str] = ()) -> Iterator[Rewrites]:
    """Within this block passes leave the nodes of these names alone, and what they do is listed: so a wrong rewrite can be found by bisection."""
    found = Rewrites(refused)
    token = _rewrites.set(found)
    try:
        yield found
    finally:
        _rewrites.reset(token)


def may_rewrite(node: ir.Node) -> bool:
    """Asked by a pass at each node that it is about to rewrite at, once it is sure that it would."""
    if must_leave(node):
        return False
    rewrote(node.name or "")
    return True


def must_leave(node: ir.Node) -> bool:
    """For a pass that knows only afterwards whether it rewrites at a node: whether it must not; else it says `rewrote`."""
    here = _rewrites.get()
    return here is not None and node.name in here.refused


def rewrote(name: str) -> None:
    """A pass rewrote at the node of this name."""
    here = _rewrites.get()
    if here is not None:
        here.done.append(name)


def apply_rules(edited: ir.Model, rules: Any, where: Callable[[ir.Node], bool]) -> int:
    """Apply an onnxscript RewriteRuleSet, whose rules ask `may_rewrite` before they change something; how many did.

    where: a look at a node that costs less than a match, and tells most nodes at which there can be none.
    """
    from onnxscript.rewriter import RewriteRuleSet

    bodies: list[ir.Graph | ir.Function] = [edited.graph, *edited.functions.values()]
    if not any(where(node) for body in bodies for node in all_nodes(body)):
        return 0

    def asked(rule: Any) -> Any:
        made, attempt = copy.copy(rule), rule.try_rewrite

        def try_rewrite(model: ir.Model, graph: ir.Graph | ir.Function, node: ir.Node, **more: Any) -> Any:
            delta = attempt(model, graph, node, **more) if where(node) else None
            return delta if delta is not None and may_rewrite(node) else None

        made.try_rewrite = try_rewrite
        return made

    return int(RewriteRuleSet([asked(rule) for rule in rules]).apply_to_model(edited))


def constant(value: ir.Value | None) -> Array | None:
    """The value's array where it is a constant (an initializer, or a Constant node's output), else None. Read-only."""
    if value is None or value.is_graph_input():
        return None
    tensor = value.const_value if value.is_initializer() else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number that a constant of one element holds, else None."""
    array = constant(value)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads the value, None if there are several or the graph's output does."""
    uses = tuple(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


_taken: weakref.WeakKeyDictionary[ir.Graph, set[str | None]] = weakref.WeakKeyDictionary()


def names_in(graphs: Iterable[ir.Graph]) -> set[str | None]:
    """The names of the values and nodes of these graphs."""
    names: set[str | None] = set()
    for graph in graphs:
        names |= {v.name for v in graph.inputs} | set(graph.initializers)
        for node in graph:
            names |= {node.name, *(o.name for o in node.outputs)}
    return names


def unique_name(graph: ir.Graph, wish: str) -> str:
    """`wish`, or `wish_1`, `wish_2` … : a name that no value and no node of the graph or of one inside of it has, and none that was given out before.

    For the main graph. What works inside of others, which must not take a name from around them, asks `rewrite.Edit`.
    """
    if graph not in _taken:
        _taken[graph] = names_in([graph, *(inner for node in all_nodes(graph) for inner in subgraphs(node))])
    taken = _taken[graph]
    name, number = wish, 0
    while name in taken or name in graph.initializers:
        number += 1
        name = f"{wish}_{number}"
    taken.add(name)
    return name


def add_weight(graph: ir.Graph, wish: str, array: Array) -> ir.Value:
    """A new initializer with a name of its own; its array becomes read-only."""
    array = np.array(array)
    array.flags.writeable = False
    name = unique_name(graph, wish)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.DataType.from_numpy(array.dtype)))
    value.const_value = ir.Tensor(array, name=name)
    graph.register_initializer(value)
    return value


def take_place(old: ir.Value, new: ir.Value) -> None:
    """Let `new`, which holds the same, be read wherever `old` is, with what is known of either's shape.

    Where `old` was an output of the graph, `new` takes its name too, and the shape that the graph promises. It must not be an output already.
    """
    output = old.is_graph_output()
    if not (new.is_graph_input() or new.is_initializer()):
        new.shape = better(old.shape, new.shape) if output else better(new.shape, old.shape)
    if new.type is None:
        new.type = old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    if output:
        name, old.name = old.name, None
        new.name = name


def remove_unused(edited: ir.Model) -> None:
    """Remove nodes and initializers that nothing reads, until there are none. What a removed subgraph read counts as unread."""
    removed = True
    while removed:
        RemoveUnusedNodesPass()(edited)
        removed = False
        graphs = dict.fromkeys(all_graphs(edited))
        for graph in graphs:
            for node in graph:
                if node.op_type == "Loop" and len(node.inputs) < 2:
                    node.resize_inputs(2)  # a condition may be left empty but must be there, also where no value is carried behind it
            for value in [*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs)]:
                for reader, index in [use for use in value.uses() if use.node.graph not in graphs]:
                    reader.replace_input_with(index, None)
                    removed = True
                if value.is_initializer() and not value.uses() and not value.is_graph_input() and not value.is_graph_output():
                    del graph.initializers[value.name or ""]


def begin(model: Model) -> ir.Model:
    """What a pass works on: `model.edit()`, without what nothing reads."""
    edited = model.edit()
    bodies: list[ir.Graph | ir.Function] = [edited.graph, *edited.functions.values()]
    if any(_has_unused(body) for body in bodies):
        remove_unused(edited)
    return edited


def _has_unused(body: ir.Graph | ir.Function) -> bool:
    """Whether `remove_unused` would find something to do: nodes, weights, optional inputs and outputs that nothing reads."""
    initializers = body.initializers.values() if isinstance(body, ir.Graph) else ()
    if any(not v.uses() and not v.is_graph_input() and not v.is_graph_output() for v in initializers):
        return True
    for node in all_nodes(body):
        read = [bool(o.uses()) or o.is_graph_output() for o in node.outputs]
        if not any(read) or (not all(read) and any(not read[i] and node.outputs[i].name for i in _optional_outputs(node) if i < len(read))):
            return True
        if node.inputs and node.inputs[-1] is None and not (node.op_type == "Loop" and len(node.inputs) == 2):
            return True
    return False


def lift_constants(edited: ir.Model) -> int:
    """Make initializers of the Constant nodes; of how many."""
    constants = [node for node in all_nodes(edited.graph) if node.op_type == "Constant"]
    if constants:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(edited)
    return sum(node.graph is None for node in constants)


def _optional_outputs(node: ir.Node) -> frozenset[int]:
    return _optional(node.op_type) if node.domain == "" else frozenset()


@functools.cache
def _optional(operator: str) -> frozenset[int]:
    """Which outputs ONNX's operator need not have."""
    if not onnx.defs.has(operator, max_inclusive_version=OPSET, domain=""):
        return frozenset()
    outputs = onnx.defs.get_schema(operator, OPSET, domain="").outputs
    return frozenset(i for i, o in enumerate(outputs) if o.option == onnx.defs.OpSchema.FormalParameterOption.Optional)


def settle(edited: ir.Model) -> None:
    """After rewrites that keep what every value holds: what nothing reads is removed; shapes that are known stay, the others are inferred."""
    remove_unused(edited)
    infer_missing(edited)


def finish(model: Model, edited: ir.Model, settings: Any, name: str, changed: int, skipped: list[Skip]) -> Model:
    """The model after a technique: what nothing reads is removed, types and shapes are inferred again, the step is in the history."""
    remove_unused(edited)
    infer(edited)
    return model.then(edited, Step(name, dataclasses.asdict(settings), changed, tuple(skipped)))
