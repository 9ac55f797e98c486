"""The command line. Verbs of the judge and the search stand here; those of the techniques come from plan.TECHNIQUES."""

from __future__ import annotations

import dataclasses
import inspect as inspection
import json
import math
import sys
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten import plan
from hasten.errors import BadInput, ClaimFailed, HastenError, Inconclusive, NothingBetter, OutOfResources, Unsupported
from hasten.version import __version__

UsageError: Any = typer.BadParameter.__base__
"""click's, wherever this typer keeps it."""

app = typer.Typer(
    name="hasten",
    help="Make a trained neural network faster and smaller on the machine where it runs, within an accuracy budget, and prove both.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 2 bad input, 3 nothing better, 4 unsupported model, 5 out of resources, 6 a claim failed, 7 inconclusive.",
)
DO, LOOK, JUDGE, TECHNIQUES = "Do", "Look", "Judge", "Techniques"

ModelArg = Annotated[str, typer.Argument(help="The model: .onnx (.xz, .gz), .keras, .h5, .pt2, or file.py:function.", show_default=False)]
DataOpt = Annotated[
    str | None,
    typer.Option("--data", help="Data: .npz, .npy, .csv, a folder of idx files, a folder or zip of pictures, or file.py:function."),
]
TestOpt = Annotated[str | None, typer.Option("--test", help="Data that judges, where it lies apart.")]
LabelsOpt = Annotated[str | None, typer.Option("--labels", help="Labels that lie apart: a CSV file,class_index for pictures, or .npy.")]
LabelOpt = Annotated[str | None, typer.Option("--label", help="The label's column in a CSV, or its array in an .npz.")]
PreprocessOpt = Annotated[
    str | None,
    typer.Option(
        "--preprocess",
        help="For pictures: unit, raw, imagenet-torch, imagenet-caffe, imagenet-tf, mnist, cifar10, or 'mean=..;std=..;scale=..;color=BGR'.",
    ),
]
MetricOpt = Annotated[
    str, typer.Option("--metric", help="accuracy, top-5, f1, auc, mse, rmse, mae, cosine, nll, or file.py:name.", rich_help_panel="Data")
]
LowerOpt = Annotated[bool, typer.Option("--lower-is-better", help="For a metric of your own.", rich_help_panel="Data")]
OutputOpt = Annotated[str | None, typer.Option("--output", help="The output that is judged, the first by default.")]
ShapeOpt = Annotated[list[str] | None, typer.Option("--shape", help="Size of a dynamic axis, such as seq=128; again for each.")]
ExampleOpt = Annotated[str | None, typer.Option("--example-input", help="For an nn.Module: 1x3x224x224, or 1x128:int64, by commas.")]
ThreadsOpt = Annotated[int | None, typer.Option("--threads", min=1, help="Threads; by default the cores that this process may use.")]
BatchOpt = Annotated[int | None, typer.Option("--batch", min=1, help="Samples a call; 1, or 32 for throughput, by default.")]
RuntimeOpt = Annotated[str, typer.Option("--runtime", help="onnxruntime, openvino or reference.")]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, help="Seed of the splits.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
OutOpt = Annotated[str | None, typer.Option("-o", "--out", help="The folder or file to write.")]
RoundsOpt = Annotated[int, typer.Option("--rounds", min=2, help="Rounds of fresh processes.")]


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """What the data options say."""

    data: str | None
    test: str | None
    labels: str | None
    label: str | None
    preprocess: str | None
    metric: str = "accuracy"
    lower_is_better: bool = False
    output: str | None = None
    seed: int = 0

    def task(self) -> Any:
        """A Task, None where there is no data."""
        from hasten.task import Task

        if self.data is None:
            for name in ("test", "labels", "label", "preprocess"):
                if getattr(self, name) is not None:
                    raise BadInput(f"--{name} came without --data; give the data too")
            return None
        return Task(
            self.data,
            test=self.test,
            metric=self.metric,
            higher_is_better=not self.lower_is_better,
            output=self.output,
            preprocess=self.preprocess,
            label=self.label,
            labels=self.labels,
            seed=self.seed,
        )


