"""Plain tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hasten.folder import C
from hasten.measure.benchmark import Benchmark
from hasten.measure.compare import Comparison
from hasten.measure.cost import FORMULA
from hasten.measure.kernels import TYPES, Kernels, types_of
from hasten.measure.verify import Claim
from hasten.report import extras, words
from hasten.report.numbers import count, seconds, size
from hasten.search.result import Choice, Result

HEAVIEST = 15
"""Rows of a long table that are shown."""


def show_result(result: Result, table: bool = True) -> None:
    """The candidates with the reason why each lost (unless `table` is False), then the verdict in words."""
    console = screen()
    if table:
        _show_candidates(result, console)
    for line in verdict(result):
        console.print(line, soft_wrap=True, markup=False)


def _show_candidates(result: Result, console: Console) -> None:
    judged = result.manifest["judged"]
    table = Table("candidate", "time", "speed-up", judged["metric"] if judged else "accuracy", "size", "why not", box=None)
    ordered = sorted(result.candidates, key=lambda c: (c.state != "chosen", c.state != "baseline", c.seconds or math.inf))
    for choice in [c for c in ordered if c.seconds is not None]:
        table.add_row(*_row(choice, result), style="bold" if choice.state == "chosen" else "")
    console.print()
    console.print(table)
    untried: dict[str, list[str]] = {}
    for choice in ordered:
        if choice.seconds is None:
            untried.setdefault(choice.reason, []).append(choice.name)
    for reason, names in untried.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        console.print(f"not timed: {names[0]}{more}: {reason}", soft_wrap=True, markup=False)
    console.print()
    details = result.manifest.get("details", {})
    if "levels" in details.get("robustness", {}):
        _show_robustness(console, details["robustness"])
        console.print()


def verdict(result: Result) -> list[str]:
    """What came out, in words."""
    best, baseline = result.best, words.original(result)
    machine = result.manifest["machine"]["cpu"]
    if not result.better or best.ratio is None:
        usable = f"{result.folder}: usable as it is; measured on {machine}"
        return [f"the original is returned: {result.reason}", *extra_lines(result), *advice_line(result), usable]
    (name, ratio, spent), *others = words.baselines(result)
    against = f"{seconds(best.seconds)} against {seconds(spent)}" if spent is not None else seconds(best.seconds)
    lines = [f"{best.name}: {_faster(ratio)} than {name}, {against} a call of {best.target['batch']}, on {machine}"]
    lines += [f"against {name}: {_faster(ratio)}" for name, ratio, _ in others]
    if best.footprint is not None:
        warned = [f"beware: {line}" for line in result.warnings]
        lines = [*words.as_c(result), f"the C code: {result.folder / C}", *warned, *lines]
    else:
        lines += [f"beware: {line}" for line in result.warnings]
    lines.append(f"size: {size(best.size)}, {baseline.size / best.size:.2f} × smaller; A/A noise floor {best.noise_floor or 0:.1%}")
    lines.append(accuracy_line(best, result))
    lines += extra_lines(result) + guard_line(best) + advice_line(result)
    lines.append(f"run it: python {result.folder / 'run.py'} --measure   check it: hasten verify {result.folder}")
    return lines


def _faster(ratio: dict[str, float]) -> str:
    return f"{ratio['estimate']:.2f} × faster [{ratio['low']:.2f}, {ratio['high']:.2f}]"


EXTRA_LINES = (
    ("robustness", extras.robustness_words),
    ("calibration", extras.calibration_line),
    ("explanation", extras.explanation_line),
    ("cost", extras.cost_line),
    ("energy", extras.energy_line),
)


def extra_lines(result: Result) -> list[str]:
    """A line for each of the details that were gathered; why, where one could not be."""
    details = result.manifest.get("details", {})
    found = [(name, line, details[name]) for name, line in EXTRA_LINES if name in details]
    return [f"{name}: {values['failed']}" if "failed" in values else line(values) for name, line, values in found]


def accuracy_line(best: Choice, result: Result) -> str:
    """What happened to accuracy, in words."""
    if best.test is None or best.verdict is None or result.manifest["judged"] is None:
        return "accuracy was not judged: there was no data; only techniques that keep the results were used"
    test, judged = best.test, best.verdict
    what = f"{result.manifest['judged']['metric']} {test['baseline']:.4f} → {test['value']:.4f} on {test['samples']} test samples"
    if judged["state"] == "proven":
        return f"{what}: the budget is kept, proven (95 % sure that the drop is at most {max(0.0, judged['worst']):.4f})"
    needed = judged["samples_needed"]
    more = f"; about {needed} more samples would decide" if needed else ""
    return f"{what}: {judged['state']}: the drop is {judged['drop']:.4f}, up to {judged['worst']:.4f} is plausible{more}"


def guard_line(best: Choice) -> list[str]:
    """What happened to the guarded recalls, on one line; none where nothing was guarded."""
    guards = (best.test or {}).get("guards") or []
    if not guards:
        return []
    worst = max(guards, key=lambda g: g["before"] - g["after"])
    return [
        f"guards: recall of {len(guards)} {'class' if len(guards) == 1 else 'classes'} kept; the least so class {worst['label']}: "
        f"{worst['before']:.4f} → {worst['after']:.4f} on {worst['samples']} test samples"
    ]


def advice_line(result: Result) -> list[str]:
    """Whether the advice that was given before the search held, on one line; none where there was none."""
    advice = result.manifest.get("details", {}).get("advice")
    if not advice or advice["held"] is None:
        return []
    return [f"advice {'held' if advice['held'] else 'did not hold'}: {advice['why']}"]


def _row(choice: Choice, result: Result) -> tuple[str, ...]:
    ratio = choice.ratio
    speed = (
        f"× {ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ("× 1" if choice.state == "baseline" else "–")
    )
    value = choice.test or choice.accuracy
    accuracy = f"{value['value']:.4f}{' (test)' if choice.test else ''}" if value else "–"
    return choice.name, seconds(choice.seconds), speed, accuracy, size(choice.size), choice.reason or f"[{choice.state}]".strip("[]")


def show_benchmark(found: Benchmark) -> None:
    """The standings."""
    priced = ["a million"] if found.price_per_hour is not None else []
    table = Table("model", "time", "p50", "p95", "p99", "samples/s", "memory", "load", "size", "against the first", *priced, box=None)
    for s in found.standings:
        if s.failed:
            table.add_row(s.name, s.failed)
            continue
        assert s.percentiles is not None
        ratio = f"× {s.ratio.estimate:.3f} [{s.ratio.low:.3f}, {s.ratio.high:.3f}]" if s.ratio and s is not found.standings[0] else "–"
        price = [f"{s.price_per_million:.4g}"] if s.price_per_million is not None else []
        ranks = (seconds(s.percentiles[q]) for q in ("50", "95", "99"))
        table.add_row(
            s.name,
            seconds(s.seconds),
            *ranks,
            count(s.throughput),
            size(s.peak_memory),
            seconds(s.load_seconds),
            size(s.size),
            ratio,
            *price,
        )
    console = screen()
    console.print(table)
    console.print(
        f"noise floor (A/A, {found.rounds} rounds of fresh processes): {found.noise_floor:.1%}; above × 1 is faster than the first"
    )
    if found.price_per_hour is not None:
        console.print(f"price of a million predictions at {found.price_per_hour:g} an hour, computed: {FORMULA}", soft_wrap=True)


ON = {"u8s8": "8 bits", "f32": "float32", "bf16": "bfloat16"}


def show_kernels(found: Kernels) -> None:
    """The kernels in order of execution; what they do together in the end."""
    table = Table("layer", "kernel", "shape", "time", "GOP/s", "of the peak", box=None)
    for column in table.columns[3:]:
        column.justify = "right"
    for k in found.kernels:
        rate, share = ("", "") if k.rate is None or k.share is None else (f"{k.rate / 1e9:.0f}", f"{k.share:.0%}")
        table.add_row(k.name, k.kernel, k.shape, seconds(k.seconds), rate, share)
    console = screen()
    console.print(f"{found.of}, one thread, batch {found.batch}", markup=False)
    console.print(table)
    layers = [k for k in found.kernels if k.operations]
    used = [types for types in TYPES if any(types_of(k.kernel) == types for k in layers)]
    peaks = ", ".join(f"{found.peaks[types] / 1e9:.0f} GOP/s on {ON[types]}" for types in used)
    atleast = sum(k.operations / found.peaks[types_of(k.kernel)] for k in layers)
    total, spent = sum(k.operations for k in layers), sum(k.seconds for k in layers)
    console.print(
        f"peak of one core, measured: {peaks} ({found.isa}); all layers together {total / spent / 1e9:.0f} GOP/s, {atleast / spent:.0%} of the time "
        "that they would take at their peaks. Times are the best of many calls; a product and its sum are two operations",
        soft_wrap=True,
    )


def show_comparison(found: Comparison, before: str, after: str) -> None:
    """Difference, flips, classes, speed and gates."""
    console = screen()
    d = found.difference
    console.print(f"before: {before}\nafter:  {after}", markup=False)
    console.print(
        f"{found.metric}: {found.before:.4f} → {found.after:.4f}, difference {d.estimate:+.4f} [{d.low:+.4f}, {d.high:+.4f}] (95 %), "
        f"{found.samples} samples" + (f", {found.flips} flips" if found.flips is not None else ""),
        markup=False,
        soft_wrap=True,
    )
    changed = [c for c in found.classes if c.before != c.after]
    if changed:
        table = Table("class", "recall before", "after", "change", "samples", box=None)
        for c in sorted(changed, key=lambda c: c.after - c.before)[:HEAVIEST]:
            table.add_row(str(c.label), f"{c.before:.3f}", f"{c.after:.3f}", f"{c.after - c.before:+.3f}", str(c.samples))
        console.print(table)
    if found.robustness is not None:
        _show_robustness(console, found.robustness.to_json())
        console.print(extras.robustness_words(found.robustness.to_json()), markup=False, soft_wrap=True)
    if found.calibration is not None:
        console.print(extras.calibration_line(found.calibration.to_json()), markup=False, soft_wrap=True)
    if found.explanation is not None:
        console.print(extras.explanation_line(found.explanation.to_json()), markup=False, soft_wrap=True)
    if found.speed is not None:
        show_benchmark(found.speed)
    for name, gate in (("accuracy", found.accuracy_gate), ("speed", found.speed_gate)):
        if gate is not None:
            console.print(f"gate for {name}: {gate}")


def _show_robustness(console: Console, found: dict[str, Any]) -> None:
    console.print(extras.robustness_title(found), markup=False, soft_wrap=True)
    console.print(extras.robustness_table(found))


def show_claims(claims: Sequence[Claim]) -> None:
    """Each claim, what it said and what was measured now."""
    table = Table("claim", "", "claimed", "measured now", "", box=None)
    for c in claims:
        table.add_row(c.name, c.state, _interval(c.claimed), _interval(c.measured), c.why)
    screen().print(table)


def _interval(value: Any) -> str:
    return "–" if value is None else f"{value.estimate:.4g} [{value.low:.4g}, {value.high:.4g}]"


def screen() -> Console:
    """Where tables go: as wide as the terminal, 160 columns elsewhere."""
    import sys

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
