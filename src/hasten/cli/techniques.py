"""The techniques' verbs, made from plan.TECHNIQUES: model in, model out."""

from __future__ import annotations

import dataclasses
import inspect as inspection
import re
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from hasten import plan
from hasten.cli.options import (
    DataOpt,
    DataOptions,
    DebugOpt,
    ExampleOpt,
    LabelOpt,
    LabelsOpt,
    LowerOpt,
    MetricOpt,
    ModelArg,
    OutOpt,
    OutputOpt,
    PreprocessOpt,
    QuietOpt,
    ShapeOpt,
    SizeOpt,
    TeacherOpt,
    TestOpt,
    TrainDataOpt,
    print_line,
    save,
    shapes_of,
    telling,
)
from hasten.errors import BadInput, Refused
from hasten.voice import voice

OBSERVING: tuple[tuple[str, Any, Any], ...] = (
    ("data", DataOpt, None),
    ("labels", LabelsOpt, None),
    ("label", LabelOpt, None),
    ("preprocess", PreprocessOpt, None),
)
"""Options of a technique that looks at data: name, type, default. One that learns has more."""

LEARNING: tuple[tuple[str, Any, Any], ...] = (
    ("train_data", TrainDataOpt, None),
    *OBSERVING,
    ("test", TestOpt, None),
    ("metric", MetricOpt, "accuracy"),
    ("lower_is_better", LowerOpt, False),
    ("output", OutputOpt, None),
)

TEACHING: tuple[tuple[str, Any, Any], ...] = (("teacher", TeacherOpt, None),)

OutArg = Annotated[str | None, typer.Argument(help="The .onnx file to write; or -o.", show_default=False)]


def _one_output(verb: str, argument: str | None, option: str | None) -> str:
    """The file to write, given in one of the two ways. Raises BadInput."""
    out = argument or option
    if out is None or (argument and option):
        came = "none came" if out is None else f"{argument} and -o {option} came"
        raise BadInput(f"{verb} writes one file, and {came}; give one, as `hasten {verb} MODEL OUT` or with -o OUT")
    return out


def _one_teacher(verb: str, teacher: str | None, student: str) -> None:
    """Raises BadInput where it is not said who teaches whom, or said twice."""
    if bool(teacher) == bool(student):
        came = "both came" if teacher else "neither came"
        raise BadInput(
            f"{verb} needs --teacher MODEL to learn from, or --student narrow:0.5 (or shallow:0.5) to make a smaller student of the model itself; "
            f"{came}: give one"
        )


def technique_command(row: plan.Row) -> Callable[..., None]:
    """The verb of one technique: its settings' fields are its options."""
    fields = dataclasses.fields(row.settings)
    types = typing.get_type_hints(row.settings)

    def command(**given: Any) -> None:
        from hasten import doors
        from hasten.single import before, prepared

        source, out = given.pop("model"), _one_output(row.verb, given.pop("out"), given.pop("out_option"))
        options = DataOptions(
            **{name: given.pop(name, None) for name in ("data", "test", "labels", "label", "preprocess", "output")},
            metric=given.pop("metric", "accuracy"),
            lower_is_better=given.pop("lower_is_better", False),
            train=given.pop("train_data", None),
        )
        shapes, example = shapes_of(given.pop("shape")), given.pop("example_input")
        quiet, teacher, for_size = given.pop("quiet"), given.pop("teacher", None), given.pop("for_size", False)
        given.pop("debug")
        settings = row.settings(**{k: tuple(v or ()) if typing.get_origin(types[k]) is tuple else v for k, v in given.items()})
        if "student" in types:
            _one_teacher(row.verb, teacher, settings.student)
        with telling(quiet=quiet), tempfile.TemporaryDirectory(prefix="hasten-") as private:
            examples = doors.parse_example_input(example) if example else None
            model = doors.load(source, example_inputs=examples, shapes=shapes, workdir=Path(private)).model
            task = options.task()
            bound = task.bind(model) if task else None
            if teacher is not None and bound is not None:
                place = Path(private) / "teacher"
                place.mkdir()
                opened = doors.load(teacher, example_inputs=examples, shapes=shapes, workdir=place).model
                bound = dataclasses.replace(bound, teacher=opened)
            if first := before(row):
                model = prepared(row, model, bound)
                voice().say(f"first: {', '.join(name.replace('_', '-') for name, _ in first)} (what stands before {row.verb} on the road)")
            if row.learns:
                made = _learn(row, model, settings, bound, Path(out), for_size)
            else:
                made = row.apply(model, settings, bound)
                save(made, out)
                if row.name == "prune_weights" and not quiet:
                    voice().say(_worth(model, made, settings.share, settings.pattern, bound).sentence)
        step, steps = made.history[-1], made.history[len(model.history) :]
        left = [skip for s in steps for skip in s.skipped]
        done = f"trained {step.changed} weights" if row.learns else f"changed {step.changed} nodes"
        print_line(f"{out}: {row.verb} {done}, left {len(left)} alone, {Path(out).stat().st_size} bytes")
        for skip in left:
            print_line(f"  left alone: {skip.node}: {skip.why}" if skip.node else f"  note: {skip.why}")

    kinds = inspection.Parameter.POSITIONAL_OR_KEYWORD, inspection.Parameter.KEYWORD_ONLY
    parameters = [
        inspection.Parameter("model", kinds[0], annotation=ModelArg),
        inspection.Parameter("out", kinds[0], annotation=OutArg, default=None),
        inspection.Parameter("out_option", kinds[1], annotation=OutOpt, default=None),
    ]
    for field in fields:
        kind = types[field.name]
        listed = typing.get_origin(kind) is tuple
        annotation = Annotated[list[str] | None if listed else kind, typer.Option(rich_help_panel="Settings")]  # type: ignore[valid-type]
        parameters.append(inspection.Parameter(field.name, kinds[1], annotation=annotation, default=None if listed else field.default))
    for name, kind, default in (
        *(TEACHING if row.teaches else ()),
        *(LEARNING if row.learns else OBSERVING if row.observes else ()),
        *((("for_size", SizeOpt, False),) if row.learns and row.name != "binarize" else ()),  # one bit has no zero
        ("shape", ShapeOpt, None),
        ("example_input", ExampleOpt, None),
        ("quiet", QuietOpt, False),
        ("debug", DebugOpt, False),
    ):
        parameters.append(inspection.Parameter(name, kinds[1], annotation=kind, default=default))
    command.__signature__ = inspection.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    option = "train-data" if row.learns else "data"
    pictures, digits = (f" --{option} images.zip", f" --{option} mnist/") if row.learns or row.observes else ("", "")
    if "student" in types:
        pictures, digits = f" --teacher large.onnx{pictures}", f" --student narrow:0.5{digits}"
    if row.learns:
        pictures, digits = f"{pictures} --labels labels.csv --preprocess imagenet-torch --epochs 3", f"{digits} --epochs 3"
    settings_text = re.sub(r"(?<!\n)\n(?!\n)", " ", inspection.getdoc(row.settings) or "")  # a paragraph is a line: the terminal wraps it
    command.__doc__ = (
        f"{row.about} Effect: {row.effect}; phase: {row.phase.name.lower()}.\n\n{settings_text}\n\n"
        f"[bold]hasten {row.verb} model.onnx out.onnx{pictures}[/]\n\n[bold]hasten {row.verb} lenet.onnx -o out.onnx{digits}[/]"
    )
    return command


