"""The executor: an ONNX graph as one straight `torch.fx.GraphModule`, whose parameters are the graph's initializers.

What is trained is what is shipped: weights keep their names, shapes and layout, and go back into the graph by name. Constants (axes, shapes,
bounds) are burnt in as Python values, and arithmetic on shapes stays in Python, so that `torch.compile` takes the whole graph at once; what
depends on constants alone is computed when the module is made. One call a node, in the graph's order: a straight line that a person can
read with `print(executor.module.code)`.
"""

from __future__ import annotations

import dataclasses
import inspect
import keyword
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from hasten.errors import BadInput, Unsupported
from hasten.graph import add_weight
from hasten.learn.device import beside
from hasten.learn.operators import OPERATORS, Op
from hasten.learn.values import DTYPES, FLOATS, tensor_of, to_array, to_tensor
from hasten.model import OPSET, Model, Skip

BURNT_SIZE = 4096
"""A constant of more elements than this is no list of axes or sizes: it stays a tensor."""

SHAPE_TYPES = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)


@dataclasses.dataclass(frozen=True, eq=False)
class Executor:
    """A model in torch.

    module: `module(*inputs)` gives the outputs as a tuple, both in the model's order; taps, if any, come after them.
    weights: the module's own parameters by initializer name: float weights that a gradient reaches (a number of rank 0 is a constant).
    buffers: running mean and variance of batch normalization, by initializer name.
    copies: buffers of nodes that share an initializer with an earlier one (`cleanup` merges equal weights, and statistics are equal before
    training): name of the copy → (initializer, node, position of the input). Each node moves its own.
    """

    module: Any
    weights: dict[str, Any]
    buffers: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    copies: dict[str, tuple[str, str, int]] = dataclasses.field(default_factory=dict)

    def into(self, model: Model) -> ir.Model:
        """An edit of `model` in which the initializers of these names hold what was trained, as frozen arrays of their own type.

        Statistics that nodes shared and that differ now become initializers of their own. Raises BadInput where `model` has no initializer
        of such a name and shape.
        """
        edited = model.edit()
        for name, tensor in {**self.weights, **self.buffers}.items():
            if name in self.copies:
                continue
            value = edited.graph.initializers.get(name)
            if value is None or value.const_value is None or tuple(value.const_value.shape) != tuple(tensor.shape):
                found = "none" if value is None or value.const_value is None else f"one of shape {list(value.const_value.shape)}"
                raise BadInput(
                    f"weight {name!r} of shape {list(tensor.shape)} can't go back: the model has {found}; "
                    "give the model that the executor was built from, or one with the same weights"
                )
            value.const_value = ir.Tensor(to_array(tensor, value.const_value.dtype), dtype=value.const_value.dtype, name=name)
        nodes = {node.name: node for node in edited.graph}
        for name, (shared, reader, position) in self.copies.items():
            if torch.equal(self.buffers[name], self.buffers[shared]):
                continue
            if reader not in nodes:
                raise BadInput(
                    f"the statistics of node {reader!r} can't go back: the model has no such node; give the one that it was built from"
                )
            tensor = edited.graph.initializers[shared].const_value
            assert tensor is not None
            nodes[reader].replace_input_with(position, add_weight(edited.graph, shared, to_array(self.buffers[name], tensor.dtype)))
        return edited


def build(model: Model, *, more: Mapping[str, Op] | None = None, taps: Sequence[str] = ()) -> Executor:
    """The model in torch, in eval mode, on the CPU. `model` is left as it is; its weights are copied.

    more: rows that replace or add to OPERATORS, by operator, or `domain::operator` for another domain; a local function with such a row is
    called, any other is inlined. taps: names of inner values that are given after the outputs (for distillation).
    Raises Unsupported, before anything runs, naming operator, node and opset, for what the table has no row for; BadInput for an unknown tap.
    """
    rows = {**OPERATORS, **(more or {})}
    edited = _inlined(model.edit(), rows)
    found = {node: _row(node, rows, edited.opset_imports.get(node.domain, OPSET)) for node in edited.graph if not _is_constant(node)}
    return _Builder(edited.graph, found, tuple(taps)).build()


def refusals(model: Model, *, more: Mapping[str, Op] | None = None) -> tuple[Skip, ...]:
    """The nodes that `build` would refuse, and why."""
    rows = {**OPERATORS, **(more or {})}
    edited = _inlined(model.edit(), rows)
    found = []
    for node in edited.graph:
        if not _is_constant(node):
            try:
                _row(node, rows, edited.opset_imports.get(node.domain, OPSET))
            except Unsupported as e:
                found.append(Skip(node.name or node.op_type, str(e)))
    return tuple(found)


