"""untie: rewrites that change no value and let more channels go: what only looks shared is given to each reader, detours become straight."""

from __future__ import annotations

import onnx_ir as ir

from hasten.graph import add_weight, constant, sole_consumer, take_place, unique_name


def untie(graph: ir.Graph) -> None:
    """A vector, or a filled tensor, that several nodes read becomes one for each: zeros and ones that a clean-up found to be equal tie no channels.
    Matrices that are shared are meant to be.
    """
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) == 1 and tensor.size > 1 and tensor.dtype.is_floating_point():
            for number, (node, index) in enumerate(list(value.uses())):
                if number:
                    node.replace_input_with(index, add_weight(graph, value.name or "weight", tensor.numpy()))
    for made in list(graph):
        if made.op_type == "ConstantOfShape" and made.domain == "" and constant(made.inputs[0]) is not None:
            for number, (node, index) in enumerate(list(made.outputs[0].uses())):
                if number and node.graph is graph:
                    twin = ir.node("ConstantOfShape", made.inputs, dict(made.attributes), name=unique_name(graph, f"{made.name}_twin"))
                    old, new = made.outputs[0], twin.outputs[0]
                    new.name, new.type, new.shape = unique_name(graph, f"{old.name}_twin"), old.type, old.shape
                    graph.insert_after(made, twin)
                    node.replace_input_with(index, new)


def straighten(graph: ir.Graph) -> None:
    """(…, h, s, w) → Reshape (-1, s, w) → Transpose of the last two → Reshape (…, h, w, s) is one Transpose: so torch exports attention's keys.
    Straightened, the heads are not merged with a batch of unknown size.
    """
    for last in list(graph):
        if last.op_type != "Reshape":
            continue
        middle = last.inputs[0].producer() if last.inputs[0] is not None else None
        first = (
            middle.inputs[0].producer() if middle is not None and middle.op_type == "Transpose" and middle.inputs[0] is not None else None
        )
        if middle is None or first is None or first.op_type != "Reshape" or sole_consumer(middle.outputs[0]) is None:
            continue
        source, flat, target = first.inputs[0], constant(first.inputs[1]), constant(last.inputs[1])
        if source is None or source.shape is None or flat is None or target is None or sole_consumer(first.outputs[0]) is None:
            continue
        sizes, rank = list(source.shape), len(source.shape)
        swapped = [*sizes[:-2], sizes[-1], sizes[-2]]
        if tuple(middle.attributes.get_ints("perm", ()) or ()) != (0, 2, 1) or len(target) != rank or rank < 3:
            continue
        known = [isinstance(size, int) and size == t for size, t in zip(swapped, target.tolist(), strict=True)]
        if (
            flat.tolist() == [-1, *sizes[-2:]]
            and sum(known) >= rank - 1
            and all(k or t == -1 for k, t in zip(known, target.tolist(), strict=True))
        ):
            made = ir.node(
                "Transpose", [source], {"perm": [*range(rank - 2), rank - 1, rank - 2]}, name=unique_name(graph, f"{middle.name}_heads")
            )
            new, old = made.outputs[0], last.outputs[0]
            new.name, new.type, new.shape = unique_name(graph, f"{old.name}_heads"), old.type, old.shape
            graph.insert_before(last, made)
            take_place(old, new)
            graph.remove([last, middle, first], safe=True)
