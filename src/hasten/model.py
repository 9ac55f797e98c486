"""Model: an ONNX graph and the history of how it was made. Frozen; a technique returns a new one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx_ir
import onnx_ir as ir

from hasten.errors import BadInput
from hasten.history import Skip as Skip
from hasten.history import Step as Step
from hasten.onnx_file import pieces

OPSET = 21
"""The one opset inside the house; the doors lift every model to it."""

IR_VERSION = 10
"""The ONNX IR version that goes with opset 21; written explicitly, because the libraries' defaults are newer than some runtimes read."""

HISTORY_KEY = "hasten.history"
LARGEST = (1 << 31) - 1
"""Bytes of an ONNX file at most."""

EXTERNAL_ABOVE = 1_500_000_000
"""Weights above this many bytes go into `<name>.data` beside the file: protobuf ends at 2 GiB."""


@dataclasses.dataclass(frozen=True)
class Port:
    """One input or output of a model: its name, numpy dtype name, and shape (int: fixed; str: a named dynamic axis; None: unknown)."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A frozen pair: the graph and its history.

    `ir` must never be changed in place: work on `edit()`, a clone. It shares tensors and types with this model, so replace them (a new
    Tensor, a new TensorType); never write into a tensor, never set `value.dtype`, which changes the shared type.
    """

    ir: ir.Model
    history: tuple[Step, ...] = ()

    @functools.cached_property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(_port(v) for v in self.ir.graph.inputs)

    @functools.cached_property
    def outputs(self) -> tuple[Port, ...]:
        return tuple(_port(v) for v in self.ir.graph.outputs)

    @functools.cached_property
    def weight_bytes(self) -> int:
        return sum(v.const_value.nbytes for v in self.ir.graph.initializers.values() if v.const_value is not None)

    @property
    def fits_in_memory(self) -> bool:
        """Whether `to_bytes` can hold the weights; else they go into a file of their own beside the model (see `save`)."""
        return self.weight_bytes <= EXTERNAL_ABOVE

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the graph, the weights and the history: equal digests mean equal files."""
        skeleton = _with_history(self.ir.clone(), self.history)
        weights = {name: v.const_value for name, v in skeleton.graph.initializers.items()}
        skeleton.graph.initializers.clear()
        h = hashlib.sha256(ir.to_proto(skeleton).SerializeToString(deterministic=True))
        for name in sorted(weights):
            tensor = weights[name]
            if tensor is not None:
                h.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
                h.update(tensor.tobytes())
        return h.hexdigest()

    @functools.cached_property
    def structure(self) -> str:
        """SHA-256 over the graph with the types and shapes of its weights, their values and the history left out.

        Models of one structure do the same work, so they take the same time.
        """
        skeleton = self.ir.clone()
        weights = sorted((v.name or "", str(v.dtype), str(v.shape)) for v in skeleton.graph.initializers.values())
        skeleton.graph.initializers.clear()
        proto = ir.to_proto(skeleton)
        del proto.metadata_props[:]
        return hashlib.sha256(proto.SerializeToString(deterministic=True) + repr(weights).encode()).hexdigest()

    def edit(self) -> onnx_ir.Model:
        """A clone to work on; its tensors and types are shared with this model and must be replaced, not changed."""
        return self.ir.clone()

    def then(self, edited: onnx_ir.Model, step: Step) -> Model:
        """The model that `step` made of this one."""
        return Model(edited, (*self.history, step))

    def to_bytes(self) -> bytes:
        """The ONNX file, history inside; the same model gives the same bytes. Raises ValueError above 2 GiB: use `save`."""
        if self.weight_bytes > LARGEST:
            raise ValueError(f"the weights take {self.weight_bytes} bytes, one ONNX file {LARGEST} at most; write it with `save`")
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        return pieces(_with_history(self.ir.clone(), self.history))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ONNX file atomically; above 1.5 GB of weights they go to `<name>.data` beside it."""
        target = Path(path)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
            written = Path(place) / target.name
            if not self.fits_in_memory:
                ir.save(_with_history(self.ir.clone(), self.history), written, external_data=f"{target.name}.data")
                os.replace(f"{written}.data", f"{target}.data")
            else:
                with written.open("wb") as file:
                    file.writelines(self._pieces())
            os.replace(written, target)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Model:
        """Read an ONNX file through the ONNX door (`doors/onnx.py`): checked, lifted to opset 21, history restored."""
        from hasten.doors.onnx import load_onnx

        return load_onnx(path)


def read_history(model: ir.Model) -> tuple[Step, ...]:
    """The history that travels in the file's metadata; BadInput if it is there but can't be read."""
    text = model.metadata_props.get(HISTORY_KEY)
    if not text:
        return ()
    try:
        return tuple(
            Step(s["name"], s["settings"], s["changed"], tuple(Skip(k["node"], k["why"]) for k in s["skipped"])) for s in json.loads(text)
        )
    except (ValueError, KeyError, TypeError) as e:
        raise BadInput(f"the model's metadata {HISTORY_KEY!r} is not a hasten history ({e}); remove it or use the original file") from e


def all_nodes(graph: ir.Graph | ir.Function) -> Iterator[ir.Node]:
    """Every node, subgraphs included, in graph order."""
    for node in graph:
        yield node
        for subgraph in subgraphs(node):
            yield from all_nodes(subgraph)


CONTROL_FLOW = ("If", "Loop", "Scan", "SequenceMap")
"""ONNX's operators with graphs in their attributes."""


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs in a node's attributes."""
    found: list[ir.Graph] = []
    if node.domain == "" and node.op_type not in CONTROL_FLOW:
        return found
    for attribute in node.attributes.data.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """The main graph, those of the functions, and every subgraph."""
    bodies = [model.graph, *(f.graph for f in model.functions.values())]
    yield from bodies
    for body in bodies:
        for node in all_nodes(body):
            yield from subgraphs(node)


def _with_history(model: ir.Model, history: tuple[Step, ...]) -> ir.Model:
    if history:
        model.metadata_props[HISTORY_KEY] = json.dumps([dataclasses.asdict(s) for s in history], sort_keys=True, separators=(",", ":"))
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version = "hasten", ""
    return model


def _port(value: ir.Value) -> Port:
    shape = () if value.shape is None else tuple(d if isinstance(d, int) else d.value for d in value.shape)
    dtype = "unknown" if value.dtype is None else str(value.dtype.numpy())
    return Port(value.name or "", dtype, shape)