@app.command(rich_help_panel=DO)
def optimize(
    model: ModelArg,
    data: DataOpt = None,
    out: OutOpt = None,
    max_drop: Annotated[float, typer.Option("--max-drop", help="Drop of the metric that is allowed, absolute.")] = 0.01,
    min_agreement: Annotated[float, typer.Option("--min-agreement", help="Without labels: agreement with the original to keep.")] = 0.98,
    objective: Annotated[str, typer.Option("--objective", help="latency, throughput or size.")] = "latency",
    max_latency: Annotated[str | None, typer.Option("--max-latency", help="A limit such as 10us or 2ms, at --percentile.")] = None,
    percentile: Annotated[float, typer.Option("--percentile", help="The percentile that --max-latency is about.")] = 50.0,
    max_size: Annotated[str | None, typer.Option("--max-size", help="A limit for the file, such as 4MB.")] = None,
    max_memory: Annotated[str | None, typer.Option("--max-memory", help="A limit for the process, such as 500MB.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time-limit", help="Stop trying after this, such as 10m.")] = None,
    batch: BatchOpt = None,
    threads: ThreadsOpt = None,
    runtimes: Annotated[str, typer.Option("--runtimes", help="Runtimes to try, by commas.")] = "onnxruntime,openvino",
    strict: Annotated[bool, typer.Option("--strict", help="Accept only what the test data proves.")] = False,
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    shape: ShapeOpt = None,
    keep_dynamic: Annotated[bool, typer.Option("--keep-dynamic", help="Leave dynamic axes dynamic, whatever shape the data has.")] = False,
    example_input: ExampleOpt = None,
    seed: SeedOpt = 0,
    resume: Annotated[bool, typer.Option("--resume", help="A finished folder: show its result again.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Start afresh in an existing folder of hasten's.")] = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Find the fastest model that keeps the budget, and prove it. An interrupted run goes on with the same command.

    [bold]hasten optimize lenet.onnx --data mnist/ --max-drop 0.005 -o lenet.hasten[/]

    [bold]hasten optimize model.onnx --data images.zip --labels labels.csv --preprocess imagenet-torch[/]
    """
    from hasten import doors
    from hasten.search.budget import parse_quantity
    from hasten.search.optimize import optimize as run

    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed)
    say = _quiet if as_json else print_line
    result = run(
        model,
        options.task(),
        out=out or f"{_stem(model)}.hasten",
        example_inputs=doors.parse_example_input(example_input) if example_input else None,
        shapes=_shapes(shape),
        keep_dynamic=keep_dynamic,
        resume=resume,
        force=force,
        say=say,
        max_drop=max_drop,
        min_agreement=min_agreement,
        objective=objective,
        max_latency=parse_quantity(max_latency, "time") if max_latency else None,
        percentile=percentile,
        max_size=int(parse_quantity(max_size, "size")) if max_size else None,
        max_memory=int(parse_quantity(max_memory, "size")) if max_memory else None,
        time_limit=parse_quantity(time_limit, "time") if time_limit else None,
        batch=batch,
        threads=threads,
        strict=strict,
        runtimes=tuple(r.strip() for r in runtimes.split(",") if r.strip()),
        seed=seed,
    )
    if as_json:
        print_json(result.manifest)
    else:
        from hasten.report.terminal import show_result

        show_result(result)
    if not result.better:
        raise NothingBetter(result.reason)


@app.command("run", rich_help_panel=DO)
def run_plan(
    plan_file: Annotated[str, typer.Argument(metavar="PLAN.JSON", help="A plan that `hasten optimize` wrote.")],
    model: ModelArg,
    out: Annotated[str, typer.Option("-o", "--out", help="The folder to write model.onnx and plan.json to.")],
    data: DataOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    example_input: ExampleOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Replay a plan: the same model, byte for byte. Data is needed only where the plan was never run.

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
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(model, example_inputs=examples, shapes=todo.shapes or None, workdir=Path(private)).model
        task = DataOptions(data, None, labels, label, preprocess).task()
        made, done = plan.run(todo, loaded, task.bind(loaded) if task else None)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise unwritable(out, e, "give -o a folder that can") from e
    made.save(place / MODEL)
    write_atomically(place / PLAN, done.to_json().encode())
    print_line(f"{place / MODEL}: {len(done.steps)} techniques, {(place / MODEL).stat().st_size} bytes, digest {made.digest[:16]}")


@app.command(rich_help_panel=DO)
def convert(
    model: ModelArg,
    out: Annotated[str, typer.Argument(help="The .onnx file to write.")],
    example_input: ExampleOpt = None,
    shape: ShapeOpt = None,
    debug: DebugOpt = False,
) -> None:
    """Carry a model through its door to ONNX, checked against its own framework's prediction. Nothing is optimised.

    [bold]hasten convert model.keras model.onnx[/]

    [bold]hasten convert net.py:make net.onnx --example-input 1x3x32x32[/]
    """
    from hasten import doors

    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        examples = doors.parse_example_input(example_input) if example_input else None
        loaded = doors.load(model, example_inputs=examples, shapes=_shapes(shape), workdir=Path(private))
        _save(loaded.model, out)
    for note in loaded.notes:
        print_line(note)
    print_line(f"{out}: {len(loaded.model.ir.graph)} nodes, inputs {_ports(loaded.model.inputs)}, outputs {_ports(loaded.model.outputs)}")


@app.command("inspect", rich_help_panel=LOOK)
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
    found = facts(loaded, _shapes(shape), batch or 1)
    if as_json:
        history = [dataclasses.asdict(s) for s in loaded.history]
        ports = {"inputs": [dataclasses.asdict(p) for p in loaded.inputs], "outputs": [dataclasses.asdict(p) for p in loaded.outputs]}
        print_json(found.to_json() | ports | {"history": history, "digest": loaded.digest})
    else:
        show_facts(loaded, found)


@app.command(rich_help_panel=JUDGE)
def evaluate(
    model: ModelArg,
    data: Annotated[str, typer.Option("--data", help="Data to judge by.")],
    runtime: RuntimeOpt = "onnxruntime",
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    shape: ShapeOpt = None,
    example_input: ExampleOpt = None,
    threads: ThreadsOpt = None,
    batch: BatchOpt = None,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """The metric's value on the test split with its 95 % interval, in the runtime that would run it.

    [bold]hasten evaluate lenet.onnx --data mnist/[/]

    [bold]hasten evaluate lenet.hasten --data mnist/ --metric f1[/]
    """
    from hasten.measure.compare import evaluate as judge

    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed)
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        contestant = _enter(model, Path(private), runtime, threads, batch, shape, example_input)
        found = judge(contestant, options.task().bind(contestant.model))
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        low, high = found.interval.low, found.interval.high
        print_line(f"{contestant.name}: {found.metric} {found.value:.4f}, 95 % interval {low:.4f} to {high:.4f}, {found.samples} samples")


@app.command(rich_help_panel=JUDGE)
def benchmark(
    models: Annotated[list[str], typer.Argument(help="Models, or folders that hasten wrote; the first is compared with.")],
    data: DataOpt = None,
    runtime: RuntimeOpt = "onnxruntime",
    rounds: RoundsOpt = 6,
    preprocess: PreprocessOpt = None,
    label: LabelOpt = None,
    labels: LabelsOpt = None,
    shape: ShapeOpt = None,
    example_input: ExampleOpt = None,
    threads: ThreadsOpt = None,
    batch: BatchOpt = None,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Time models side by side, each in fresh processes, interleaved; with the noise floor.

    [bold]hasten benchmark lenet.onnx lenet.hasten[/]

    [bold]hasten benchmark a.onnx b.onnx --runtime openvino --batch 8[/]
    """
    from hasten.measure.benchmark import benchmark as measure
    from hasten.measure.contestant import feeds_for
    from hasten.report.terminal import show_benchmark

    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        contestants = [_enter(m, Path(private), runtime, threads, batch, shape, example_input) for m in models]
        task = DataOptions(data, None, labels, label, preprocess).task()
        feeds = [feeds_for(c, task.bind(c.model) if task else None) for c in contestants]
        found = measure(contestants, feeds, rounds, _quiet if as_json else print_line)
    if as_json:
        print_json(found.to_json())
    else:
        show_benchmark(found)
    if all(s.failed for s in found.standings):
        raise Unsupported(f"none of the models could be run: {found.standings[0].name}: {found.standings[0].failed}")


@app.command(rich_help_panel=JUDGE)
def compare(
    before: Annotated[str, typer.Argument(help="The model, or folder, that is compared with.")],
    after: Annotated[str, typer.Argument(help="The model, or folder, that is judged.")],
    data: Annotated[str, typer.Option("--data", help="Data to judge by.")],
    max_drop: Annotated[float | None, typer.Option("--max-drop", help="Gate: the drop of the metric that is allowed.")] = None,
    max_slowdown: Annotated[
        float | None, typer.Option("--max-slowdown", help="Gate: how many times slower is allowed, such as 1.05.")
    ] = None,
    skip_speed: Annotated[bool, typer.Option("--skip-speed", help="Judge accuracy alone.")] = False,
    runtime: RuntimeOpt = "onnxruntime",
    rounds: RoundsOpt = 6,
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    shape: ShapeOpt = None,
    example_input: ExampleOpt = None,
    threads: ThreadsOpt = None,
    batch: BatchOpt = None,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Two models on the same samples, and side by side in time: difference with interval, flips, classes. A gate for CI (exit codes 0, 6, 7).

    [bold]hasten compare a.onnx b.onnx --data mnist/ --max-drop 0.005 --max-slowdown 1.05[/]

    [bold]hasten compare model.onnx model.hasten --data images.zip --preprocess imagenet-torch[/]
    """
    from hasten.measure import compare as comparing
    from hasten.report.terminal import show_comparison

    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed)
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        sides = [_enter(m, Path(private), runtime, threads, batch, shape, example_input) for m in (before, after)]
        task = options.task().bind(sides[0].model)
        say = _quiet if as_json else print_line
        found = comparing.compare(sides[0], sides[1], task, max_drop, max_slowdown, not skip_speed, rounds, say)
    if as_json:
        print_json(found.to_json())
    else:
        show_comparison(found, sides[0].name, sides[1].name)
    gates = {"accuracy": found.accuracy_gate, "speed": found.speed_gate}
    if broken := [name for name, gate in gates.items() if gate == comparing.BROKEN]:
        raise ClaimFailed(f"the gate for {' and '.join(broken)} is broken: {after} is worse than the limit allows")
    if undecided := [name for name, gate in gates.items() if gate == comparing.UNDECIDED]:
        raise Inconclusive(
            f"the gate for {' and '.join(undecided)} can't be decided: the interval lies across the limit; use more data or rounds"
        )


@app.command(rich_help_panel=JUDGE)
def verify(
    folder: Annotated[str, typer.Argument(help="A folder that `hasten optimize` wrote.")],
    data: DataOpt = None,
    skip_speed: Annotated[bool, typer.Option("--skip-speed", help="For another machine: digests and accuracy alone.")] = False,
    rounds: RoundsOpt = 6,
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure again what a folder claims: digests, speed, and accuracy where data is given. Exit code 6 where a claim fails.

    [bold]hasten verify lenet.hasten --data mnist/[/]

    [bold]hasten verify lenet.hasten --skip-speed[/]
    """
    from hasten.measure import verify as verifying
    from hasten.report.terminal import show_claims

    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed)
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        say = _quiet if as_json else print_line
        claims = verifying.verify(Path(folder), Path(private), options.task(), skip_speed, rounds, say)
    if as_json:
        print_json([dataclasses.asdict(c) for c in claims])
    else:
        show_claims(claims)
    if failed := [c.name for c in claims if c.state == verifying.FAILS]:
        raise ClaimFailed(f"{folder}: the claim on {' and '.join(failed)} does not hold here")
    if not skip_speed and any(c.name == "speed" and c.state == verifying.OPEN for c in claims):
        raise Inconclusive(f"{folder}: the speed was measured on another machine; --skip-speed leaves it out")


def _technique_command(row: plan.Row) -> Callable[..., None]:
    """The verb of one technique: its settings' fields are its options."""
    fields = dataclasses.fields(row.settings)
    types = typing.get_type_hints(row.settings)

    def command(**given: Any) -> None:
        from hasten import doors

        source, out = given.pop("model"), given.pop("out")
        options = DataOptions(
            given.pop("data", None), None, given.pop("labels", None), given.pop("label", None), given.pop("preprocess", None)
        )
        shapes, example = _shapes(given.pop("shape")), given.pop("example_input")
        given.pop("debug")
        settings = row.settings(**{k: tuple(v or ()) if typing.get_origin(types[k]) is tuple else v for k, v in given.items()})
        with tempfile.TemporaryDirectory(prefix="hasten-") as private:
            examples = doors.parse_example_input(example) if example else None
            model = doors.load(source, example_inputs=examples, shapes=shapes, workdir=Path(private)).model
            task = options.task()
            bound = task.bind(model) if task else None
            if row.phase >= plan.Phase.QUANTIZE:
                from hasten.search.candidates import GRAPH, Recipe

                model = plan.run(Recipe("prepare", GRAPH).plan(model), model, bound)[0]
                print_line(f"first: {', '.join(name.replace('_', '-') for name, _ in GRAPH)} (what stands before {row.verb} on the road)")
            made = row.apply(model, settings, bound)
            _save(made, out)
        step = made.history[-1]
        print_line(f"{out}: {row.verb} changed {step.changed} nodes, left {len(step.skipped)} alone, {Path(out).stat().st_size} bytes")
        for skip in step.skipped:
            print_line(f"  left alone: {skip.node}: {skip.why}")

    kinds = inspection.Parameter.POSITIONAL_OR_KEYWORD, inspection.Parameter.KEYWORD_ONLY
    parameters = [
        inspection.Parameter("model", kinds[0], annotation=ModelArg),
        inspection.Parameter("out", kinds[0], annotation=Annotated[str, typer.Argument(help="The .onnx file to write.")]),
    ]
    for field in fields:
        kind = types[field.name]
        listed = typing.get_origin(kind) is tuple
        annotation = Annotated[list[str] | None if listed else kind, typer.Option(rich_help_panel="Settings")]  # type: ignore[valid-type]
        parameters.append(inspection.Parameter(field.name, kinds[1], annotation=annotation, default=None if listed else field.default))
    if row.observes:
        for name, kind in (("data", DataOpt), ("labels", LabelsOpt), ("label", LabelOpt), ("preprocess", PreprocessOpt)):
            parameters.append(inspection.Parameter(name, kinds[1], annotation=kind, default=None))
    for name, kind, default in (("shape", ShapeOpt, None), ("example_input", ExampleOpt, None), ("debug", DebugOpt, False)):
        parameters.append(inspection.Parameter(name, kinds[1], annotation=kind, default=default))
    command.__signature__ = inspection.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    data = " --data images.zip" if row.observes else ""
    settings_text = inspection.getdoc(row.settings) or ""
    command.__doc__ = (
        f"{row.about} Effect: {row.effect}; phase: {row.phase.name.lower()}.\n\n{settings_text}\n\n"
        f"[bold]hasten {row.verb} model.onnx out.onnx{data}[/]\n\n[bold]hasten {row.verb} model.keras out.onnx{data}[/]"
    )
    return command


def _add_techniques(asked: str | None) -> None:
    """Register the techniques' verbs. Only the one that is asked for is imported: `hasten --help` stays quick."""
    for row in plan.TECHNIQUES:
        if row.verb == asked:
            app.command(row.verb, rich_help_panel=TECHNIQUES)(_technique_command(row))
        else:
            app.command(row.verb, rich_help_panel=TECHNIQUES, help=row.about)(lambda: None)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True)] = False) -> None:
    if version:
        print_line(f"hasten {__version__}")
        raise typer.Exit()


