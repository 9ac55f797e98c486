"""The verb simplify: every pass that keeps the results, and what each brings."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from hasten.cli.options import (
    DataOpt,
    DataOptions,
    DebugOpt,
    ExampleOpt,
    JsonOpt,
    LabelOpt,
    LabelsOpt,
    ModelArg,
    OutOpt,
    PreprocessOpt,
    QuietOpt,
    ShapeOpt,
    ThreadsOpt,
    names,
    print_json,
    print_line,
    save,
    shapes_of,
    telling,
)
from hasten.errors import BadInput

CHECKED = 8
"""Samples of the data that every pass is checked on."""


def simplify(
    model: ModelArg,
    out: OutOpt = None,
    data: DataOpt = None,
    only: Annotated[str, typer.Option("--only", help="Passes to run, by commas; all by default.")] = "",
    leave: Annotated[str, typer.Option("--leave", help="Passes to leave out, by commas.")] = "",
    also: Annotated[str, typer.Option("--also", help="Passes that run by choice alone, by commas.")] = "",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Check each pass against the oracle.")] = True,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time each pass, with onnxruntime's own optimisation off and on.")
    ] = True,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    shape: ShapeOpt = None,
    example_input: ExampleOpt = None,
    threads: ThreadsOpt = None,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Remove, merge and reorder what a graph computes in vain; nothing that it gives changes. Each pass is checked, and says what it brings.

    A rewrite that changes a result is found, undone and named. Without -o nothing is written: the table alone.

    [bold]hasten simplify model.onnx -o simple.onnx[/]

    [bold]hasten simplify lenet.onnx -o simple.onnx --data mnist/ --no-timing[/]
    """
    from hasten import check as checking
    from hasten import doors
    from hasten import simplify as simplifying
    from hasten.measure.judge import timing_feeds
    from hasten.measure.machine import cores
    from hasten.report.simplified import show_simplified
    from hasten.runtimes import Target

    if only and also:
        raise BadInput("--only and --also both came; name all passes in --only")
    rows = simplifying.passes(names(only), names(leave), names(also))
    if not check and data is not None and not timing:
        raise BadInput("--data came with --no-check and --no-timing, and nothing would look at it; leave it out")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise BadInput(f"{out} can't be written (there is no folder {Path(out).parent}); give a place that can")
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        opened = doors.load(model, example_inputs=examples, shapes=shapes_of(shape), workdir=Path(private), check=check).model
        task = DataOptions(data, None, labels, label, preprocess).task()
        bound = task.bind(opened) if task is not None else None
        fixed = next((p.shape[0] for p in opened.inputs if p.shape and isinstance(p.shape[0], int)), None)
        feeds = [next(iter(bound.validate.batches(fixed or CHECKED)))] if bound is not None and bound.validate is not None else None
        if timing:
            timed_on = timing_feeds(bound.validate if bound else None, fixed or 1, checking.random_feeds(opened, fixed or 1))
            found = simplifying.never_slower(opened, rows, feeds, check, Target(threads or cores(), fixed or 1), timed_on)
        else:
            found = simplifying.simplify(opened, rows, feeds, check)
    if out is not None:
        save(found.model, out)
    if as_json:
        print_json(found.to_json() | {"out": out})
        return
    show_simplified(found)
    if out is not None:
        print_line(f"{out}: {found.after.nodes} nodes of {found.before.nodes}, {Path(out).stat().st_size} bytes")
