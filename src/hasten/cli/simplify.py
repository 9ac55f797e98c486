"""The verb simplify: every pass that keeps the results, and what each brings."""

from __future__ import annotations

import dataclasses
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
    LowerOpt,
    MetricOpt,
    ModelArg,
    OutOpt,
    PreprocessOpt,
    QuietOpt,
    ShapeOpt,
    TestOpt,
    ThreadsOpt,
    is_given,
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

DYNAMIC = "Dynamic"
"""The panel of the options that go with --dynamic."""

WITH_DYNAMIC = ("max_drop", "min_agreement", "test", "metric", "lower_is_better")


def simplify(
    context: typer.Context,
    model: ModelArg,
    out: OutOpt = None,
    data: DataOpt = None,
    only: Annotated[str, typer.Option("--only", help="Passes to run, by commas; all by default.")] = "",
    leave: Annotated[str, typer.Option("--leave", help="Passes to leave out, by commas.")] = "",
    also: Annotated[str, typer.Option("--also", help="Passes that run by choice alone, by commas.")] = "",
    outputs: Annotated[str, typer.Option("--outputs", help="Outputs to keep, by commas; all by default.")] = "",
    drop_unused_inputs: Annotated[bool, typer.Option("--drop-unused-inputs", help="Leave out inputs that nothing reads.")] = False,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Check each pass against the oracle.")] = True,
    timing: Annotated[
        bool, typer.Option("--timing/--no-timing", help="Time each pass, with onnxruntime's own optimisation off and on.")
    ] = True,
    dynamic: Annotated[
        bool,
        typer.Option(
            "--dynamic", help="Also leave out what the data shows to be constant, dead or without effect.", rich_help_panel=DYNAMIC
        ),
    ] = False,
    max_drop: Annotated[
        float, typer.Option("--max-drop", help="Drop of the metric that --dynamic may cost, absolute.", rich_help_panel=DYNAMIC)
    ] = 0.01,
    min_agreement: Annotated[
        float, typer.Option("--min-agreement", help="Without labels: agreement with the original to keep.", rich_help_panel=DYNAMIC)
    ] = 0.98,
    test: TestOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
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

    A rewrite that changes a result is found, undone and named. Without -o nothing is written: the table alone. With --dynamic also
    what never changes or has no effect on real samples goes, within a budget of accuracy: that is lossy.

    [bold]hasten simplify model.onnx -o simple.onnx[/]

    [bold]hasten simplify lenet.onnx -o simple.onnx --data mnist/ --no-timing[/]

    [bold]hasten simplify lenet.onnx -o simple.onnx --data mnist/ --dynamic --max-drop 0.005 --no-timing[/]
    """
    from hasten import check as checking
    from hasten import doors
    from hasten import dynamic as idling
    from hasten import simplify as simplifying
    from hasten.measure.judge import timing_feeds
    from hasten.measure.machine import cores
    from hasten.ports import with_ports
    from hasten.report.dynamic import show_dynamic
    from hasten.report.simplified import show_simplified
    from hasten.runtimes import Target
    from hasten.search.budget import Budget
    from hasten.shrink.drop_idle import DropIdle

    if only and also:
        raise BadInput("--only and --also both came; name all passes in --only")
    rows = simplifying.passes(names(only), names(leave), names(also))
    if dynamic and data is None:
        raise BadInput(
            "--dynamic came without --data, and only data shows what never changes; give --data, some hundreds of samples at least"
        )
    if not dynamic and (alone := [o for o in WITH_DYNAMIC if is_given(context, o)]):
        raise BadInput(
            f"--{alone[0].replace('_', '-')} came without --dynamic, and nothing would be judged; give --dynamic too, or leave it out"
        )
    budget = Budget(max_drop=max_drop, min_agreement=min_agreement)
    if not check and data is not None and not timing and not dynamic:
        raise BadInput("--data came with --no-check and --no-timing, and nothing would look at it; leave it out")
    if out is not None and not Path(out).absolute().parent.is_dir():
        raise BadInput(f"{out} can't be written (there is no folder {Path(out).parent}); give a place that can")
    idle = None
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        whole = doors.load(model, example_inputs=examples, shapes=shapes_of(shape), workdir=Path(private), check=check).model
        opened = with_ports(whole, names(outputs), drop_unused_inputs)
        task = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better).task()
        bound = task.bind(opened) if task is not None else None
        fixed = next((p.shape[0] for p in opened.inputs if p.shape and isinstance(p.shape[0], int)), None)
        feeds = [next(iter(bound.validate.batches(fixed or CHECKED)))] if bound is not None and bound.validate is not None else None
        target = Target(threads or cores(), fixed or 1) if timing else None
        timed_on = timing_feeds(bound.validate if bound else None, fixed or 1, checking.random_feeds(opened, fixed or 1)) if timing else {}
        if target is not None:
            found = simplifying.never_slower(opened, rows, feeds, check, target, timed_on)
        else:
            found = simplifying.simplify(opened, rows, feeds, check)
        if dynamic and bound is not None:
            clock = idling.Clock(target, timed_on) if target is not None else None
            idle = idling.within_budget(
                found.model, opened, bound, DropIdle(), budget, lambda m: simplifying.simplify(m, rows, feeds, check).model, clock
            )
    made = found.model if idle is None else idle.model
    found = dataclasses.replace(found, before=simplifying.Size.of(whole))
    if out is not None:
        save(made, out)
    if as_json:
        print_json(found.to_json() | ({} if idle is None else {"dynamic": idle.to_json()}) | {"out": out})
        return
    show_simplified(found)
    if idle is not None:
        show_dynamic(idle)
    if out is not None:
        nodes = simplifying.Size.of(made).nodes
        print_line(f"{out}: {nodes} nodes of {found.before.nodes}, {Path(out).stat().st_size} bytes")
