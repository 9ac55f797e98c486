"""order_nodes: the same nodes in an order in which less of what they make lives at once. Effect: equivalent.

Two orders are tried: of what can run always the node behind which the least lives; and depth first, of a node's inputs first the one that needs most
(Sethi and Ullman, 1970, exact for trees). The one with the lower peak is taken if it is below the present one (memory.py has the definitions).

A branch or a loop's body is a graph of its own, with a peak of its own, and is put in order where the sizes of all its values are known. In a local
function none is: its values have no shapes, for each call brings its own.

When: for graphs with branches, on machines with little memory, and for runtimes that keep the file's order. onnxruntime sorts the nodes itself.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import onnx_ir as ir

from hasten.facts import Sized, at_sizes
from hasten.graph import begin
from hasten.memory import Flow, better_order
from hasten.model import Model, Step, all_nodes, subgraphs
from hasten.task import BoundTask

ROUNDS = 8
"""An order decides ties of the next one; after so many the last is kept."""


@dataclasses.dataclass(frozen=True)
class OrderNodes:
    """No settings."""


def order_nodes(model: Model, settings: OrderNodes, task: BoundTask | None) -> Model:
    """Put the nodes of each graph in the order of least peak that is found; sizes are those of one sample."""
    edited = begin(model)
    sized = at_sizes(Model(edited))
    orders = [_order(sized, graph) for graph in _graphs(sized.model.graph)]
    changed = 0
    for graph, places in zip(list(_graphs(edited.graph)), orders, strict=True):
        moved = sum(place != i for i, place in enumerate(places))
        if moved:
            present = list(graph)
            graph.remove(present)
            graph.extend(present[i] for i in places)
        changed += moved
    return model.then(edited, Step("order_nodes", dataclasses.asdict(settings), changed))


def _graphs(main: ir.Graph) -> Iterator[ir.Graph]:
    yield main
    yield from (inner for node in all_nodes(main) for inner in subgraphs(node))


def _order(sized: Sized, graph: ir.Graph) -> list[int]:
    """For each place the number of the node that comes there."""
    nodes = list(graph)
    places = list(range(len(nodes)))
    if graph is not sized.model.graph and Flow(sized, graph=graph).unknown:
        return places
    for _ in range(ROUNDS):
        order = better_order(Flow(sized, [nodes[i] for i in places], graph))
        if order is None:
            break
        places = [places[i] for i in order]
    return places
