"""ports: a model with fewer inputs and outputs. What it still gives is as before; programs that call it see the difference, so it is by choice."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.errors import BadInput
from hasten.graph import begin, remove_unused
from hasten.model import Model, Step


def with_ports(model: Model, outputs: Sequence[str] = (), drop_unused_inputs: bool = False) -> Model:
    """The model with these outputs alone, in its own order (none named: all), and if asked for without the inputs that nothing reads.

    Raises BadInput for an output that it does not have.
    """
    names = [p.name for p in model.outputs]
    if unknown := [n for n in outputs if n not in names]:
        raise BadInput(f"the model has no output {unknown[0]!r}; it has {', '.join(names)}")
    edited = begin(model)
    graph = edited.graph
    gone = [v for v in graph.outputs if outputs and v.name not in outputs]
    for value in gone:
        graph.outputs.remove(value)
    remove_unused(edited)
    unread = [v for v in graph.inputs if drop_unused_inputs and not v.uses() and not v.is_graph_output()]
    for value in unread:
        graph.inputs.remove(value)
    if not gone and not unread:
        return model
    settings = {"outputs": list(outputs), "drop_unused_inputs": drop_unused_inputs}
    return model.then(edited, Step("with_ports", settings, len(gone) + len(unread)))
