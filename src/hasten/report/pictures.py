"""The pictures of the report: Altair charts as Vega-Lite specifications, with the values of the manifest in them.

Colours are CSS variables of the page (`var(--chosen)`), so one specification serves the light and the dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hasten.report import numbers, words
from hasten.report.numbers import metric, seconds, size
from hasten.search.result import Choice, Result

Spec = dict[str, Any]

GROUPS = {"chosen": "diamond", "original": "square", "front": "triangle-up", "lost": "circle"}
"""What a candidate came to, with its mark's shape; its colour is the variable of the same name."""

WIDE = 8.0
"""An axis of time whose ends differ by more than this factor is logarithmic."""

HEAVIEST = 12
"""Layers that are shown one by one."""

MOST_CLASSES = 12
"""Classes that are shown: those whose recall changed most."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
INK, MUTED, LINE, PAPER = "var(--ink)", "var(--muted)", "var(--line)", "var(--paper)"

CONFIG: Spec = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "axis": {
        "labelColor": MUTED,
        "titleColor": MUTED,
        "titleFontWeight": "normal",
        "titleFontSize": 12,
        "labelFontSize": 12,
        "titlePadding": 10,
        "gridColor": LINE,
        "domainColor": LINE,
        "tickColor": LINE,
        "domain": False,
        "labelOverlap": True,
    },
    "text": {"fontSize": 12, "fill": INK},
}


def group(choice: Choice) -> str:
    """chosen, original, front or lost; the original that is returned counts as chosen, too, and is shown as the original."""
    if choice.recipe == "original" and choice.runtime == "onnxruntime" and choice.state in ("baseline", "chosen"):
        return "original"
    return choice.state


def pareto(result: Result) -> Spec | None:
    """Time × metric (on validate), the file's size as area. Timed candidates that were not judged stand as ticks on the axis of time."""
    import altair as alt

    timed = [c for c in result.candidates if c.seconds is not None]
    judged = [c for c in timed if c.accuracy is not None]
    if len(timed) < 2:
        return None
    unit, factor = numbers.time_unit(max(c.seconds or 0.0 for c in timed))
    x = alt.X(
        "time:Q", title=f"time of a call ({unit})", axis=alt.Axis(tickCount=8), scale=_time_scale([c.seconds or 0.0 for c in timed], factor)
    )
    if not judged:
        return _by_size(timed, x, unit, factor, result)
    low, high = _domain(judged, result)
    name = words.name(result)
    y = alt.Y("value:Q", title=f"{name} on validate", scale=alt.Scale(domain=[low, high], nice=False), axis=alt.Axis(tickCount=6))
    tooltip = _tooltip("candidate", "time of a call", "speed-up", name, "size", "why not")
    rows = [_row(c, factor, result) | {"value": (c.accuracy or {})["value"], name: metric((c.accuracy or {})["value"])} for c in judged]
    layers = [_points(rows, x, y, tooltip), _labels(rows, x, y)]
    if (others := [_row(c, factor, result) for c in timed if c.accuracy is None]) and len(judged) < len(timed):
        ticks = alt.Chart(alt.Data(values=others)).mark_tick(color="var(--lost)", thickness=2, height=12, opacity=0.8)
        layers.insert(
            0, ticks.encode(x=x, y=alt.value("height"), tooltip=_tooltip("candidate", "time of a call", "speed-up", "size", "why not"))
        )
    layers.insert(0, _budget_line(result, low, high))
    return _spec(alt.layer(*layers), 340)


def _by_size(timed: Sequence[Choice], x: Any, unit: str, factor: float, result: Result) -> Spec:
    """Where nothing was judged: time × size."""
    import altair as alt

    names, scale = numbers.size_unit(max(c.size for c in timed))
    y = alt.Y("value:Q", title=f"size of the file ({names})", axis=alt.Axis(tickCount=5))
    tooltip = _tooltip("candidate", "time of a call", "speed-up", "size", "why not")
    rows = [_row(c, factor, result) | {"value": c.size / scale} for c in timed]
    return _spec(alt.layer(_points(rows, x, y, tooltip), _labels(rows, x, y)), 300)


