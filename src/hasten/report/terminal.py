"""Plain tables for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from hasten.facts import Facts
from hasten.measure.benchmark import Benchmark
from hasten.measure.compare import Comparison
from hasten.measure.verify import Claim
from hasten.model import Model, Port
from hasten.report.numbers import count, seconds, size
from hasten.search.result import Choice, Result

HEAVIEST = 15
"""Rows of a long table that are shown."""


def show_result(result: Result) -> None:
    """The candidates with the reason why each lost, then the verdict in words."""
    console = _console()
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
    for line in verdict(result):
        console.print(line, soft_wrap=True, markup=False)


def verdict(result: Result) -> list[str]:
    """What came out, in words."""
    best, baseline = result.best, next(c for c in result.candidates if c.recipe == "original" and c.runtime == "onnxruntime")
    machine = result.manifest["machine"]["cpu"]
    if not result.better or best.ratio is None:
        return [f"the original is returned: {result.reason}", f"{result.folder}: usable as it is; measured on {machine}"]
    ratio = best.ratio
    lines = [
        f"{best.name}: {ratio['estimate']:.2f} × faster [{ratio['low']:.2f}, {ratio['high']:.2f}] than the original in onnxruntime, "
        f"{seconds(best.seconds)} against {seconds(baseline.seconds)} a call of {best.target['batch']}, on {machine}"
    ]
    for name, own in (best.own_ratios or {}).items():
        lines.append(f"against {name}, the model's own framework: {own['estimate']:.2f} × faster [{own['low']:.2f}, {own['high']:.2f}]")
    lines.append(f"size: {size(best.size)}, {baseline.size / best.size:.2f} × smaller; A/A noise floor {best.noise_floor or 0:.1%}")
    lines.append(accuracy_line(best, result))
    lines.append(f"run it: python {result.folder / 'run.py'} --measure   check it: hasten verify {result.folder}")
    return lines


def accuracy_line(best: Choice, result: Result) -> str:
    """What happened to accuracy, in words."""
    if best.test is None or best.verdict is None or result.manifest["judged"] is None:
        return "accuracy was not judged: there was no data; only techniques that keep the results were used"
    test, judged = best.test, best.verdict
    what = f"{result.manifest['judged']['metric']} {test['baseline']:.4f} → {test['value']:.4f} on {test['samples']} test samples"
    if judged["state"] == "proven":
        return f"{what}: the budget is kept, proven (95 % sure that the drop is at most {max(judged['worst'], 0):.4f})"
    needed = judged["samples_needed"]
    more = f"; about {needed} more samples would decide" if needed else ""
    return f"{what}: {judged['state']}: the drop is {judged['drop']:.4f}, up to {judged['worst']:.4f} is plausible{more}"


def _row(choice: Choice, result: Result) -> tuple[str, ...]:
    ratio = choice.ratio
    speed = (
        f"× {ratio['estimate']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ("× 1" if choice.state == "baseline" else "–")
    )
    value = choice.test or choice.accuracy
    accuracy = f"{value['value']:.4f}{' (test)' if choice.test else ''}" if value else "–"
    return choice.name, seconds(choice.seconds), speed, accuracy, size(choice.size), choice.reason or f"[{choice.state}]".strip("[]")


def show_facts(model: Model, facts: Facts) -> None:
    """Totals, the heaviest operators and the history."""
    console = _console()
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        for port in ports:
            console.print(f"{kind:7}{_port(port)}", markup=False)
    console.print(f"nodes: {len(facts.rows)}: " + ", ".join(f"{n} {op}" for op, n in facts.operators.items()), soft_wrap=True, markup=False)
    console.print(f"{count(facts.parameters)} parameters, {size(facts.weight_bytes)} of weights, {count(facts.macs)} MACs a sample")
    bound = "compute" if facts.intensity > 4 else "memory"
    console.print(
        f"{size(facts.activation_bytes)} of activations read and written: {facts.intensity:.2f} MACs a byte, so likely bound by {bound} "
        "where the caches do not hold it (a CPU core of today needs about 4 MACs a byte to be bound by compute)",
        soft_wrap=True,
    )
    if facts.unknown:
        console.print(f"{facts.unknown} nodes have unknown shapes and are not in the totals; give --shape AXIS=SIZE")
    table = Table("heaviest nodes", "operator", "output", "MACs", "weights", "bits", "activations", box=None)
    for row in sorted(facts.rows, key=lambda r: -(r.macs or 0))[:HEAVIEST]:
        shape = "×".join(str(d) for d in row.shape) if row.shape is not None else "?"
        table.add_row(row.name, row.op, shape, count(row.macs), size(row.weight_bytes), str(row.bits or ""), size(row.activation_bytes))
    console.print(table)
    for step in model.history:
        console.print(f"history: {step.name} {step.settings or ''}: {step.changed} changed, {len(step.skipped)} left alone", markup=False)


def show_benchmark(found: Benchmark) -> None:
    """The standings."""
    table = Table("model", "time", "p50", "p95", "p99", "samples/s", "memory", "load", "size", "against the first", box=None)
    for s in found.standings:
        if s.failed:
            table.add_row(s.name, s.failed)
            continue
        assert s.percentiles is not None
        ratio = f"× {s.ratio.estimate:.3f} [{s.ratio.low:.3f}, {s.ratio.high:.3f}]" if s.ratio and s is not found.standings[0] else "–"
        ranks = (seconds(s.percentiles[q]) for q in ("50", "95", "99"))
        table.add_row(
            s.name, seconds(s.seconds), *ranks, count(s.throughput), size(s.peak_memory), seconds(s.load_seconds), size(s.size), ratio
        )
    console = _console()
    console.print(table)
    console.print(
        f"noise floor (A/A, {found.rounds} rounds of fresh processes): {found.noise_floor:.1%}; above × 1 is faster than the first"
    )


def show_comparison(found: Comparison, before: str, after: str) -> None:
    """Difference, flips, classes, speed and gates."""
    console = _console()
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
    if found.speed is not None:
        show_benchmark(found.speed)
    for name, gate in (("accuracy", found.accuracy_gate), ("speed", found.speed_gate)):
        if gate is not None:
            console.print(f"gate for {name}: {gate}")


def show_claims(claims: Sequence[Claim]) -> None:
    """Each claim, what it said and what was measured now."""
    table = Table("claim", "", "claimed", "measured now", "", box=None)
    for c in claims:
        table.add_row(c.name, c.state, _interval(c.claimed), _interval(c.measured), c.why)
    _console().print(table)


def _interval(value: Any) -> str:
    return "–" if value is None else f"{value.estimate:.4g} [{value.low:.4g}, {value.high:.4g}]"


def _port(port: Port) -> str:
    return f"{port.name}  {port.dtype}  [{', '.join(str(d) for d in port.shape)}]"


def _console() -> Console:
    import sys

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False)
