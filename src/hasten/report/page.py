"""The report: one self-contained HTML page for a finished folder. Its numbers come from the manifest; it asks no host for anything."""

from __future__ import annotations

import functools
import json
import math
from collections import defaultdict
from importlib import resources
from typing import Any

from hasten.folder import MODEL
from hasten.report import numbers, pictures, words
from hasten.report.numbers import change, metric, seconds, share, size
from hasten.report.sections import SECTIONS
from hasten.search.result import Choice, Result

MARKS = {
    "chosen": "M8 1l6 7-6 7-6-7z",
    "original": "M2.5 2.5h11v11h-11z",
    "front": "M8 2l7 12H1z",
    "lost": "M8 2.2a5.8 5.8 0 1 0 .01 0z",
}
"""The shapes of pictures.GROUPS as SVG paths, for the legend and the table."""

FIGURES = {"proven": "Kept: proven", "not shown": "Likely kept: not shown"}
"""What stands large above the words on accuracy."""

NODES = 12
"""Nodes of one reason that are named; of the others, how many there are."""


def page(result: Result) -> str:
    """The page as text. Raises BadInput for a folder that is not finished (see Result.load)."""
    import jinja2
    from markupsafe import Markup

    drawn, context = _context(result)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    files = {name: resources.files("hasten.report").joinpath(name).read_text() for name in ("page.html", "page.css", "page.js")}
    return environment.from_string(files["page.html"]).render(
        context,
        css=Markup(files["page.css"]),
        js=Markup(files["page.js"]),
        vega=Markup(libraries()),
        pictures=Markup(_json(drawn)),
        capital=words.capital,
    )