def _row(choice: Choice, factor: float, result: Result) -> dict[str, Any]:
    ratio = choice.ratio
    return {
        "candidate": choice.name,
        "group": group(choice),
        "time": (choice.seconds or 0.0) / factor,
        "bytes": choice.size,
        "time of a call": seconds(choice.seconds),
        "speed-up": f"{numbers.times(ratio['estimate'])} {numbers.interval(ratio)}" if ratio else "not in the finals",
        "size": size(choice.size),
        "why not": choice.reason or group(choice),
    }


def _tooltip(*fields: str) -> list[Any]:
    import altair as alt

    return [alt.Tooltip(f"{field}:N", title=field) for field in fields]


def _points(rows: list[dict[str, Any]], x: Any, y: Any, tooltip: Any) -> Any:
    import altair as alt

    names, shapes = list(GROUPS), list(GROUPS.values())
    order = {name: i for i, name in enumerate(reversed(names))}
    colour = alt.Color("group:N", scale=alt.Scale(domain=names, range=[f"var(--{n})" for n in names]), legend=None)
    area = alt.Size("bytes:Q", scale=alt.Scale(domain=[0, max(r["bytes"] for r in rows)], range=[0, 520], zero=True), legend=None)
    marks = alt.Chart(alt.Data(values=sorted(rows, key=lambda r: order[r["group"]]))).mark_point(
        filled=True, opacity=0.85, stroke=PAPER, strokeWidth=1.2
    )
    return marks.encode(
        x=x,
        y=y,
        color=colour,
        size=area,
        tooltip=tooltip,
        shape=alt.Shape("group:N", scale=alt.Scale(domain=names, range=shapes), legend=None),
    )


def _labels(rows: list[dict[str, Any]], x: Any, y: Any) -> Any:
    """The two points that the reader looks for are named in the picture itself: above the chosen, below the original."""
    import altair as alt

    charts = []
    ends = min(r["time"] for r in rows), max(r["time"] for r in rows)
    for name, dy in (("chosen", -20), ("original", 24)):
        named = [r for r in rows if r["group"] == name]
        if named:
            align = "left" if named[0]["time"] == ends[0] else "right" if named[0]["time"] == ends[1] else "center"
            text = alt.Chart(alt.Data(values=named)).mark_text(dy=dy, align=align, fontWeight=600, fill=f"var(--{name})")
            charts.append(text.encode(x=x, y=y, text=alt.value(name)))
    return alt.layer(*charts)


def _domain(judged: Sequence[Choice], result: Result) -> tuple[float, float]:
    """Bottom and top of the metric's axis: all points, and the budget where it is near."""
    values = [(c.accuracy or {})["value"] for c in judged]
    low, high, floor = min(values), max(values), budget_line(result)
    if floor is not None and abs(floor - values[0]) <= 2 * max(high - low, abs(floor - values[0]) / 2):
        low, high = min(low, floor), max(high, floor)
    room = max(0.14 * (high - low), 1e-4)
    return low - room, high + room


def budget_line(result: Result) -> float | None:
    """The value of the metric that the budget still allows, on validate."""
    before = words.original(result).accuracy
    if before is None or result.manifest["judged"] is None:
        return None
    sign = 1 if result.manifest["judged"]["higher_is_better"] else -1
    value: float = before["value"] - sign * words.allowed_drop(result)
    return value


def _budget_line(result: Result, low: float, high: float) -> Any:
    import altair as alt

    line = budget_line(result)
    rows = [{"line": line, "text": "budget"}] if line is not None and low < line < high else []
    y = alt.Y("line:Q", scale=alt.Scale(domain=[low, high], nice=False))
    rule = alt.Chart(alt.Data(values=rows)).mark_rule(color="var(--broken)", strokeDash=[4, 4]).encode(y=y)
    text = alt.Chart(alt.Data(values=rows)).mark_text(align="right", dy=12, dx=-2, fill="var(--broken)")
    return alt.layer(rule, text.encode(y=y, x=alt.value("width"), text="text:N"))


