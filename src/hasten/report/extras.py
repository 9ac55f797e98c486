"""Robustness, calibration error, attributions, cost and energy for the terminal; all take the JSON form, as a folder keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

Json = Mapping[str, Any]


def robustness_table(found: Json) -> Table:
    """A row a corruption, a column a strength: before → after, and how many predictions flip between the two."""
    table = Table("corruption", "strengths", "1", "2", "3", "4", "5", box=None)
    rows: dict[str, list[Json]] = {}
    for level in found["levels"]:
        rows.setdefault(level["corruption"], []).append(level)
    for name, levels in rows.items():
        strengths = ", ".join(f"{v['strength']:g}" for v in levels)
        table.add_row(name, f"{strengths} {levels[0]['unit']}", *(_cell(v) for v in levels))
    return table


def _cell(level: Json) -> str:
    flips = "" if level["flips"] is None else f" ({level['flips']})"
    return f"{level['before']:.3f} → {level['after']:.3f}{flips}"


def robustness_title(found: Json) -> str:
    """What the table shows."""
    flips = ", in brackets the flips between the two" if found["levels"][0]["flips"] is not None else ""
    return (
        f"robustness: {found['metric']} before → after under corruptions{flips}; {found['samples']} of {found['available']} test samples, "
        f"seed {found['seed']}; without corruption {found['clean_before']:.3f} → {found['clean_after']:.3f}"
    )


def robustness_words(found: Json) -> str:
    """The sentence, and on how many samples it rests; why, where they are fewer than was wanted."""
    samples = found.get("limited") or f"{found['samples']} samples"
    return f"robustness: {found['words']}; {samples}"


def calibration_line(found: Json) -> str:
    """Before → after with the interval of the difference."""
    d = found["difference"]
    scores = "softmax of the outputs" if found["softmax"] else "the outputs as probabilities"
    return (
        f"calibration error (ECE, {found['bins']} bins of equal width, {scores}): {found['before']:.4f} → {found['after']:.4f}, "
        f"difference {d['estimate']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}] (95 %), {found['samples']} samples"
    )


def explanation_line(found: Json) -> str:
    return f"explanation: {found['words']}"


def cost_line(found: Json) -> str:
    """Preparation, packages and, where a price was given, the price of a million predictions."""
    parts = [f"made in {_seconds(found['preparation_seconds'])}"] if found["preparation_seconds"] is not None else []
    packages = found["packages"]
    if packages:
        named = ", ".join(f"{p['name']} {p['bytes'] / 1e6:.0f} MB ({p['licence']})" for p in packages[:1])
        more = f" and {len(packages) - 1} more" if len(packages) > 1 else ""
        total = sum(p["bytes"] for p in packages) / 1e6
        parts.append(f"its runtime needs {total:.0f} MB beside numpy: {named}{more}")
    if found["price_per_million"] is not None:
        price = found["price_per_million"]
        parts.append(
            f"a million predictions: {price['original']:.4g} → {price['chosen']:.4g} at {found['price_per_hour']:g} an hour "
            f"(computed: {found['formula']})"
        )
    return f"cost: {'; '.join(parts)}"


def energy_line(found: Json) -> str:
    """Joules a call, and whether they were measured or estimated."""
    original, chosen, ratio = found["original"], found["chosen"], found["chosen"]["ratio"]
    values = joules(chosen["joules"]) if original == chosen else f"{joules(original['joules'])} → {joules(chosen['joules'])}"
    times = f" ({ratio['estimate']:.2f} × less [{ratio['low']:.2f}, {ratio['high']:.2f}])" if ratio else ""
    return f"energy: {values} a call of {found['batch']}{times}; {chosen['method']}"


def joules(value: float) -> str:
    """Energy for people."""
    for unit, size in (("J", 1.0), ("mJ", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} µJ"


def _seconds(value: float) -> str:
    return f"{value:.1f} s"
