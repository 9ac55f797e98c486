"""An ONNX file in pieces: the bytes that protobuf gives of the whole model, with one weight at a time in memory.

A message is the sum of its fields in the order of their numbers, each a key, a length and its bytes. So the weights, field 5 of the graph, which is
field 7 of the model, can be written one by one between what stands before and behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir

GRAPH, INITIALIZER = 7, 5
"""The numbers of these fields in ONNX's ModelProto and GraphProto."""


def pieces(model: ir.Model) -> Iterator[bytes]:
    """The file of a clone, whose weights are taken out of it. What lies in a file of its own comes inside."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _inside(value.const_value)
    weights = [(v.name or "", v.const_value) for v in model.graph.initializers.values() if v.const_value is not None]
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(np.empty(0, np.float32))
    proto = ir.to_proto(model)
    del proto.graph.initializer[:]
    model_before, model_after = _around(proto, GRAPH)
    graph_before, graph_after = _around(proto.graph, INITIALIZER)
    inside = sum(len(_head(INITIALIZER, size)) + size for name, tensor in weights for size in [_weight(name, tensor).ByteSize()])
    yield model_before + _head(GRAPH, len(graph_before) + inside + len(graph_after)) + graph_before
    for name, tensor in weights:
        weight = _weight(name, tensor).SerializeToString(deterministic=True)
        yield _head(INITIALIZER, len(weight))
        yield weight
    yield graph_after + model_after


def _inside(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The same, mapped, but written where it is used."""
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name, metadata_props=tensor.metadata_props)


def _weight(name: str, tensor: ir.TensorProtocol) -> Any:
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


def _around(message: Any, number: int) -> tuple[bytes, bytes]:
    """The bytes of the fields before and behind this one."""
    before, after = type(message)(), type(message)()
    before.CopyFrom(message)
    after.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if field.number >= number:
            before.ClearField(field.name)
        if field.number <= number:
            after.ClearField(field.name)
    return before.SerializeToString(deterministic=True), after.SerializeToString(deterministic=True)


def _head(number: int, length: int) -> bytes:
    """Key and length of a field that is a message: numbers in groups of seven bits, the lowest first."""
    return _varint(number << 3 | 2) + _varint(length)


def _varint(number: int) -> bytes:
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