def key(node: ir.Node) -> str:
    """The name of a node's row."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def _inlined(model: ir.Model, rows: Mapping[str, Op]) -> ir.Model:
    from onnx_ir.passes.common import InlinePass

    if model.functions:
        InlinePass(criteria=lambda f: f"{f.domain}::{f.name}" not in rows)(model)
    return model


def _is_constant(node: ir.Node) -> bool:
    return node.op_type == "Constant" and node.domain in ("", "ai.onnx")


def _row(node: ir.Node, rows: Mapping[str, Op], opset: int) -> Op:
    """The node's row. Raises Unsupported for an operator, or an attribute, that the table does not know."""
    where = f"node {node.name or node.outputs[0].name!r} ({node.domain or 'ai.onnx'}::{node.op_type}, opset {opset})"
    row = rows.get(key(node))
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
        raise Unsupported(f"{where}: the torch executor runs no subgraphs; use a model without control flow, or another runtime")
    if row is None:
        raise Unsupported(
            f"{where}: the torch executor has no such operator; docs/operators.md lists those it has, "
            "and `build(model, more={...})` takes a row of your own"
        )
    if opset < row.since and node.domain in ("", "ai.onnx"):
        raise Unsupported(f"{where}: the torch executor runs it as of opset {row.since}; load the model through hasten's door")
    known = _keywords(row)
    if known is not None and (strange := sorted(set(node.attributes) - known)):
        raise Unsupported(
            f"{where}: the torch executor does not know its attribute {strange[0]!r}; it knows {', '.join(sorted(known)) or 'none'}"
        )
    return row


def _keywords(row: Op) -> set[str] | None:
    """Attributes that the row's function takes; None where it takes any."""
    try:
        parameters = inspect.signature(row.run).parameters.values()
    except ValueError:  # torch's built-in functions have no signature, and no attributes
        return set()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY or row.is_module} - {"outputs"}


@dataclasses.dataclass(frozen=True, eq=False)
class _Python:
    """A shape, or a part of one, that is computed in Python: the node of the graph that gives it, and its ONNX type."""

    node: Any
    dtype: ir.DataType


