"""Verbs that look: inspect."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from hasten.cli.options import BatchOpt, DebugOpt, ExampleOpt, JsonOpt, ModelArg, ShapeOpt, print_json, shapes_of


def inspect_model(
    model: ModelArg,
    shape: ShapeOpt = None,
    batch: BatchOpt = None,
    example_input: ExampleOpt = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Operators, shapes, MACs, bytes, how it was made, and whether compute or memory bounds it. Nothing is run.

    [bold]hasten inspect model.onnx[/]

    [bold]hasten inspect model.onnx --shape seq=128 --json[/]
    """
    from hasten import doors
    from hasten.facts import facts
    from hasten.report.terminal import show_facts

    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(model, example_inputs=examples, workdir=Path(private)).model
    found = facts(loaded, shapes_of(shape), batch or 1)
    if as_json:
        history = [dataclasses.asdict(s) for s in loaded.history]
        ports = {"inputs": [dataclasses.asdict(p) for p in loaded.inputs], "outputs": [dataclasses.asdict(p) for p in loaded.outputs]}
        print_json(found.to_json() | ports | {"history": history, "digest": loaded.digest})
    else:
        show_facts(loaded, found)
