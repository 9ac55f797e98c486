"""Verbs that look: inspect, doctor, report."""

from __future__ import annotations

import dataclasses
import gc
import tempfile
from pathlib import Path
from typing import Annotated

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


def inspect_model(
    model: ModelArg,
    shape: ShapeOpt = None,
    batch: BatchOpt = None,
    threads: ThreadsOpt = None,
    timing: Annotated[bool, typer.Option("--timing/--no-timing", help="Run the model in onnxruntime, layer by layer, and advise.")] = True,
    example_input: ExampleOpt = None,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Operators, MACs, bytes; time per layer and its place below this machine's roof; what bounds the model, and what to try first.

    [bold]hasten inspect model.onnx[/]

    [bold]hasten inspect model.onnx --shape seq=128 --no-timing --json[/]
    """
    from hasten import doors
    from hasten.advise.inspection import inspect

    gc.disable()  # a large graph is some million objects, none of them garbage: looking for cycles would take half the time
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(model, example_inputs=examples, workdir=Path(private), check=timing).model
        found = inspect(loaded, shapes_of(shape), batch or 1, threads, timing, model)
    gc.enable()
    if as_json:
        history = [dataclasses.asdict(s) for s in loaded.history]
        ports = {"inputs": [dataclasses.asdict(p) for p in loaded.inputs], "outputs": [dataclasses.asdict(p) for p in loaded.outputs]}
        print_json(found.to_json() | ports | {"history": history, "digest": loaded.digest})
    else:
        from hasten.report.look import show_inspection

        show_inspection(loaded, found)


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
