"""Verbs that make: optimize, run, convert."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten import plan
from hasten.cli.options import (
    BatchOpt,
    DataOpt,
    DataOptions,
    DebugOpt,
    ExampleOpt,
    ExplainOpt,
    ExplainSamplesOpt,
    JsonOpt,
    LabelOpt,
    LabelsOpt,
    LowerOpt,
    MetricOpt,
    ModelArg,
    NoLabelsOpt,
    OutOpt,
    OutputOpt,
    PreprocessOpt,
    PriceOpt,
    QuietOpt,
    RobustOpt,
    RobustSamplesOpt,
    SeedOpt,
    ShapeOpt,
    TestOpt,
    ThreadsOpt,
    TrainDataOpt,
    VerboseOpt,
    is_given,
    names,
    ports,
    print_json,
    print_line,
    samples_alone,
    save,
    shapes_of,
    stem,
    telling,
)
from hasten.errors import BadInput, NothingBetter


def optimize(
    context: typer.Context,
    model: ModelArg,
    data: DataOpt = None,
    train_data: TrainDataOpt = None,
    out: OutOpt = None,
    purpose: Annotated[
        str | None,
        typer.Option(
            "--for", help="A profile: realtime, server, mobile, microcontroller, batch or medical. What else is given counts more."
        ),
    ] = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Drop of the metric that is allowed, absolute.")] = 0.01,
    min_agreement: Annotated[float, typer.Option("--min-agreement", help="Without labels: agreement with the original to keep.")] = 0.98,
    objective: Annotated[
        str, typer.Option("--objective", help="latency, throughput, size or flash (as C, on a microcontroller).")
    ] = "latency",
    max_latency: Annotated[str | None, typer.Option("--max-latency", help="A limit such as 10us or 2ms, at --percentile.")] = None,
    percentile: Annotated[float, typer.Option("--percentile", help="The percentile that --max-latency is about.")] = 50.0,
    max_size: Annotated[str | None, typer.Option("--max-size", help="A limit for the file, such as 4MB.")] = None,
    max_memory: Annotated[str | None, typer.Option("--max-memory", help="A limit for the process, such as 500MB.")] = None,
    max_flash: Annotated[str | None, typer.Option("--max-flash", help="As C: a limit for the constants, such as 256KiB.")] = None,
    max_ram: Annotated[str | None, typer.Option("--max-ram", help="As C: a limit for activations and outputs, such as 64KiB.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Stop trying after this, such as 10m.")] = None,
    batch: BatchOpt = None,
    threads: ThreadsOpt = None,
    runtimes: Annotated[
        str,
        typer.Option("--runtimes", help="Runtimes to try, by commas: also torch and torch-compiled, which take longer."),
    ] = "onnxruntime,openvino,native",
    strict: Annotated[bool, typer.Option("--strict/--no-strict", help="Accept only what the test data proves.")] = False,
    guard: Annotated[
        list[str] | None,
        typer.Option("--guard", help="recall:CLASS or recall:all: a recall that must not fall; again for each. none: no guard."),
    ] = None,
    guard_drop: Annotated[float, typer.Option("--guard-drop", help="Drop of a guarded recall that is allowed, absolute.")] = 0.0,
    recipes: Annotated[str, typer.Option("--recipes", help="Recipes to try, by commas, such as 'graph,int8 static'; all by default.")] = "",
    no_training: Annotated[bool, typer.Option("--no-training", help="Train nothing, although --train-data came.")] = False,
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    no_labels: NoLabelsOpt = False,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    shape: ShapeOpt = None,
    keep_dynamic: Annotated[bool, typer.Option("--keep-dynamic", help="Leave dynamic axes dynamic, whatever shape the data has.")] = False,
    example_input: ExampleOpt = None,
    seed: SeedOpt = 0,
    robust: RobustOpt = False,
    robust_samples: RobustSamplesOpt = None,
    explain: ExplainOpt = False,
    explain_samples: ExplainSamplesOpt = None,
    price_per_hour: PriceOpt = None,
    watts_per_core: Annotated[
        float | None,
        typer.Option("--watts-per-core", help="For the estimate of energy where the processor's counters can't be read; 6 by default."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="A finished folder: show its result again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start afresh in an existing folder of hasten's.")] = False,
    quiet: QuietOpt = False,
    verbose: VerboseOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Find the fastest model that keeps the budget, and prove it. An interrupted run goes on with the same command.

    [bold]hasten optimize lenet.onnx --data mnist/ --max-drop 0.005 -o lenet.hasten[/]

    [bold]hasten optimize model.onnx --data images.zip --labels labels.csv --preprocess imagenet-torch --for realtime[/]

    [bold]hasten optimize lenet.onnx --data mnist/ --train-data mnist/ --time-limit 20m[/]
    """
    from hasten import doors
    from hasten.measure.energy import WATTS_PER_CORE
    from hasten.report.make import write as write_report
    from hasten.search.budget import parse_quantity
    from hasten.search.candidates import named
    from hasten.search.extras import Extras
    from hasten.search.optimize import optimize as run

    watts = WATTS_PER_CORE if watts_per_core is None else watts_per_core
    samples_alone(robust, robust_samples, explain, explain_samples)
    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed, no_labels, train_data)
    budget = {
        "max_drop": max_drop,
        "min_agreement": min_agreement,
        "objective": objective,
        "max_latency": parse_quantity(max_latency, "time") if max_latency else None,
        "percentile": percentile,
        "max_size": int(parse_quantity(max_size, "size")) if max_size else None,
        "max_memory": int(parse_quantity(max_memory, "size")) if max_memory else None,
        "max_flash": int(parse_quantity(max_flash, "size")) if max_flash else None,
        "max_ram": int(parse_quantity(max_ram, "size")) if max_ram else None,
        "time_limit": parse_quantity(time_limit, "time") if time_limit else None,
        "batch": batch,
        "threads": threads,
        "strict": strict,
        "runtimes": names(runtimes),
        "recipes": named(recipes),
        "training": not no_training,
        "guards": tuple(guard or ()),
        "guard_drop": guard_drop,
        "seed": seed,
    }
    with telling(as_json, quiet, verbose):
        result = run(
            model,
            options.task(),
            out=out or f"{stem(model)}.hasten",
            example_inputs=doors.parse_example_input(example_input) if example_input else None,
            shapes=shapes_of(shape),
            keep_dynamic=keep_dynamic,
            resume=resume,
            force=force,
            wanted=Extras(robust, robust_samples, explain, explain_samples, price_per_hour, watts),
            purpose=purpose,
            **_given(context, budget),
        )
    page = write_report(result.folder)
    if as_json:
        print_json(result.manifest)
    else:
        from hasten.report.terminal import show_result

        show_result(result, table=not quiet)
        print_line(f"look at it: {page}")
    if not result.better:
        raise NothingBetter(result.reason)