def layers(profile: dict[str, Any], longest: float, side: str) -> Spec:
    """The heaviest layers of one model as bars with their names above.

    `longest`: seconds of the heaviest layer in either picture, so that both have one scale; `side`: original or chosen.
    """
    import altair as alt

    heaviest = sorted(profile["layers"], key=lambda r: -r["seconds"])[:HEAVIEST]
    rows = [r | {"text": seconds(r["seconds"]), "order": i, "label": f"{r['op']} · {_short(r['name'])}"} for i, r in enumerate(heaviest)]
    x = alt.X("seconds:Q", axis=None, scale=alt.Scale(domain=[0, 1.25 * longest], nice=False))
    y = alt.Y("order:O", axis=None, scale=alt.Scale(paddingInner=0.2))
    base = alt.Chart(alt.Data(values=rows))
    tooltip = [alt.Tooltip(f"{k}:N", title=t) for k, t in (("name", "layer"), ("op", "operator"), ("text", "time of a call"))]
    bars = base.mark_bar(height=7, cornerRadiusEnd=2, yOffset=8, color=f"var(--{side})").encode(x=x, y=y, tooltip=tooltip)
    names = base.mark_text(align="left", dy=-6, limit=340).encode(x=alt.value(0), y=y, text="label:N", tooltip=tooltip)
    values = base.mark_text(align="left", dx=5, dy=9, fontSize=11, fill=MUTED).encode(x=x, y=y, text="text:N")
    return _spec(alt.layer(bars, names, values), 34 * len(rows))


def overhead(profile: dict[str, Any]) -> float:
    """Seconds of a call that no layer explains."""
    return max(0.0, float(profile["call_seconds"]) - sum(r["seconds"] for r in profile["layers"]))


def _short(name: str, most: int = 34) -> str:
    """The end of a long node name, where it differs from others."""
    return name if len(name) <= most else "…" + name[-most + 1 :]


def latency(found: dict[str, Any]) -> Spec:
    """Percentiles of single calls on an axis that stretches the tail: x = −log10(1 − p)."""
    import altair as alt

    sides = [s for s in ("before", "after") if s in found]
    unit, factor = numbers.time_unit(max(found[s][-1] for s in sides))
    names = {"before": "original", "after": "chosen"}
    rows = [
        {"side": names[s], "rank": r, "nines": -math.log10(1 - r / 100), "time": v / factor, "percentile": f"p{r}", "text": seconds(v)}
        for s in sides
        for r, v in zip(found["ranks"], found[s], strict=True)
    ]
    marks = [r for r in rows if r["rank"] in (50, 95, 99)]
    shown = (50, 75, 90, 95, 99)
    axis = alt.Axis(
        values=[-math.log10(1 - r / 100) for r in shown],
        labelExpr="'p' + round(100 * (1 - pow(10, -datum.value)))",
        title="share of calls that are at least as fast",
        labelOverlap=False,
    )
    x = alt.X("nines:Q", axis=axis, scale=alt.Scale(domain=[0, 2.02], nice=False))
    wide = max(r["time"] for r in rows) > WIDE * min(r["time"] for r in rows)
    y = alt.Y(
        "time:Q",
        title=f"time of a single call ({unit})",
        axis=alt.Axis(tickCount=5),
        scale=alt.Scale(type="log") if wide else alt.Scale(zero=True, padding=18),
    )
    domain = list(names.values())
    colour = alt.Color("side:N", scale=alt.Scale(domain=domain, range=[f"var(--{d})" for d in domain]), legend=None)
    dash = alt.StrokeDash("side:N", scale=alt.Scale(domain=domain, range=[[5, 4], [1, 0]]), legend=None)
    shape = alt.Shape("side:N", scale=alt.Scale(domain=domain, range=[GROUPS[d] for d in domain]), legend=None)
    tooltip = [alt.Tooltip("side:N", title="model"), alt.Tooltip("percentile:N"), alt.Tooltip("text:N", title="time")]
    lines = alt.Chart(alt.Data(values=rows)).mark_line(strokeWidth=2, interpolate="linear").encode(x=x, y=y, color=colour, strokeDash=dash)
    points = alt.Chart(alt.Data(values=marks)).mark_point(filled=True, size=70, opacity=1)
    parts = [lines, points.encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)]
    upper = max(sides, key=lambda s: found[s][found["ranks"].index(95)])
    for side in sides:
        own = [r for r in marks if r["side"] == names[side]]
        for rank, align in ((50, "center"), (95, "center"), (99, "right")):
            text = alt.Chart(alt.Data(values=[r for r in own if r["rank"] == rank]))
            dy = -14 if side == upper else 17
            parts.append(text.mark_text(dy=dy, align=align, fill=f"var(--{names[side]})").encode(x=x, y=y, text="text:N"))
    return _spec(alt.layer(*parts), 300)


