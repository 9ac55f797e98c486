"""Verbs that look: inspect, doctor, report."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.cli.options import (
    BatchOpt,
    DebugOpt,
    ExampleOpt,
    JsonOpt,
    ModelArg,
    QuietOpt,
    ShapeOpt,
    ThreadsOpt,
    print_json,
    print_line,
    shapes_of,
    telling,
)
from hasten.errors import ClaimFailed

if TYPE_CHECKING:
    from hasten.model import Model
    from hasten.shrink.groups import Coupled


def inspect_model(
    model: ModelArg,
    shape: ShapeOpt = None,
    batch: BatchOpt = None,
    threads: ThreadsOpt = None,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Run the model in onnxruntime, layer by layer, and advise.")] = True,
    channels: Annotated[
        bool,
        typer.Option("--channels", help="Also: which channels hang together, where each group's first one lies, and what can't lose any."),
    ] = False,
    example_input: ExampleOpt = None,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Operators, MACs, bytes; time per layer and its place below this machine's roof; what bounds the model, and what to try first.

    [bold]hasten inspect model.onnx[/]

    [bold]hasten inspect model.onnx --shape seq=128 --no-timing --json[/]

    [bold]hasten inspect model.onnx --no-timing --channels[/]
    """
    from hasten import doors
    from hasten.advise.inspection import inspect

    gc.disable()  # a large graph is some million objects, none of them garbage: looking for cycles would take half the time
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(model, example_inputs=examples, workdir=Path(private), check=timing).model
        found = inspect(loaded, shapes_of(shape), batch or 1, threads, timing, model)
    gc.enable()
    coupled = _coupled(loaded) if channels else None
    if as_json:
        history = [dataclasses.asdict(s) for s in loaded.history]
        ports = {"inputs": [dataclasses.asdict(p) for p in loaded.inputs], "outputs": [dataclasses.asdict(p) for p in loaded.outputs]}
        more = {"channels": _to_json(coupled)} if coupled else {}
        print_json(found.to_json() | ports | {"history": history, "digest": loaded.digest} | more)
    else:
        from hasten.report.look import show_channels, show_inspection

        show_inspection(loaded, found)
        if coupled:
            show_channels(coupled)


def _coupled(model: Model) -> Coupled:
    from hasten.passes.fold_constants import FoldConstants, fold_constants
    from hasten.shrink.groups import couple

    return couple(fold_constants(model, FoldConstants(), None))


def _to_json(coupled: Coupled) -> dict[str, Any]:
    groups = [
        {
            "name": g.name,
            "node": g.node,
            "channels": g.channels,
            "first": g.describe(0),
            "inexact": g.inexact,
            "weights": [m.weight for m in g.members],
        }
        for g in coupled.groups
    ]
    return {"groups": groups, "frozen": [dataclasses.asdict(s) for s in coupled.frozen]}


def report(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="A folder that `hasten optimize` finished.", show_default=False)],
    form: Annotated[
        str, typer.Option("--format", help="html (a page to look at), markdown (for a pull request) or card (a model card).")
    ] = "html",
    out: Annotated[str | None, typer.Option("-o", "--out", help="The file; by default FOLDER/report.html, the others are printed.")] = None,
    debug: DebugOpt = False,
) -> None:
    """What came out of a run, to look at or to pass on: one page without a network, Markdown, or a model card.

    [bold]hasten report lenet.hasten[/]

    [bold]hasten report lenet.hasten --format markdown -o summary.md[/]
    """
    from hasten.folder import Folder
    from hasten.report import make
    from hasten.search.result import Result

    if out is None and form in make.FORMS and form != "html":
        Folder(Path(folder)).check()
        print_line(make.make(Result.load(folder), form).rstrip())
    else:
        print_line(f"{make.write(folder, form, out)}: open it in a browser" if form == "html" else str(make.write(folder, form, out)))


def doctor(
    peaks: Annotated[
        bool, typer.Option("--peaks", help="Measure this machine's peaks anew, say after it was busy; about 10 seconds.")
    ] = False,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """This machine, its instruction sets, the runtimes and extras, what is missing and how to add it; and a self-test of about 5 seconds.

    [bold]hasten doctor[/]

    [bold]hasten doctor --json[/]
    """
    from hasten.doctor import diagnose
    from hasten.measure.peaks import peaks as measure_peaks

    with telling(as_json, quiet):
        if peaks:
            measure_peaks(anew=True)
        found = diagnose()
    if as_json:
        print_json(found.to_json())
    else:
        from hasten.report.look import show_diagnosis

        show_diagnosis(found)
    if found.failed:
        raise ClaimFailed(f"the self-test failed: {found.failed[0]}")