OPTION = {"guards": "guard", "training": "no_training"}
"""Fields of the budget whose parameter has another name."""


def _given(context: typer.Context, budget: dict[str, Any]) -> dict[str, Any]:
    """Those fields that the user really gave: a profile sets the others."""
    return {field: value for field, value in budget.items() if is_given(context, OPTION.get(field, field))}


def run_plan(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN.JSON", help="A plan that `hasten optimize` wrote.")],
    model: ModelArg,
    out: Annotated[str, typer.Option("-o", "--out", help="The folder to write model.onnx and plan.json to.")],
    data: DataOpt = None,
    train_data: TrainDataOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    example_input: ExampleOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Replay a plan: the same model, byte for byte. Data is needed only where the plan was never run, refits (prune-channels) or factorizes with
    data, or trains: a training is done again, which gives the same weights up to rounding.

    [bold]hasten run lenet.hasten/plan.json lenet.onnx -o again[/]

    [bold]hasten run plan.json model.onnx --data images.zip -o out[/]
    """
    from hasten import doors
    from hasten.folder import MODEL, PLAN, unwritable, write_atomically

    path = Path(plan_file)
    if not path.is_file():
        raise BadInput(f"{plan_file} does not exist; expected a plan.json that `hasten optimize` wrote")
    todo = plan.Plan.from_json(path.read_text(errors="replace"))
    place = Path(out)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise BadInput(f"{out} exists and is not an empty folder; give -o another one")
    with telling(quiet=quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(model, example_inputs=examples, shapes=todo.shapes or None, workdir=Path(private)).model
        task = DataOptions(data, None, labels, label, preprocess, train=train_data).task()
        made, done = plan.run(todo, loaded, task.bind(loaded) if task else None)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise unwritable(out, e, "give -o a folder that can") from e
    made.save(place / MODEL)
    write_atomically(place / PLAN, done.to_json().encode())
    print_line(f"{place / MODEL}: {len(done.steps)} techniques, {(place / MODEL).stat().st_size} bytes, digest {made.digest[:16]}")


FORMS = ("onnx", "packed", "c", "plan")
PLAN_SUFFIX = ".plan"
"""What `convert` writes."""


def convert(
    context: typer.Context,
    model: ModelArg,
    out: Annotated[
        str | None,
        typer.Argument(
            help="The file to write, for C a folder; for a folder of `hasten optimize` FOLDER/model.packed and FOLDER/c by default."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            help="onnx; packed: few bytes for storage, which every verb reads; c: C99 for microcontrollers, of an int8 model; plan: what the "
            "native engine's C interface loads. By default as OUT is called.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="For C: what files and identifiers are called; by default as MODEL is.")
    ] = None,
    data: DataOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    force: Annotated[bool, typer.Option("--force", help="For C: write over files that are there.")] = False,
    example_input: ExampleOpt = None,
    shape: ShapeOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Carry a model through its door to ONNX, checked against its own framework's prediction, pack it, or write it as C; nothing is optimised.

    [bold]hasten convert model.keras model.onnx[/]

    [bold]hasten convert net.py:make net.onnx --example-input 1x3x32x32[/]

    [bold]hasten convert model.onnx small.packed --to packed[/]

    [bold]hasten convert int8.onnx firmware/ --to c --data digits.npz[/]

    [bold]hasten convert int8.onnx digits.plan[/]
    """
    from hasten import doors, packed
    from hasten.folder import MANIFEST, MODEL, PACKED, C, Folder, unwritable
    from hasten.report.numbers import sizes

    if to is not None and to not in FORMS:
        raise BadInput(f"--to {to!r} is not understood; expected one of {', '.join(FORMS)}")
    by_name = {packed.SUFFIX: "packed", PLAN_SUFFIX: "plan"}
    source, form = model, to or next((f for suffix, f in by_name.items() if out is not None and out.endswith(suffix)), "onnx")
    for option in ("name", "data", "labels", "label", "preprocess", "force"):
        if form != "c" and is_given(context, option):
            raise BadInput(f"--{option} is for C code; give --to c too, or leave it out")
    if (Path(model) / MANIFEST).is_file():
        folder = Folder(Path(model))
        folder.check()
        source = str(folder.file(MODEL))
        out = str(folder.file({"packed": PACKED, "c": C}[form])) if out is None and form in ("packed", "c") else out
    if out is None:
        raise BadInput("convert writes one file, and none was named; give it as `hasten convert MODEL OUT`")
    if form == "onnx" and out.endswith(packed.SUFFIX):
        raise BadInput(f"--to onnx came with the file {out}, which would be read as packed; call it otherwise")
    with telling(quiet=quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(source, example_inputs=examples, shapes=shapes_of(shape), workdir=Path(private))
        if form == "c":
            options = DataOptions(data, None, labels, label, preprocess)
            lines = _write_c(loaded.model, Path(out), name or stem(source), options.task(), force)
        elif form == "onnx":
            save(loaded.model, out)
        elif form == "plan":
            lines = [_write_plan(loaded.model, Path(out))]
        else:
            try:
                found = packed.save(loaded.model, out)
            except OSError as e:
                raise unwritable(out, e, "give a place that can") from e
    for note in loaded.notes:
        print_line(note)
    if form == "packed":
        print_line(f"size: {sizes(found)}")
    if form in ("c", "plan"):
        for line in lines:
            print_line(line)
        return
    print_line(f"{out}: {len(loaded.model.ir.graph)} nodes, inputs {ports(loaded.model.inputs)}, outputs {ports(loaded.model.outputs)}")


def _write_plan(model: Any, place: Path) -> str:
    """Write the native engine's plan file; the line that tells of it."""
    from hasten.folder import unwritable, write_atomically
    from hasten.lower import lower
    from hasten.report.numbers import size

    plan = lower(model)
    data = plan.to_bytes()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, data)
    except OSError as e:
        raise unwritable(place, e, "give a place that can") from e
    return f"{place}: a plan of {len(plan.ops)} kernels, {size(len(data))}, for the native engine (hasten_load in C)"


def _write_c(model: Any, place: Path, name: str, task: Any, force: bool) -> list[str]:
    """Write the C code; the lines that tell of it. The test's samples are those of the data, if there is some."""
    from hasten.folder import unwritable
    from hasten.lower import c_export

    name = c_export.identifier(name)
    feeds = None
    if task is not None:
        split = task.bind(model).test
        feeds = next(iter(split.batches(c_export.SAMPLES)))
    made = c_export.export(model, name, feeds)
    try:
        c_export.save(made, place, force)
    except OSError as e:
        raise unwritable(place, e, "give a place that can") from e
    return [*c_export.table(made.footprint), *c_export.told(made, place), f"{place}: {', '.join(made.files)}"]