def classes(rows: Sequence[dict[str, Any]]) -> Spec | None:
    """Change of recall of the classes that changed most, in percentage points; None where none changed."""
    import altair as alt

    changed = sorted((r for r in rows if r["before"] != r["after"]), key=lambda r: -abs(r["after"] - r["before"]))[:MOST_CLASSES]
    if not changed:
        return None
    changed.sort(key=lambda r: r["after"] - r["before"])
    values = [
        {
            "class": f"class {r['label']}",
            "points": 100 * (r["after"] - r["before"]),
            "recall": f"{numbers.share(r['before'], 1)} → {numbers.share(r['after'], 1)}",
            "samples": r["samples"],
            "text": f"{100 * (r['after'] - r['before']):+.1f}".replace("-", "−"),
        }
        for r in changed
    ]
    reach = 1.35 * max(abs(v["points"]) for v in values)
    x = alt.X(
        "points:Q",
        title="change of recall (percentage points)",
        scale=alt.Scale(domain=[-reach, reach], nice=False),
        axis=alt.Axis(tickCount=5),
    )
    y = alt.Y("class:N", sort=None, title=None, axis=alt.Axis(ticks=False, labelPadding=8))
    colour = alt.condition("datum.points < 0", alt.value("var(--broken)"), alt.value("var(--chosen)"))
    base = alt.Chart(alt.Data(values=values))
    bars = base.mark_bar(height=10, cornerRadius=2).encode(x=x, y=y, color=colour, tooltip=["class:N", "recall:N", "samples:Q"])
    parts = [bars]
    for test, align, dx in (("datum.points < 0", "right", -5), ("datum.points >= 0", "left", 5)):
        parts.append(base.transform_filter(test).mark_text(align=align, dx=dx).encode(x=x, y=y, text="text:N"))
    return _spec(alt.layer(*parts), 50 + 26 * len(values))


def corruption(levels: Sequence[dict[str, Any]], ends: tuple[float, float]) -> Spec:
    """The metric of both models over the five strengths of one corruption."""
    import altair as alt

    domain = ["original", "chosen"]
    rows = [
        {"model": model, "strength": f"{v['strength']:g}", "value": v[key], "text": metric(v[key]), "unit": v["unit"]}
        for v in levels
        for model, key in zip(domain, ("before", "after"), strict=True)
    ]
    x = alt.X("strength:O", sort=None, title=levels[0]["unit"], axis=alt.Axis(labelAngle=0, grid=False))
    y = alt.Y("value:Q", title=None, scale=alt.Scale(domain=list(ends), nice=False), axis=alt.Axis(tickCount=4))
    colour = alt.Color("model:N", scale=alt.Scale(domain=domain, range=[f"var(--{d})" for d in domain]), legend=None)
    dash = alt.StrokeDash("model:N", scale=alt.Scale(domain=domain, range=[[5, 4], [1, 0]]), legend=None)
    shape = alt.Shape("model:N", scale=alt.Scale(domain=domain, range=[GROUPS[d] for d in domain]), legend=None)
    tooltip = ["model:N", "strength:N", alt.Tooltip("text:N", title="value")]
    base = alt.Chart(alt.Data(values=rows))
    lines = base.mark_line(strokeWidth=2).encode(x=x, y=y, color=colour, strokeDash=dash)
    return _spec(
        alt.layer(lines, base.mark_point(filled=True, size=45, opacity=1).encode(x=x, y=y, color=colour, shape=shape, tooltip=tooltip)), 150
    )


def _time_scale(times: Sequence[float], factor: float) -> Any:
    """From zero, or logarithmic where the times lie far apart."""
    import altair as alt

    low, high = min(times) / factor, max(times) / factor
    if high > WIDE * low:
        return alt.Scale(type="log", domain=[low / 1.25, high * 1.25], nice=False)
    return alt.Scale(domain=[0, high * 1.08], nice=False)


def _spec(chart: Any, height: int) -> Spec:
    """The chart as wide as its place on the page."""
    fit = {"type": "fit", "contains": "padding"}
    spec: Spec = chart.properties(width="container", height=height, autosize=fit).configure(**CONFIG).to_dict()
    return spec