def _learn(row: plan.Row, model: Any, settings: Any, bound: Any, out: Path, for_size: bool) -> Any:
    """Train, write the file, and say what the metric is before and after. `<out>.training` keeps the checkpoint until then, and the records."""
    from hasten.measure.before_after import before_after

    if bound is not None:
        bound = dataclasses.replace(bound, place=out.with_name(f"{out.name}.training"))
        _not_in_vain(row, model, settings, bound, for_size)
    made = row.apply(model, settings, bound)
    save(made, str(out))
    from hasten.learn.loop import remove_checkpoint

    remove_checkpoint(bound.place)
    before, after, samples = before_after(model, made, bound)
    one, other = ("of the teacher", "of the student") if getattr(settings, "student", "") else ("before", "after")
    print_line(
        f"{bound.metric.name} on {samples} test samples: {before:.4f} {one}, {after:.4f} {other}; the training's records: {bound.place}"
    )
    return made


def _not_in_vain(row: plan.Row, model: Any, settings: Any, bound: Any, for_size: bool) -> None:
    """Say what the zeros that a training is to make would bring; it stands in the training's records.

    Raises Refused where no runtime gets faster by them, and the size alone was not asked for.
    """
    from hasten.learn.records import RECORDS
    from hasten.learn.zeros import goal_of
    from hasten.measure.machine import machine
    from hasten.measure.record import Record, Records
    from hasten.search.worth import Worth, by_magnitude

    goal = goal_of(row.verb, settings)
    if goal is None:
        if for_size:
            raise BadInput(f"{row.verb}: --for-size came, and no zeros to train to; give --sparsity too, or leave it out")
        return
    share, pattern = goal.share, goal.pattern.text
    if student := getattr(settings, "student", ""):
        from hasten.learn.student import make

        model = make(model, student)
    records, key = Records(bound.place / RECORDS), f"zeros:{model.digest}:{pattern}:{share:g}:{machine().digest}"
    if known := records.get(key):
        found = Worth.from_json(known.values)
    else:
        found = _worth(model, by_magnitude(model, share, pattern), share, pattern, bound)
    if not found.gains and not for_size:
        raise Refused(
            f"{row.verb}: {found.sentence}; use prune-channels for speed, or give --for-size to train for the size alone; nothing was trained"
        )
    voice().say(found.sentence)
    if known is None:
        bound.place.mkdir(parents=True, exist_ok=True)
        method = "pruned by magnitude, before the training; fresh processes beside the dense model"
        records.add(Record(key, "zeros", pattern, method, found.to_json()))


def _worth(model: Any, pruned: Any, share: float, pattern: str, bound: Any) -> Any:
    """What the zeros of `pruned` bring in onnxruntime and OpenVINO on this machine."""
    from hasten import check
    from hasten.measure.judge import timing_feeds
    from hasten.measure.machine import cores
    from hasten.runtimes import Target
    from hasten.search.budget import Budget
    from hasten.search.worth import worth

    batch = next((p.shape[0] for p in model.inputs if p.shape and isinstance(p.shape[0], int)), 1)
    feeds = timing_feeds(bound.test if bound is not None else None, batch, check.random_feeds(model, batch))
    return worth(model, pruned, share, pattern, Budget().runtimes, Target(cores(), batch), feeds)