def _enter(
    source: str, place: Path, runtime: str, threads: int | None, batch: int | None, shape: list[str] | None, example: str | None
) -> Any:
    from hasten import doors
    from hasten.measure.contestant import enter
    from hasten.measure.machine import cores
    from hasten.runtimes import Target

    examples = doors.parse_example_input(example) if example else None
    target = Target(threads or cores(), batch or 1)
    return enter(source, place, runtime=runtime, target=target, shapes=_shapes(shape), example_inputs=examples)


def _shapes(texts: list[str] | None) -> dict[str, int] | None:
    """`seq=128` … as a dict. Raises BadInput."""
    shapes = {}
    for text in texts or []:
        name, _, size = text.partition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise BadInput(f"--shape {text!r} is not understood; expected AXIS=SIZE such as seq=128")
        shapes[name] = int(size)
    return shapes or None


def _save(model: Any, out: str) -> None:
    from hasten.folder import unwritable

    try:
        model.save(out)
    except OSError as e:
        raise unwritable(out, e, "give a place that can") from e


def _stem(model: str) -> str:
    """A name for the output folder: the model's file without its suffixes."""
    name = Path(model.rpartition(":")[0] if ".py:" in model else model).name
    return name.split(".")[0] or "model"


def _ports(ports: Any) -> str:
    return ", ".join(f"{p.name} {p.dtype}[{', '.join(str(d) for d in p.shape)}]" for p in ports)