class _Builder:
    """Goes through the graph once; `values` holds what each value is: a constant tensor, a `_Python`, or a node of the fx graph.

    `tensors` holds the nodes of the first two, where an operator needs them as a tensor; another may still burn them in.
    """

    def __init__(self, graph: ir.Graph, rows: dict[ir.Node, Op], taps: tuple[str, ...]) -> None:
        self.graph, self.rows, self.taps = graph, rows, taps
        self.root = torch.nn.Module()
        self.fx = torch.fx.Graph()
        self.values: dict[ir.Value, Any] = {}
        self.tensors: dict[ir.Value, Any] = {}
        self.names: set[str] = set()
        self.weights: dict[str, Any] = {}
        self.buffers: dict[str, Any] = {}
        self.owners: dict[ir.Value, ir.Node] = {}
        self.copies: dict[str, tuple[str, str, int]] = {}

    def build(self) -> Executor:
        trained, state = _reached(self.graph, self.rows, self.taps)
        for value in self.graph.inputs:
            self.values[value] = self.fx.placeholder(self._name(value.name or "input", "input"))
        for name, value in self.graph.initializers.items():
            if value.is_graph_input() or value.const_value is None or (not value.uses() and not value.is_graph_output()):
                continue
            tensor = self._constant(value, value.const_value)
            if value in trained:
                self.weights[name] = torch.nn.Parameter(tensor)
                self.values[value] = self._kept(name, self.weights[name])
            elif value in state:
                self.buffers[name] = tensor
                self.values[value] = self._kept(name, tensor)
            else:
                self.values[value] = tensor
        for node in self.graph:
            if _is_constant(node):
                tensor = ir.convenience.get_const_tensor(node.outputs[0])
                if tensor is None:
                    raise Unsupported(
                        f"node {node.name!r} (ai.onnx::Constant): the torch executor has no constant of that kind (sequence, text)"
                    )
                self.values[node.outputs[0]] = self._constant(node.outputs[0], tensor)
            else:
                self._call(node, self.rows[node])
        inner = {v.name: v for n in self.graph for v in n.outputs}
        if unknown := [t for t in self.taps if t not in inner]:
            raise BadInput(f"there is no inner value {unknown[0]!r} to tap; give names of node outputs")
        wanted = [*self.graph.outputs, *(inner[t] for t in self.taps)]
        self.fx.output(tuple(self._tensor(v) for v in wanted))
        module = torch.fx.GraphModule(self.root, self.fx, "Executor")
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
        module.eval()
        return Executor(
            module,
            self.weights,
            self.buffers,
            tuple(v.name or "" for v in self.graph.inputs),
            (*(v.name or "" for v in self.graph.outputs), *self.taps),
            self.copies,
        )

    def _call(self, node: ir.Node, row: Op) -> None:
        attributes = {a.name: _python(a) for a in node.attributes.values()}
        if row.typed and row.typed not in attributes and node.outputs[0].dtype is not None:
            attributes[row.typed] = node.outputs[0].dtype.value
        inputs = list(node.inputs)
        while inputs and inputs[-1] is None:
            inputs.pop()
        output = node.outputs[0]
        if row is OPERATORS["CastLike"] and row.typed in attributes:
            row, inputs = OPERATORS["Cast"], inputs[:1]  # its type is known, and of a constant it is a constant
        found = [None if v is None else self.values[v] for v in inputs]
        if row in (OPERATORS["Shape"], OPERATORS["Size"]) and inputs[0] is not None and inputs[0].is_initializer():
            assert inputs[0].const_value is not None
            found = [torch.empty(tuple(inputs[0].const_value.shape), device="meta")]  # the shape of a weight is known
        if self._stays_python(node, row, inputs, found):
            args = [f.node if isinstance(f, _Python) else None if f is None else _number_or_tuple(f) for f in found]
            typed = ir.DataType(attributes["to"]) if node.op_type == "Cast" else ir.DataType.INT64
            if node.op_type in ("Equal", "Greater", "Less"):
                typed = ir.DataType.BOOL
            elif node.op_type not in ("Cast", "Shape", "Size"):
                typed = next((f.dtype for f in found[::-1] if isinstance(f, _Python)), typed)
            plain = {k: _number_or_tuple(v) if isinstance(v, torch.Tensor) else v for k, v in attributes.items()}
            self.values[output] = _Python(self._function(row.shapes, args, plain, output), typed)
            return
        if row.many:
            attributes["outputs"] = max(i for i, v in enumerate(node.outputs) if v.name or v.uses()) + 1 if len(node.outputs) else 1
        if not row.is_module and all(f is None or isinstance(f, torch.Tensor) for f in found) and (found or not row.many):
            self._fold(node, row, inputs, found, attributes)
            return
        args = [self._argument(node, i, v, f, row) for i, (v, f) in enumerate(zip(inputs, found, strict=True))]
        if row.is_module:
            name = self._name(node.name or node.op_type, "module")
            self.root.add_module(name, row.run(**attributes))
            result = self.fx.call_module(name, tuple(args))
        else:
            result = self._function(row.run, args, attributes, None if row.many else output)
            numbers_alone = not any(isinstance(f, torch.fx.Node) for f in found)  # Range, say: nothing tells it the device
            if numbers_alone and not row.many and self.graph.inputs:
                result = self.fx.call_function(beside, (result, self._first_input()))
        result.meta["onnx"] = node.name
        if node.op_type in ("Shape", "Size") and row is OPERATORS[node.op_type]:
            self.values[output] = _Python(result, ir.DataType.INT64)
        elif not row.many:
            self.values[output] = result
        else:
            for number, value in enumerate(node.outputs):
                if value.uses() or value.is_graph_output() or value.name in self.taps:
                    self.values[value] = self._function(operator.getitem, [result, number], {}, value)

    def _stays_python(self, node: ir.Node, row: Op, inputs: list[ir.Value | None], found: list[Any]) -> bool:
        """Whether the node computes on shapes: a shape comes in, with nothing else but small constants, and a shape goes out."""
        if row.shapes is None or not any(isinstance(f, _Python) for f in found):
            return False
        if not all(f is None or isinstance(f, _Python) or (_burns(f) and not f.is_floating_point()) for f in found):
            return False
        if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) not in SHAPE_TYPES:
            return False
        output = node.outputs[0]
        if node.op_type == "ConstantOfShape" and (output.dtype not in SHAPE_TYPES or output.shape is None):
            return False
        if node.op_type == "Unsqueeze" and (inputs[0] is None or inputs[0].shape is None or len(inputs[0].shape) != 0):
            return False
        if node.op_type == "Reshape" and output.shape is None:
            return False
        return output.shape is None or len(output.shape) <= 1

    def _fold(self, node: ir.Node, row: Op, inputs: list[ir.Value | None], found: list[Any], attributes: dict[str, Any]) -> None:
        """What depends on constants alone is computed now."""
        args = [None if f is None else _number_or_tuple(f) if _is_burnt(i, f, row) else f for i, f in enumerate(found)]
        with torch.no_grad():
            result = row.run(*args, **attributes)
        if node.op_type in ("Shape", "Size"):
            result = torch.tensor(result, dtype=torch.int64)
        for value, tensor in zip(node.outputs, result if row.many else (result,), strict=False):
            self.values[value] = tensor

    def _argument(self, node: ir.Node, position: int, value: ir.Value | None, found: Any, row: Op) -> Any:
        if value is None or found is None:
            return None
        if position in row.idle and isinstance(found, torch.Tensor) and not found.any():
            return None
        if position in row.state and value.name in self.buffers:
            return self._own(node, position, value)
        if isinstance(found, _Python) and (
            position in row.burnt or (position in row.places and value.shape is not None and not len(value.shape))
        ):
            return found.node
        if isinstance(found, torch.Tensor) and _is_burnt(position, found, row):
            return _number_or_tuple(found)
        return self._tensor(value)

    def _own(self, node: ir.Node, position: int, value: ir.Value) -> Any:
        """The node's own buffer of that state: the initializer's, or a copy where another node has it."""
        if self.owners.setdefault(value, node) is node:
            return self.values[value]
        shared = value.name or ""
        name = f"{shared} of {node.name}"
        self.copies[name] = (shared, node.name or "", position)
        self.buffers[name] = self.buffers[shared].clone()
        return self._kept(name, self.buffers[name])

    def _tensor(self, value: ir.Value) -> Any:
        """The node of the fx graph that gives the value as a tensor."""
        found = self.values[value]
        if value not in self.tensors:
            if isinstance(found, _Python):
                self.tensors[value] = self.fx.call_function(tensor_of, (found.node, DTYPES[found.dtype.value], self._first_input()))
            elif isinstance(found, torch.Tensor):
                self.tensors[value] = self._kept(value.name or "constant", found)
            else:
                return found
        return self.tensors[value]

    def _first_input(self) -> Any:
        """The node of an input, which says on which device all of it is."""
        return self.values[self.graph.inputs[0]] if self.graph.inputs else None

    def _kept(self, name: str, tensor: Any) -> Any:
        """A parameter or buffer of the module, and the node that reads it."""
        attribute = self._name(name, "weight")
        if isinstance(tensor, torch.nn.Parameter):
            self.root.register_parameter(attribute, tensor)
        else:
            self.root.register_buffer(attribute, tensor)
        return self.fx.get_attr(attribute)

    def _function(self, function: Any, args: list[Any], keywords: dict[str, Any], value: ir.Value | None) -> Any:
        keywords = {k: self._kept(k, v) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
        return self.fx.create_node(
            "call_function", function, tuple(args), keywords, name=None if value is None else _identifier(value.name or "value")
        )

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol) -> Any:
        try:
            return to_tensor(tensor)
        except KeyError as e:
            raise Unsupported(f"weight {value.name!r} has element type {tensor.dtype.name}, which the torch executor can't hold") from e

    def _name(self, wish: str, fallback: str) -> str:
        """An identifier that no attribute of the module has."""
        base = name = _identifier(wish) or fallback
        number = 0
        while name in self.names or hasattr(self.root, name):
            number += 1
            name = f"{base}_{number}"
        self.names.add(name)
        return name


