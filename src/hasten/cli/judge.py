"""Verbs that judge: evaluate, benchmark, compare, verify."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

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
    OutputOpt,
    PreprocessOpt,
    PriceOpt,
    QuietOpt,
    RobustOpt,
    RobustSamplesOpt,
    RoundsOpt,
    RuntimeOpt,
    SeedOpt,
    ShapeOpt,
    TestOpt,
    ThreadsOpt,
    enter,
    is_given,
    print_json,
    print_line,
    samples_alone,
    telling,
)
from hasten.errors import BadInput, ClaimFailed, Inconclusive, Unsupported


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
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """The metric's value on the test split with its 95 % interval, in the runtime that would run it.

    [bold]hasten evaluate lenet.onnx --data mnist/[/]

    [bold]hasten evaluate lenet.hasten --data mnist/ --metric f1[/]
    """
    from hasten.measure.compare import evaluate as judge

    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed)
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        contestant = enter(model, Path(private), runtime, threads, batch, shape, example_input)
        found = judge(contestant, options.task().bind(contestant.model))
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        low, high = found.interval.low, found.interval.high
        print_line(f"{contestant.name}: {found.metric} {found.value:.4f}, 95 % interval {low:.4f} to {high:.4f}, {found.samples} samples")


def benchmark(
    context: typer.Context,
    models: Annotated[list[str] | None, typer.Argument(help="Models, or folders that hasten wrote; the first is compared with.")] = None,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="What each kernel of the native engine does in a second: of the models named, or of a fixed list."),
    ] = False,
    data: DataOpt = None,
    runtime: RuntimeOpt = "onnxruntime",
    rounds: RoundsOpt = 6,
    price_per_hour: PriceOpt = None,
    preprocess: PreprocessOpt = None,
    label: LabelOpt = None,
    labels: LabelsOpt = None,
    shape: ShapeOpt = None,
    example_input: ExampleOpt = None,
    threads: ThreadsOpt = None,
    batch: BatchOpt = None,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Time models side by side, each in fresh processes, interleaved; with the noise floor.

    [bold]hasten benchmark lenet.onnx lenet.hasten[/]

    [bold]hasten benchmark a.onnx b.onnx --runtime openvino --batch 8[/]

    [bold]hasten benchmark --kernels int8.onnx[/]
    """
    from hasten.measure.benchmark import benchmark as measure
    from hasten.measure.contestant import feeds_for
    from hasten.report.terminal import show_benchmark

    if kernels:
        for option in NOT_OF_KERNELS:
            if is_given(context, option):
                raise BadInput(
                    f"--{option.replace('_', '-')} came with --kernels, which times the native engine alone, on one thread; leave one out"
                )
        options = DataOptions(data, None, labels, label, preprocess)
        _benchmark_kernels(models or [], options, shape, example_input, batch, quiet, as_json)
        return
    if not models:
        raise BadInput("benchmark times models, and none was named; give some, or --kernels for the kernels of the native engine")
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        contestants = [enter(m, Path(private), runtime, threads, batch, shape, example_input) for m in models]
        task = DataOptions(data, None, labels, label, preprocess).task()
        feeds = [feeds_for(c, task.bind(c.model) if task else None) for c in contestants]
        found = measure(contestants, feeds, rounds, price_per_hour)
    if as_json:
        print_json(found.to_json())
    else:
        show_benchmark(found)
    if all(s.failed for s in found.standings):
        raise Unsupported(f"none of the models could be run: {found.standings[0].name}: {found.standings[0].failed}")


NOT_OF_KERNELS = ("runtime", "rounds", "threads", "price_per_hour")


def _benchmark_kernels(
    models: list[str], options: DataOptions, shape: list[str] | None, example: str | None, batch: int | None, quiet: bool, as_json: bool
) -> None:
    """Time the kernels of these models, or of the grid."""
    from hasten.measure import kernels
    from hasten.measure.contestant import feeds_for
    from hasten.report.terminal import show_kernels

    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        found = []
        for source in models:
            entered = enter(source, Path(private), "native", 1, batch, shape, example)
            task = options.task()
            feeds = feeds_for(entered, task.bind(entered.model) if task else None)
            found.append(kernels.of_model(Path(source).name, entered.model, feeds, entered.subject.target.batch))
        if not models:
            found.append(kernels.of_grid())
    if as_json:
        print_json([f.to_json() for f in found])
    else:
        for one in found:
            show_kernels(one)


