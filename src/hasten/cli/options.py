"""What the verbs' options are, and what they have in common: data, shapes, contestants, printing."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten.errors import BadInput
from hasten.voice import Voice, speaking

ModelArg = Annotated[
    str, typer.Argument(help="The model: .onnx (.xz, .gz), .packed, .keras, .h5, .pt2, or file.py:function.", show_default=False)
]
DataOpt = Annotated[
    str | None,
    typer.Option("--data", help="Data: .npz, .npy, .csv, a folder of idx files, a folder or zip of pictures, or file.py:function."),
]
TrainDataOpt = Annotated[
    str | None,
    typer.Option("--train-data", help="Data to train on, given as --data is; where it is the same, what judges is left out of it."),
]
TeacherOpt = Annotated[
    str | None, typer.Option("--teacher", help="The model to learn from, given as MODEL is; or --student, which makes MODEL the teacher.")
]
SizeOpt = Annotated[
    bool,
    typer.Option(
        "--for-size",
        help="Train to zeros (--sparsity, --pattern) though no runtime here gets faster by them: for the packed size.",
        rich_help_panel="Settings",
    ),
]
TestOpt = Annotated[str | None, typer.Option("--test", help="Data that judges, where it lies apart.")]
LabelsOpt = Annotated[str | None, typer.Option("--labels", help="Labels that lie apart: a CSV file,class_index for pictures, or .npy.")]
NoLabelsOpt = Annotated[bool, typer.Option("--no-labels", help="Leave the data's labels out: agreement with the original is judged.")]
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
RuntimeOpt = Annotated[
    str,
    typer.Option(
        "--runtime", help="onnxruntime, onnxruntime-plain (not optimising the graph), openvino, native (hasten's own), torch or reference."
    ),
]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, help="Seed of the splits.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
QuietOpt = Annotated[bool, typer.Option("-q", "--quiet", help="Print the result and nothing on the way to it.")]
VerboseOpt = Annotated[bool, typer.Option("-v", "--verbose", help="Also say what was not tried, and why.")]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
OutOpt = Annotated[str | None, typer.Option("-o", "--out", help="The folder or file to write.")]
PriceOpt = Annotated[
    float | None,
    typer.Option("--price-per-hour", help="What an hour of this machine costs: adds the computed price of a million predictions."),
]
RobustOpt = Annotated[
    bool, typer.Option("--robust", help="Also under noise, blur, contrast, …, dropout, out of range; and the calibration error.")
]
RobustSamplesOpt = Annotated[
    int | None,
    typer.Option(
        "--robust-samples", min=2, help="Samples for --robust; by default 500, and fewer where they are large or a minute would not do."
    ),
]
ExplainOpt = Annotated[bool, typer.Option("--explain", help="Also whether both look at the same places: occlusion attributions.")]
ExplainSamplesOpt = Annotated[int | None, typer.Option("--explain-samples", min=2, help="Samples for --explain; 32 by default.")]
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
    no_labels: bool = False
    train: str | None = None

    def task(self) -> Any:
        """A Task, None where there is no data. Training data alone judges too, by a part that is left out of the training."""
        from hasten.task import Task

        if self.data is None and self.train is not None:
            return dataclasses.replace(self, data=self.train).task()
        if self.data is None:
            for name in ("test", "labels", "label", "preprocess"):
                if getattr(self, name) is not None:
                    raise BadInput(f"--{name} came without --data; give the data too")
            if self.no_labels:
                raise BadInput("--no-labels came without --data; give the data too")
            return None
        if self.no_labels and self.labels is not None:
            raise BadInput(f"--labels {self.labels} came with --no-labels; leave out one of the two")
        return Task(
            self.data,
            test=self.test,
            metric=self.metric,
            higher_is_better=not self.lower_is_better,
            output=self.output,
            preprocess=self.preprocess,
            label=self.label,
            labels=False if self.no_labels else self.labels,
            seed=self.seed,
            train=self.train,
        )


def enter(
    source: str, place: Path, runtime: str, threads: int | None, batch: int | None, shape: list[str] | None, example: str | None
) -> Any:
    from hasten import doors
    from hasten.measure import contestant
    from hasten.measure.machine import cores
    from hasten.runtimes import Target

    examples = doors.parse_example_input(example) if example else None
    target = Target(threads or cores(), batch or 1)
    return contestant.enter(source, place, runtime=runtime, target=target, shapes=shapes_of(shape), example_inputs=examples)


def shapes_of(texts: list[str] | None) -> dict[str, int] | None:
    """`seq=128` … as a dict. Raises BadInput."""
    shapes = {}
    for text in texts or []:
        name, _, size = text.partition("=")
        if not name or not size.isdecimal() or int(size) < 1:
            raise BadInput(f"--shape {text!r} is not understood; expected AXIS=SIZE such as seq=128")
        shapes[name] = int(size)
    return shapes or None


def samples_alone(robust: bool, robust_samples: int | None, explain: bool, explain_samples: int | None) -> None:
    """Raises BadInput where a number of samples came without what it is for."""
    for name, wanted, samples in (("robust", robust, robust_samples), ("explain", explain, explain_samples)):
        if samples is not None and not wanted:
            raise BadInput(f"--{name}-samples came without --{name}; give --{name} too")


def names(text: str) -> tuple[str, ...]:
    """`a, b` as ("a", "b")."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def is_given(context: typer.Context, parameter: str) -> bool:
    """Whether the user gave this parameter, and not its default."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name != "DEFAULT"


def save(model: Any, out: str) -> None:
    from hasten.folder import unwritable

    try:
        model.save(out)
    except OSError as e:
        raise unwritable(out, e, "give a place that can") from e


def stem(model: str) -> str:
    """A name for the output folder: the model's file without its suffixes."""
    name = Path(model.rpartition(":")[0] if ".py:" in model else model).name
    return name.split(".")[0] or "model"


def ports(ports: Any) -> str:
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


@contextlib.contextmanager
def telling(as_json: bool = False, quiet: bool = False, verbose: bool = False) -> Iterator[None]:
    """Within this block long jobs tell what they do: live on a terminal, in plain lines elsewhere, not at all for --json and -q."""
    with contextlib.ExitStack() as stack:
        if as_json or quiet:
            listener = Voice()
        elif sys.stdout.isatty():
            from hasten.report.live import Live

            listener = stack.enter_context(Live(verbose))
        else:
            from hasten.report.lines import Lines

            listener = Lines(verbose)
        stack.enter_context(speaking(listener))
        yield