@functools.cache
def libraries() -> str:
    """Vega, Vega-Lite and vega-embed in one script, from the package vl-convert: nothing is downloaded. About 0.9 MB."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _json(value: Any) -> str:
    """JSON that can stand in a script element whatever is in it."""
    return json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _context(result: Result) -> tuple[dict[str, pictures.Spec], dict[str, Any]]:
    """The specifications by the id of their place, and what the template reads."""
    manifest = result.manifest
    found = manifest.get("details", {})
    drawn: dict[str, pictures.Spec] = {}
    extras = [s for make in SECTIONS if (s := make(result, found)) is not None]
    for section in extras:
        drawn |= {plot.id: plot.spec for plot in section.plots}
    untimed = _untimed(result)
    context = {
        "version": manifest["hasten"],
        "headline": words.headline(result),
        "better": result.better,
        "reason": result.reason,
        "chosen": result.best.name,
        "runtime": manifest["runtime"],
        "baseline": words.baselines(result)[0][0] if result.best.ratio else "",
        "judged": manifest["judged"] is not None,
        "metric": words.name(result),
        "claims": _claims(result),
        "marks": MARKS,
        "pareto": _pareto(result, drawn),
        "legend": _legend(result),
        "rows": [_row(c, result) for c in _ordered(result)],
        "untimed": untimed,
        "untimed_count": sum(len(names) for _, names in untimed),
        "layers": _layers(found.get("layers"), drawn),
        "latency": _latency(found.get("latency"), drawn),
        "classes": _classes(result, found, drawn),
        "history": [_step(s) for s in found.get("history", [])],
        "extras": extras,
        "limits": words.limits(result),
        "machine": words.place(result),
        "versions": words.versions(manifest),
        "seed": manifest["seed"],
        "digest": manifest["digests"][MODEL][:16],
    }
    return drawn, context


def _claims(result: Result) -> list[dict[str, Any]]:
    best, state = result.best, words.accuracy_state(result)
    figures = {
        "speed": f"{best.speed_up['estimate']:.2f} × as fast" if result.better and best.speed_up else "as fast as before",
        "size": words.smaller(result) if result.better else "unchanged",
    }
    return [
        {"name": "Speed", "figure": words.capital(figures["speed"]), "lines": words.speed(result), "state": ""},
        {"name": "Size", "figure": words.capital(figures["size"]), "lines": [words.sizes(result)], "state": ""},
        {
            "name": words.capital(words.name(result)),
            "figure": FIGURES.get(state, words.capital(state)),
            "lines": words.accuracy(result),
            "state": state,
        },
        {"name": "Measured on", "figure": result.manifest["machine"]["cpu"], "lines": [f"{words.hardware(result)}."], "state": ""},
    ]


def _pareto(result: Result, drawn: dict[str, pictures.Spec]) -> str:
    """What the picture shows, in words; empty where there is none."""
    spec = pictures.pareto(result)
    if spec is None:
        return ""
    drawn["pareto"] = spec
    before, best = words.original(result), result.best
    timed = [c for c in result.candidates if c.seconds is not None]
    judged = [c for c in timed if c.accuracy is not None]
    areas = f"The area of a mark is the size of its file, from {size(min(c.size for c in timed))} to {size(max(c.size for c in timed))}."
    what = f"Time against {words.name(result)} of {len(judged)} candidates: further left is faster, higher is better."
    if result.manifest["judged"] is not None and not result.manifest["judged"]["higher_is_better"]:
        what = f"Time against {words.name(result)} of {len(judged)} candidates: further left is faster, lower is better."
    if not judged:
        what = f"Time against size of {len(timed)} candidates: further left is faster, lower is smaller."
    choice = "" if not result.better else f" The chosen one takes {seconds(best.seconds)}, the original {seconds(before.seconds)}."
    ticks = " Ticks on the axis of time: candidates that were not judged." if 0 < len(judged) < len(timed) else ""
    return f"{what}{choice} {areas}{ticks}"


def _legend(result: Result) -> list[tuple[str, str]]:
    texts = {
        "chosen": "chosen",
        "original": "original" if result.better else "original, returned",
        "front": "not beaten in time, accuracy and size together",
        "lost": "lost",
    }
    groups = {pictures.group(c) for c in result.candidates if c.seconds is not None}
    return [(g, t) for g, t in texts.items() if g in groups]


def _ordered(result: Result) -> list[Choice]:
    """The chosen, the original, then the others by time."""
    rank = {"chosen": 0, "original": 1}
    timed = [c for c in result.candidates if c.seconds is not None]
    return sorted(timed, key=lambda c: (rank.get(pictures.group(c), 2), c.seconds))


def _row(choice: Choice, result: Result) -> dict[str, Any]:
    group, ratio, judged = pictures.group(choice), choice.ratio, choice.accuracy
    is_original = group == "original"
    why = choice.reason or {"chosen": "chosen", "original": "the original" if result.better else "the original, returned"}.get(group, "")
    return {
        "group": group,
        "name": choice.name,
        "time": seconds(choice.seconds),
        "speed": "1 ×" if is_original else numbers.times(ratio["estimate"]) if ratio else "–",
        "interval": numbers.interval(ratio) if ratio and not is_original else "",
        "metric": metric(judged["value"] if judged else None),
        "size": size(choice.size),
        "why": why,
        "order": {
            "time": choice.seconds,
            "speed": 1.0 if is_original else ratio["estimate"] if ratio else "",
            "metric": judged["value"] if judged else "",
            "size": choice.size,
        },
    }


def _untimed(result: Result) -> list[tuple[str, list[str]]]:
    """Names of the candidates that were not timed, by reason."""
    found: dict[str, list[str]] = defaultdict(list)
    for choice in result.candidates:
        if choice.seconds is None:
            found[choice.reason].append(choice.name)
    return list(found.items())


def _layers(found: dict[str, Any] | None, drawn: dict[str, pictures.Spec]) -> dict[str, Any] | None:
    """Two pictures on one scale, and how much of each call no layer explains."""
    if not found:
        return None
    titles: dict[str, str] = {"before": "Original", "after": "Chosen"}
    measured = [profile for profile in found.values() if "failed" not in profile]
    longest = max((r["seconds"] for profile in measured for r in profile["layers"]), default=0.0)
    sides, told = [], []
    for side in [s for s in titles if s in found]:
        profile = found[side]
        if "failed" in profile:
            sides.append({"title": titles[side], "failed": profile["failed"]})
            continue
        name, over = f"layers-{side}", pictures.overhead(profile)
        drawn[name] = pictures.layers(profile, longest, {"before": "original", "after": "chosen"}[side])
        rows = sorted(profile["layers"], key=lambda r: -r["seconds"])
        sides.append(
            {
                "title": titles[side],
                "failed": "",
                "id": name,
                "label": _layer_words(rows, profile["call_seconds"], over),
                "rows": [{"name": r["name"], "op": r["op"], "time": seconds(r["seconds"])} for r in rows],
            }
        )
        told.append(f"{share(over / profile['call_seconds'])} of the {titles[side].lower()}'s call" if over else "")
    text = (
        f"Overhead, which no layer explains, is {' and '.join(filter(None, told))}. "
        if any(told)
        else "No overhead beside the layers is to be seen. "
    )
    text += "As the runtimes' own profilers tell it, on one scale; runtimes fuse and rename layers, and profiling costs a little itself."
    return {"sides": sides, "words": text}


def _layer_words(rows: list[dict[str, Any]], call: float, over: float) -> str:
    """How many layers take how much of a call, and the lighter ones that the picture leaves out."""
    total, rest = sum(r["seconds"] for r in rows), rows[pictures.HEAVIEST :]
    text = f"{len(rows)} layers take {seconds(total)} of a call of {seconds(call)}; overhead {seconds(over)}."
    if not over:
        text = f"{len(rows)} layers take {seconds(total)} while they are profiled; a call without the profiler takes {seconds(call)}."
    if rest:
        text += (
            f" Shown: the {pictures.HEAVIEST} heaviest; the {len(rest)} others together take {seconds(sum(r['seconds'] for r in rest))}."
        )
    return text


def _latency(found: dict[str, Any] | None, drawn: dict[str, pictures.Spec]) -> dict[str, Any] | None:
    if not found:
        return None
    if "failed" in found:
        return {"failed": found["failed"]}
    drawn["latency"] = pictures.latency(found)
    rows, told = [], []
    for side, name in (("before", "original"), ("after", "chosen")):
        if side not in found:
            continue
        p50, p95, p99 = (found[side][found["ranks"].index(r)] for r in (50, 95, 99))
        values = [seconds(p50), seconds(p95), seconds(p99), f"{found['calls'][side]:,}"]
        rows.append({"name": name, "values": values})
        told.append(f"{name}: half of the calls within {seconds(p50)}, 95 % within {seconds(p95)}, 99 % within {seconds(p99)}")
    text = words.capital("; ".join(told)) + ". A measurement of its own, of single calls in a few fresh processes."
    return {"failed": "", "rows": rows, "words": text}


def _classes(result: Result, found: dict[str, Any], drawn: dict[str, pictures.Spec]) -> dict[str, Any] | None:
    """Flips in words; recall by class where there are labels."""
    flips, rows, test = found.get("flips"), found.get("classes") or [], result.best.test
    if flips is None or test is None:
        return None
    samples = test["samples"]
    text = f"On {flips} of {samples} test samples ({share(flips / samples, 1)}) the chosen model names another class than the original."
    if flips == 0:
        text = f"On all {samples} test samples the chosen model names the same class as the original."
    label, changed = "", [r for r in rows if r["before"] != r["after"]]
    if rows and max(r["samples"] for r in rows) < words.FEW:
        text += f" Recall by class would say little: no class has {words.FEW} samples or more."
    elif changed:
        drawn["classes"] = pictures.classes(rows) or {}
        worst = min(changed, key=lambda r: r["after"] - r["before"])
        shown = min(len(changed), pictures.MOST_CLASSES)
        label = (
            f"Recall changed in {len(changed)} of {len(rows)} classes{f'; the {shown} that changed most' if shown < len(changed) else ''}."
        )
        if worst["after"] < worst["before"]:
            label += (
                f" Class {worst['label']} lost most: {share(worst['before'], 1)} → {share(worst['after'], 1)} on {worst['samples']} "
                f"sample{'s' if worst['samples'] > 1 else ''}."
            )
    elif rows:
        text += " No class changed its recall."
    table = [
        {
            "label": r["label"],
            **{k: metric(r[k]) for k in ("before", "after")},
            "change": change(r["after"] - r["before"]),
            "samples": r["samples"],
        }
        for r in sorted(rows, key=lambda r: r["after"] - r["before"])
    ]
    return {"words": text, "label": label, "rows": table}


def _step(step: dict[str, Any]) -> dict[str, Any]:
    """One technique: what it changed, and what it left alone, by reason."""
    skipped: dict[str, list[str]] = defaultdict(list)
    for skip in step["skipped"]:
        skipped[skip["why"]].append(skip["node"])
    named = [(why, _some(nodes)) for why, nodes in skipped.items()]
    changed = step["changed"]
    return {
        "name": step["name"].replace("_", " "),
        "changed": changed,
        "words": f"{changed} node{'s' if changed != 1 else ''} changed" if changed else "nothing to change",
        "settings": ", ".join(f"{k} {v}" for k, v in step["settings"].items()),
        "skipped": named,
        "skipped_count": f"{len(step['skipped'])} node{'s' if len(step['skipped']) > 1 else ''}",
    }


def _some(nodes: list[str]) -> list[str]:
    more = [f"and {len(nodes) - NODES} more"] if len(nodes) > NODES else []
    return [n or "(no name)" for n in nodes[:NODES]] + more