def compare(
    before: Annotated[str, typer.Argument(help="The model, or folder, that is compared with.")],
    after: Annotated[str, typer.Argument(help="The model, or folder, that is judged.")],
    data: Annotated[str, typer.Option("--data", help="Data to judge by.")],
    max_drop: Annotated[float | None, typer.Option("--max-drop", help="Gate: the drop of the metric that is allowed.")] = None,
    max_slowdown: Annotated[
        float | None, typer.Option("--max-slowdown", help="Gate: how many times slower is allowed, such as 1.05.")
    ] = None,
    skip_speed: Annotated[bool, typer.Option("--skip-speed", help="Judge accuracy alone.")] = False,
    robust: RobustOpt = False,
    robust_samples: RobustSamplesOpt = None,
    explain: ExplainOpt = False,
    explain_samples: ExplainSamplesOpt = None,
    runtime: RuntimeOpt = "onnxruntime",
    rounds: RoundsOpt = 6,
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    no_labels: NoLabelsOpt = False,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    shape: ShapeOpt = None,
    example_input: ExampleOpt = None,
    threads: ThreadsOpt = None,
    batch: BatchOpt = None,
    seed: SeedOpt = 0,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Two models on the same samples, and side by side in time: difference with interval, flips, classes. A gate for CI (exit codes 0, 6, 7).

    [bold]hasten compare a.onnx b.onnx --data mnist/ --max-drop 0.005 --max-slowdown 1.05[/]

    [bold]hasten compare model.onnx model.hasten --data images.zip --preprocess imagenet-torch[/]
    """
    from hasten.measure import compare as comparing
    from hasten.measure.explain import SAMPLES as EXPLAIN_SAMPLES
    from hasten.report.terminal import show_comparison

    samples_alone(robust, robust_samples, explain, explain_samples)
    comparing.check_gates(max_drop, max_slowdown, not skip_speed)
    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed, no_labels)
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        sides = [enter(m, Path(private), runtime, threads, batch, shape, example_input) for m in (before, after)]
        task = options.task().bind(sides[0].model)
        extras: dict[str, Any] = {}
        if explain:
            extras["explanation"] = comparing.attributions(sides[0], sides[1], task, explain_samples or EXPLAIN_SAMPLES, seed)
        if robust:
            extras["robustness"], extras["calibration"] = comparing.under_corruption(sides[0], sides[1], task, robust_samples, seed)
        found = comparing.compare(sides[0], sides[1], task, max_drop, max_slowdown, not skip_speed, rounds)
        found = dataclasses.replace(found, **extras)
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


def verify(
    folder: Annotated[str, typer.Argument(help="A folder that `hasten optimize` wrote.")],
    data: DataOpt = None,
    skip_speed: Annotated[bool, typer.Option("--skip-speed", help="For another machine: digests and accuracy alone.")] = False,
    rounds: RoundsOpt = 6,
    test: TestOpt = None,
    labels: LabelsOpt = None,
    label: LabelOpt = None,
    no_labels: NoLabelsOpt = False,
    preprocess: PreprocessOpt = None,
    metric: MetricOpt = "accuracy",
    lower_is_better: LowerOpt = False,
    output: OutputOpt = None,
    seed: SeedOpt = 0,
    quiet: QuietOpt = False,
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure again what a folder claims: digests, speed, and accuracy where data is given. Exit code 6 where a claim fails.

    [bold]hasten verify lenet.hasten --data mnist/[/]

    [bold]hasten verify lenet.hasten --skip-speed[/]
    """
    from hasten.measure import verify as verifying
    from hasten.report.terminal import show_claims

    options = DataOptions(data, test, labels, label, preprocess, metric, lower_is_better, output, seed, no_labels)
    with telling(as_json, quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
        claims = verifying.verify(Path(folder), Path(private), options.task(), skip_speed, rounds)
    if as_json:
        print_json([dataclasses.asdict(c) for c in claims])
    else:
        show_claims(claims)
    if failed := [c.name for c in claims if c.state == verifying.FAILS]:
        raise ClaimFailed(f"{folder}: the claim on {' and '.join(failed)} does not hold here")
    if not skip_speed and any(c.name == "speed" and c.state == verifying.OPEN for c in claims):
        raise Inconclusive(f"{folder}: the speed was measured on another machine; --skip-speed leaves it out")