def _identifier(name: str) -> str:
    """A name that Python can read and that means nothing to the code of a module."""
    found = re.sub(r"\W", "_", name)
    if keyword.iskeyword(found) or found in ("self", "torch"):
        return f"{found}_"
    return f"_{found}" if found[:1].isdigit() else found


def _burns(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and tensor.ndim <= 1 and tensor.numel() <= BURNT_SIZE


def _is_burnt(position: int, tensor: Any, row: Op) -> bool:
    return (position in row.burnt and _burns(tensor)) or (position in row.places and tensor.ndim == 0)


def _number_or_tuple(tensor: Any) -> Any:
    return tuple(tensor.tolist()) if tensor.ndim else tensor.item()


def _python(attribute: ir.Attr) -> Any:
    """An attribute as a keyword argument."""
    if attribute.type is ir.AttributeType.TENSOR:
        return to_tensor(attribute.as_tensor())
    value = attribute.value
    return tuple(value) if isinstance(value, (list, tuple)) else value


def _reached(graph: ir.Graph, rows: dict[ir.Node, Op], taps: tuple[str, ...]) -> tuple[set[ir.Value], set[ir.Value]]:
    """(initializers that a gradient from the outputs reaches, initializers that are state)."""
    trained: set[ir.Value] = set()
    state = {v for n, row in rows.items() for i in row.state if i < len(n.inputs) and (v := n.inputs[i]) is not None and v.is_initializer()}
    todo = [*graph.outputs, *(v for n in graph for v in n.outputs if v.name in taps)]
    seen: set[ir.Value] = set()
    while todo:
        value = todo.pop()
        if value in seen:
            continue
        seen.add(value)
        if value.is_initializer():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) and value not in state and not value.is_graph_input():
                trained.add(value)
            continue
        node = value.producer()
        row = None if node is None else rows.get(node)
        if node is None or row is None or not row.gradient:
            continue
        closed = (*row.burnt, *row.fixed, *row.state)
        todo += [v for i, v in enumerate(node.inputs) if v is not None and i not in closed]
    return trained, state