def print_line(line: str) -> None:
    """One line to standard output, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """One line of JSON; what is not a finite number becomes null, because JSON has no NaN."""
    print_line(json.dumps(_finite(value), allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _quiet(line: str) -> None:
    """For --json: nothing but the object."""


def main(arguments: list[str] | None = None) -> None:
    """The command. What goes wrong becomes one line on standard error and an exit code; a traceback comes with --debug only."""
    arguments = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        _add_techniques(next((a for a in arguments if not a.startswith("-")), None))
        code = app(arguments, prog_name="hasten", standalone_mode=False)
        if code == 130:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        raise _end("interrupted; nothing that was finished is lost, the same command goes on", 130) from None
    except UsageError as e:
        verb = e.ctx.command_path if e.ctx else "hasten"
        raise _end(f"{e.format_message().rstrip('.')}; `{verb} --help` lists what there is.", BadInput.exit_code) from None
    except Exception as e:
        if "--debug" in arguments:
            raise
        raise _end(*_explained(e)) from None
    raise SystemExit(code or 0)


def _explained(error: Exception) -> tuple[str, int]:
    """What to print and the exit code."""
    if isinstance(error, HastenError):
        return str(error), error.exit_code
    if isinstance(error, MemoryError):
        return "out of memory; use a smaller sample of the data, or a smaller --batch", OutOfResources.exit_code
    if isinstance(error, OSError):
        return f"{error.strerror or error}; free space or choose another place, and run the same command again", OutOfResources.exit_code
    return f"this is a fault of hasten's, not yours: {type(error).__name__}: {error}. Run it with --debug and report what it prints.", 1


def _end(line: str, code: int) -> SystemExit:
    sys.stderr.write(f"hasten: {' '.join(line.split())}\n")
    return SystemExit(code)
