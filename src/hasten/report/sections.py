"""Sections of the report that are there only where something was measured: robustness, calibration, attributions, cost, energy, advice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from hasten.report import pictures
from hasten.report.extras import joules
from hasten.report.numbers import change, interval, metric, seconds, size, times
from hasten.search.result import Result


@dataclasses.dataclass(frozen=True)
class Plot:
    """A small picture: its place's id, title, text alternative, specification."""

    id: str
    title: str
    label: str
    spec: pictures.Spec


@dataclasses.dataclass(frozen=True)
class Table:
    """Heads and rows of texts; `numeric`: all but the first column are numbers."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: bool = True


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page: sentences, pictures, a table, a note on the method."""

    id: str
    title: str
    lines: Sequence[str]
    plots: Sequence[Plot] = ()
    table: Table | None = None
    note: str = ""


Found = dict[str, Any]


def advice(result: Result, found: Found) -> Section | None:
    """What was advised before the search, and whether it held."""
    given = found.get("advice")
    if not given:
        return None
    held = {True: "It held", False: "It did not hold", None: "Nothing was advised"}[given["held"]]
    rows = [(line["candidate"], _gain(line["gain"]), line["reason"]) for line in given["lines"]]
    table = Table(("advised", "expected", "because"), rows, numeric=False) if rows else None
    return Section("advice", "What was advised before", [f"{held}: {given['why']}."], table=table)


def training(result: Result, found: Found) -> Section | None:
    """What was trained in the search: how long, with how much memory, and when the budget was first met."""
    given = found.get("training")
    if not given:
        return None
    rows = [
        (
            t["recipe"],
            f"{t['epochs']}",
            seconds(t["seconds"]),
            seconds(t["step_seconds"]) + (", compiled" if t["compiled"] else ""),
            size(t["peak_memory"]),
            "–" if t["value"] is None else metric(t["value"]),
            "not reached" if t["seconds_to_budget"] is None else seconds(t["seconds_to_budget"]),
        )
        for t in given
    ]
    table = Table(("trained for", "epochs", "time", "a step", "memory", "best on validate", "within the budget after"), rows)
    lines = ["Each was timed before it was trained: how long a graph takes does not depend on its weights' values."]
    return Section("training", "What was trained", lines, table=table, note="Wall time of the steps, judging aside; peak resident memory.")


def _gain(gain: Sequence[float]) -> str:
    return f"{gain[0]:.1f} to {gain[1]:.1f} ×"


def robustness(result: Result, found: Found) -> Section | None:
    """Both models under corruptions: a small picture for each, and the worst case in words."""
    given = found.get("robustness")
    if not given:
        return None
    if "failed" in given:
        return Section("robustness", "When the input is worse", [_failed(given)])
    by_name: dict[str, list[Found]] = {}
    for level in given["levels"]:
        by_name.setdefault(level["corruption"], []).append(level)
    values = [v for level in given["levels"] for v in (level["before"], level["after"])]
    room = max(0.06 * (max(values) - min(values)), 1e-3)
    ends = min(values) - room, max(values) + room
    plots = [
        Plot(
            f"robustness-{i}",
            name,
            f"{given['metric']} under {name}, from weak to strong: original {metric(levels[0]['before'])} to {metric(levels[-1]['before'])}, "
            f"chosen {metric(levels[0]['after'])} to {metric(levels[-1]['after'])}.",
            pictures.corruption(levels, ends),
        )
        for i, (name, levels) in enumerate(by_name.items())
    ]
    note = f"{given['metric']} on {given['samples']} of {given['available']} test samples, five strengths of each corruption, seed {given['seed']}."
    note += f" {_sentence(given['limited'])}" if given.get("limited") else ""
    return Section("robustness", "When the input is worse", [_sentence(given["words"])], plots, _levels(by_name), note)


def _levels(by_name: dict[str, list[Found]]) -> Table:
    """A row a corruption, a column a strength: before → after, and the flips between the two."""
    head = ("corruption", *(f"strength {i}" for i in range(1, 1 + max(len(levels) for levels in by_name.values()))))
    rows = [
        (name, *(f"{v['before']:.3f} → {v['after']:.3f}" + ("" if v["flips"] is None else f" ({v['flips']} flips)") for v in levels))
        for name, levels in by_name.items()
    ]
    return Table(head, rows)


def calibration(result: Result, found: Found) -> Section | None:
    """Whether confidence still means what it meant."""
    given = found.get("calibration")
    if not given or "failed" in given:
        return None
    line = (
        f"The expected calibration error went from {metric(given['before'])} to {metric(given['after'])}: a difference of "
        f"{change(given['difference']['estimate'])} {interval(given['difference'], 4, '+')}."
    )
    scores = "softmax of the outputs" if given["softmax"] else "the outputs as probabilities"
    note = f"{given['bins']} bins of equal width, {scores}, {given['samples']} test samples, 95 % interval by paired bootstrap."
    return Section("calibration", "Is its confidence as honest", [line], note=note)


def explanation(result: Result, found: Found) -> Section | None:
    """Whether both models look at the same things."""
    given = found.get("explanation")
    if not given:
        return None
    title = "Does it look at the same things"
    if "failed" in given:
        return Section("explanation", title, [_failed(given)])
    note = f"By occlusion of up to {given['regions']} regions of each sample; the lowest rank correlation of a sample is {given['lowest']:.3f}."
    return Section("explanation", title, [_sentence(given["words"])], note=note)


def energy(result: Result, found: Found) -> Section | None:
    """Joules of a call, measured or estimated: the label says which."""
    given = found.get("energy")
    if not given:
        return None
    if "failed" in given:
        return Section("energy", "Energy", [_failed(given)])
    before, after = given["original"], given["chosen"]
    line = f"{joules(after['joules'])} a call of {given['batch']}, {after['how']}."
    if before != after:
        line = f"{joules(before['joules'])} → {joules(after['joules'])} a call of {given['batch']}, {after['how']}"
        ratio = after.get("ratio")
        differs = ratio and not ratio["low"] <= 1 <= ratio["high"]
        line += f": {times(ratio['estimate'])} {interval(ratio)} less." if differs else "; a difference is not shown."
    return Section("energy", "Energy", [line], note=_sentence(after["method"]))


def cost(result: Result, found: Found) -> Section | None:
    """Preparation, packages with licences and, where a price was given, a million predictions."""
    given = found.get("cost")
    if not given:
        return None
    lines = []
    if given["preparation_seconds"] is not None:
        lines.append(
            f"The chosen model was made in {given['preparation_seconds']:.1f} s, all candidates together in "
            f"{given['preparation_seconds_all']:.1f} s; measuring is not in this."
        )
    price = given["price_per_million"]
    if price is not None:
        lines.append(
            f"A million predictions: {price['original']:.4g} → {price['chosen']:.4g} at {given['price_per_hour']:g} an hour "
            f"(computed: {given['formula']})."
        )
    rows = [(p["name"], p.get("version") or "–", size(p["bytes"]), p["licence"] or "–") for p in given["packages"]]
    table = Table(("what it needs to run", "version", "size", "licence"), rows, numeric=False) if rows else None
    return Section("cost", "Cost", lines, table=table)


def _failed(given: Found) -> str:
    return f"Not measured: {given['failed'].removeprefix('not measured: ')}."


def _sentence(text: str) -> str:
    """A large first letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


SECTIONS: tuple[Callable[[Result, Found], Section | None], ...] = (robustness, calibration, explanation, cost, energy, training, advice)
"""In the order of the page."""
