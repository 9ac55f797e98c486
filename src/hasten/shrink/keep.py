"""keep: physical removal of channels. Weights lose positions, and every number in the graph that counts channels is counted anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from hasten.errors import BadInput
from hasten.graph import Array, add_weight, constant, unique_name
from hasten.shrink.groups import Coupled


def keep(coupled: Coupled, kept: Mapping[str, Sequence[int] | Array]) -> ir.Model:
    """An edit of the model in which, of each group named in `kept`, only those channels are left, in the order that they had.

    Raises BadInput for a channel that a group has not, or where none is left. Types and shapes between the nodes are to be inferred again.
    """
    stays = left(coupled, kept)
    edited = coupled.model.edit()
    graph = edited.graph
    for (weight, axis), atoms in coupled.sites.items():
        mask = stays[coupled.labels[atoms]]
        if not mask.all() and weight in graph.initializers:  # a filled tensor is mended by its shape
            _shorten(graph.initializers[weight], axis, mask)
    nodes = list(graph)
    for mend in coupled.mends:
        counts = {k: int(stays[coupled.labels[atoms]].sum()) for k, atoms in mend.entries.items()}
        # A Slice may count from the end, so its bounds move though nothing before them went.
        if nodes[mend.node].op_type == "Slice" or any(counts[k] != len(atoms) for k, atoms in mend.entries.items()):
            _mend(graph, nodes[mend.node], mend.where, counts)
    for node in graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    return edited


def left(coupled: Coupled, kept: Mapping[str, Sequence[int] | Array]) -> Array:
    """By class of atoms: whether it stays. Raises BadInput as `keep` does."""
    stays = np.ones(len(coupled.labels), bool)
    for name, indices in kept.items():
        group = coupled.group(name)
        chosen = np.unique(np.asarray(indices, np.int64))
        if not len(chosen) or chosen[0] < 0 or chosen[-1] >= group.channels:
            came = "none" if not len(chosen) else f"{chosen[0]} to {chosen[-1]}"
            raise BadInput(f"group {name}: channels {came} are to be kept, it has 0 to {group.channels - 1}, and one must be left")
        stays[group.classes] = False
        stays[group.classes[chosen]] = True
    return stays


def _shorten(value: ir.Value, axis: int, mask: Array) -> None:
    assert value.const_value is not None
    tensor = value.const_value
    array = np.ascontiguousarray(np.compress(mask, tensor.numpy(), axis))
    array.flags.writeable = False
    value.const_value = ir.Tensor(array, dtype=tensor.dtype, name=value.name)
    value.shape = ir.Shape(array.shape)


def _mend(graph: ir.Graph, node: ir.Node, where: str | int, counts: dict[int, int]) -> None:
    if isinstance(where, str):
        node.attributes[where] = ir.AttrInt64(where, counts[0])
        return
    value = node.inputs[where] if where < len(node.inputs) else None
    if value is None:  # a Split without sizes
        node.resize_inputs(where + 1)
        node.replace_input_with(where, add_weight(graph, f"{node.name}_sizes", np.array([counts[k] for k in sorted(counts)], np.int64)))
        node.attributes.pop("num_outputs", None)
        return
    node.replace_input_with(where, _with_entries(graph, node, value, counts))


def _with_entries(graph: ir.Graph, node: ir.Node, value: ir.Value, counts: dict[int, int]) -> ir.Value:
    """The whole numbers of `value`, some entries replaced (0 and −1 of a shape, which mean «as it comes», stay). Computed ones are overruled."""
    array = constant(value)
    if array is not None:
        flat = array.copy().reshape(-1)
        for k, count in counts.items():
            if flat[k] > 0 or node.op_type not in ("Reshape", "Expand"):
                flat[k] = count
        return add_weight(graph, f"{node.name}_{value.name}", flat.reshape(array.shape))
    concat = value.producer()
    lengths = [] if concat is None or concat.op_type != "Concat" else [length_of(piece) for piece in concat.inputs]
    if concat is None or not lengths or None in lengths:
        length = length_of(value)
        assert length is not None
        which, what = np.zeros(length, bool), np.zeros(length, np.int64)
        which[list(counts)], what[list(counts)] = True, list(counts.values())
        inputs = [add_weight(graph, f"{node.name}_which", which), add_weight(graph, f"{node.name}_what", what), value]
        made = ir.node("Where", inputs, name=unique_name(graph, f"{node.name}_shape"))
    else:
        pieces, start = [], 0
        for piece, length in zip(concat.inputs, lengths, strict=True):
            assert piece is not None and length is not None
            mine = {k - start: count for k, count in counts.items() if start <= k < start + length}
            if mine and length == 1 and constant(piece) is None:
                piece = add_weight(graph, f"{node.name}_{piece.name}", np.array([mine[0]], np.int64))
            elif mine:
                piece = _with_entries(graph, node, piece, mine)
            pieces.append(piece)
            start += length
        made = ir.node("Concat", pieces, {"axis": 0}, name=unique_name(graph, f"{node.name}_shape"))
    made.outputs[0].name, made.outputs[0].type = unique_name(graph, f"{node.name}_shape_value"), value.type
    made.outputs[0].shape = value.shape
    graph.insert_before(node, made)
    return made.outputs[0]


def length_of(value: ir.Value | None) -> int | None:
    """The number of entries of a vector, where it is known."""
    if value is None:
        return None
    array = constant(value)
    if array is not None:
        return int(array.size)
    return value.shape[0] if value.shape is not None and len(value.shape) == 1 and isinstance(value.shape[0], int) else None
