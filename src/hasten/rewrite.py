"""Rewriting node by node: rules over the main graph, its subgraphs and local functions, to a fixed point. What the clean-up passes are made of.

A rule takes a node and an `Edit` and says whether it changed something. It never renames an input or output of a graph, and a subgraph's output
stays one of its own values; where that forbids to leave a node out, the node becomes an Identity.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from hasten.graph import Array, must_leave, names_in, rewrote, settle, take_place
from hasten.model import all_graphs, all_nodes, subgraphs
from hasten.own_operators import DOMAIN

Dims = tuple[int | str | None, ...]
"""A shape: whole numbers, names of dynamic axes, None where nothing is known."""


class Edit:
    """A model that is being rewritten, and the names that it has taken."""

    def __init__(self, model: ir.Model):
        self.model = model
        self._in_functions = {id(f.graph) for f in model.functions.values()}

    @functools.cached_property
    def _names(self) -> set[str | None]:
        return names_in(all_graphs(self.model))

    def bodies(self) -> Iterator[ir.Graph]:
        """The main graph and those of the local functions but hasten's own, whose bodies runtimes know by their form."""
        yield self.model.graph
        yield from (f.graph for f in self.model.functions.values() if f.domain != DOMAIN)

    def graphs(self) -> Iterator[ir.Graph]:
        """The bodies and every graph inside of them, each behind what is around it."""
        for body in self.bodies():
            yield body
            yield from (inner for node in all_nodes(body) for inner in subgraphs(node))

    def nodes(self) -> Iterator[ir.Node]:
        """Every node of the bodies, those in subgraphs among them."""
        for body in self.bodies():
            yield from all_nodes(body)

    def sweep(self, rules: Mapping[str, Sequence[Rule]]) -> int:
        """Apply the rules of each node's operator (ONNX's own) until none changes anything; how many did."""
        total, changed = 0, True
        while changed:
            changed = False
            for node in list(self.nodes()):
                here = rules.get(node.op_type)
                if here is None or node.graph is None or not plain(node) or must_leave(node):
                    continue
                name = node.name or ""
                for rule in here:
                    if rule(node, self):
                        total, changed = total + 1, True
                        rewrote(name)
                        break
        return total

    def unique(self, wish: str) -> str:
        """`wish`, or `wish_1`, `wish_2` … : a name that nothing in the model has; from now on it is taken."""
        name, number = wish, 0
        while name in self._names:
            number += 1
            name = f"{wish}_{number}"
        self._names.add(name)
        return name

    def weight(self, node: ir.Node, wish: str, array: Array) -> ir.Value:
        """A new constant that the node can read."""
        array = np.array(array)
        array.flags.writeable = False
        name = self.unique(wish)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.hold(node, value)
        return value

    def hold(self, node: ir.Node, value: ir.Value) -> None:
        """Let a constant belong to the node's graph: as an initializer; in a function, which has none, made by a Constant before the node."""
        graph = graph_of(node)
        if id(graph) in self._in_functions:
            name = self.unique(f"{value.name}_value")
            graph.insert_before(node, ir.node("Constant", [], {"value": value.const_value}, outputs=[value], name=name))
        else:
            graph.register_initializer(value)

    def before(
        self,
        node: ir.Node,
        operator: str,
        inputs: Sequence[ir.Value | None],
        attributes: Mapping[str, int | float | list[int]] | None = None,
    ) -> ir.Value:
        """The output of a new node that stands before `node`; its type is that of the first input."""
        made = ir.node(operator, inputs, dict(attributes or {}), name=self.unique(f"{node.name or node.op_type}_{operator.lower()}"))
        value = made.outputs[0]
        value.name = self.unique(f"{made.name}_out")
        first = inputs[0]
        value.type = None if first is None or first.dtype is None else ir.TensorType(first.dtype)
        graph_of(node).insert_before(node, made)
        return value

    def bypass(self, node: ir.Node, new: ir.Value, index: int = 0) -> bool:
        """Let `new` be read wherever the node's output is; the node goes once nothing reads it. False where that changes nothing.

        An output of a graph that must have a node of its own gets an Identity.
        """
        old = node.outputs[index]
        if old.is_graph_output() and (new.is_graph_input() or new.is_initializer() or new.is_graph_output() or new.graph is not node.graph):
            if node.op_type == "Identity" and plain(node) and node.inputs[0] is new:
                return False
            new = self.before(node, "Identity", [new])
        take_place(old, new)
        if not any(o.uses() or o.is_graph_output() for o in node.outputs):
            graph_of(node).remove(node, safe=True)
        elif old.name is None:
            old.name = self.unique(f"{new.name}_unread")
        return True


Rule = Callable[[ir.Node, Edit], bool]


def rewrite(model: ir.Model, rules: Mapping[str, Sequence[Rule]]) -> int:
    """Apply the rules to all of the model until nothing changes, shapes inferred in between; how many did."""
    total = 0
    while changed := Edit(model).sweep(rules):
        total += changed
        settle(model)
    return total


def become(
    node: ir.Node, operator: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, int | float | list[int]] | None = None
) -> None:
    """Make the node another operator of other inputs; its outputs stay."""
    node.op_type, node.domain = operator, ""
    node.attributes.clear()
    for name, setting in (attributes or {}).items():
        node.attributes[name] = ir.convenience.convert_attribute(name, setting)
    node.resize_inputs(len(inputs))
    for i, value in enumerate(inputs):
        node.replace_input_with(i, value)


def graph_of(node: ir.Node) -> ir.Graph:
    assert node.graph is not None
    return node.graph


def plain(node: ir.Node | None) -> bool:
    """Whether the node is one of ONNX's own operators, none of its attributes a function's parameter."""
    return node is not None and node.domain == "" and not any(a.is_ref() for a in node.attributes.values())


def made_by(value: ir.Value | None, *operators: str) -> ir.Node | None:
    """The node that makes the value as its first output, where its operator is one of these, else None."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in operators or not plain(node) or node.outputs[0] is not value:
        return None
    return node


def dims(value: ir.Value | None) -> Dims | None:
    """The value's shape, None if its rank is unknown. A name that is no identifier ("?") says nothing."""
    if value is None or value.shape is None:
        return None
    return tuple(
        d if isinstance(d, int) else d.value if re.fullmatch(r"[\w.:/ +*-]*\w[\w.:/ +*-]*", d.value or "") else None for d in value.shape
    )


def same_dims(one: Dims | None, other: Dims | None) -> bool:
    """Whether two shapes are known to be the same."""
    return one is not None and one == other and None not in one


def keeps_shape(value: ir.Value | None, array: Array) -> bool:
    """Whether broadcasting the value with the array is known to give the value's own shape."""
    shape = dims(value)
    if array.size == 1 and array.ndim == 0:
        return True
    if shape is None or array.ndim > len(shape):
        return False
    return all(size in (1, d) for size, d in zip(array.shape, shape[len(shape) - array.ndim :], strict=True))


def only_reader(value: ir.Value | None) -> bool:
    """Whether one node alone reads the value, and no graph's output does."""
    return value is not None and len(tuple(value.uses())) == 1 and not value.is_graph_output()
