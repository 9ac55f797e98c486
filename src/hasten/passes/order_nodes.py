"""order_nodes: the same nodes in an order in which less of what they make lives at once. Effect: equivalent.

Two orders are tried: of what can run always the node behind which the least lives; and depth first, of a node's inputs first the one that needs most
(Sethi and Ullman, 1970, exact for trees). The one with the lower peak is taken if it is below the present one (memory.py has the definitions).

When: for graphs with branches, on machines with little memory, and for runtimes that keep the file's order. onnxruntime sorts the nodes itself.
Cost: nothing at run time; no data.
"""

from __future__ import annotations

import dataclasses

from hasten.facts import at_sizes
from hasten.graph import begin
from hasten.memory import Flow, better_order
from hasten.model import Model, Step
from hasten.task import BoundTask

ROUNDS = 8
"""An order decides ties of the next one; after so many the last is kept."""


@dataclasses.dataclass(frozen=True)
class OrderNodes:
    """No settings."""


def order_nodes(model: Model, settings: OrderNodes, task: BoundTask | None) -> Model:
    """Put the main graph's nodes in the order of least peak that is found; sizes are those of one sample."""
    edited = begin(model)
    sized = at_sizes(Model(edited))
    nodes = list(sized.model.graph)
    places = list(range(len(nodes)))
    for _ in range(ROUNDS):
        order = better_order(Flow(sized, [nodes[i] for i in places]))
        if order is None:
            break
        places = [places[i] for i in order]
    changed = sum(place != i for i, place in enumerate(places))
    if changed:
        present = list(edited.graph)
        edited.graph.remove(present)
        edited.graph.extend(present[i] for i in places)
    return model.then(edited, Step("order_nodes", dataclasses.asdict(settings), changed))
