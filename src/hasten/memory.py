"""memory: what a graph's activations need at once, and an order of the nodes in which they need less.

A value lives from the node that makes it to the last one that reads it; inputs live from the beginning, outputs to the end. While a node runs, what
it reads and what it writes live together with all that is needed later: the most of it at any node is the *peak*. Weights are not in it. Nothing
is computed in place, and what only changes a shape counts as a copy: a runtime may do better.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Callable, Sequence

import onnx_ir as ir

from hasten.facts import Sized, at_sizes
from hasten.model import Model
from hasten.shapes import read


@dataclasses.dataclass(frozen=True)
class Peak:
    """Bytes of activations that live at once, at most; the node where. `unknown`: values of unknown size, which are left out."""

    bytes: int
    node: str
    unknown: int


def peak(model: Model, batch: int = 1) -> Peak:
    """The peak of the main graph in the order of its nodes, with the first axis of every input at `batch`."""
    flow = Flow(at_sizes(model, batch=batch))
    most, where = flow.peak(range(len(flow.nodes)))
    return Peak(most, flow.nodes[where].name or "" if flow.nodes else "", flow.unknown)


class Flow:
    """Nodes by number, values by number: who makes and who reads which, and how large it is."""

    def __init__(self, sized: Sized, nodes: Sequence[ir.Node] | None = None, graph: ir.Graph | None = None) -> None:
        """graph: one inside of the main graph, in its stead. nodes: the graph's in another order than its own."""
        graph = sized.model.graph if graph is None else graph
        self.nodes = tuple(graph if nodes is None else nodes)
        made = {id(o): i for i, node in enumerate(self.nodes) for o in node.outputs}
        values = [*graph.inputs, *(o for node in self.nodes for o in node.outputs if o.name)]
        number = {id(v): i for i, v in enumerate(values)}
        sizes = [sized.bytes(v) for v in values]
        self.unknown = sum(s is None for s in sizes)
        self.sizes = [s or 0 for s in sizes]
        self.maker = [made.get(id(v), -1) for v in values]
        self.writes = [[number[id(o)] for o in node.outputs if o.name] for node in self.nodes]
        self.reads = [sorted({number[id(v)] for v in read(node) if id(v) in number}) for node in self.nodes]
        self.kept = {number[id(v)] for v in graph.outputs if id(v) in number}
        self.readers: list[list[int]] = [[] for _ in values]
        for i, reads in enumerate(self.reads):
            for value in reads:
                self.readers[value].append(i)
        self.begin = sum(self.sizes[number[id(v)]] for v in graph.inputs)

    def peak(self, order: Sequence[int]) -> tuple[int, int]:
        """(bytes at most, the number of the node there) if the nodes run in this order."""
        left = [len(r) for r in self.readers]
        alive, most, where = self.begin, self.begin, 0
        for i in order:
            alive += sum(self.sizes[v] for v in self.writes[i])
            if alive > most:
                most, where = alive, i
            alive -= self._freed(i, left)
        return most, where

    def _freed(self, i: int, left: list[int]) -> int:
        """Bytes that nobody needs once node `i` ran; `left` counts the readers of each value that did not run yet."""
        freed = 0
        for value in self.reads[i]:
            left[value] -= 1
            if not left[value] and value not in self.kept:
                freed += self.sizes[value]
        return freed + sum(self.sizes[v] for v in self.writes[i] if not self.readers[v] and v not in self.kept)

    def least_first(self) -> list[int]:
        """Of the nodes that can run, always the one behind which the least lives; the first of equal ones."""
        left = [len(r) for r in self.readers]
        waiting = [sum(self.maker[v] >= 0 for v in reads) for reads in self.reads]

        def growth(i: int) -> int:
            freed = sum(self.sizes[v] for v in self.reads[i] if left[v] == 1 and v not in self.kept)
            return sum(self.sizes[v] for v in self.writes[i] if self.readers[v] or v in self.kept) - freed

        ready = [(growth(i), i) for i, count in enumerate(waiting) if not count]
        heapq.heapify(ready)
        done, order = [False] * len(self.nodes), []
        while ready:
            grows, i = heapq.heappop(ready)
            if done[i] or grows != growth(i):  # an entry of before, when more was needed later
                continue
            done[i] = True
            order.append(i)
            self._freed(i, left)
            for value in self.writes[i]:
                for reader in self.readers[value]:
                    waiting[reader] -= 1
                    if not waiting[reader]:
                        heapq.heappush(ready, (growth(reader), reader))
            for value in self.reads[i]:
                if left[value] == 1:
                    last = next(r for r in self.readers[value] if not done[r])
                    if not waiting[last]:
                        heapq.heappush(ready, (growth(last), last))
        return order

    def deepest_first(self) -> list[int]:
        """Depth first from the outputs; of a node's inputs first the one that needs most while it is made and leaves least (Sethi and Ullman,
        "The generation of optimal code for arithmetic expressions", 1970, exact for trees)."""
        need = [0] * len(self.nodes)
        inputs: list[list[int]] = []
        for i in range(len(self.nodes)):
            makers = {m for v in self.reads[i] if (m := self.maker[v]) >= 0}
            ordered = sorted(makers, key=lambda m: (sum(self.sizes[v] for v in self.writes[m]) - need[m], m))
            inputs.append(ordered)
            held, most = 0, 0
            for maker in ordered:
                most = max(most, held + need[maker])
                held += sum(self.sizes[v] for v in self.writes[maker])
            need[i] = max(most, held + sum(self.sizes[v] for v in self.writes[i]))
        order: list[int] = []
        seen = [False] * len(self.nodes)
        ends = sorted((i for i in range(len(self.nodes)) if not any(self.readers[v] for v in self.writes[i])), key=lambda i: (-need[i], i))
        for end in ends:
            stack = [(end, 0)]
            while stack:
                i, place = stack.pop()
                if seen[i]:
                    continue
                if place < len(inputs[i]):
                    stack += [(i, place + 1), (inputs[i][place], 0)]
                else:
                    seen[i] = True
                    order.append(i)
        return order


ORDERS: tuple[Callable[[Flow], list[int]], ...] = (Flow.least_first, Flow.deepest_first)


def better_order(flow: Flow) -> list[int] | None:
    """The order of least peak that the heuristics find, None where none is below the present one. Finding the best of all is NP-hard."""
    present = flow.peak(range(len(flow.nodes)))[0]
    found = min((order(flow) for order in ORDERS), key=lambda order: flow.peak(order)[0], default=None)
    return found if found is not None and flow.peak(found)[0] < present else None
