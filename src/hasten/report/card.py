"""The model card, after Mitchell et al., "Model Cards for Model Reporting" (arXiv 1810.03993): what only the user knows is left to fill in."""

from __future__ import annotations

from typing import Any

from hasten.folder import MODEL, ORIGINAL
from hasten.report import words
from hasten.report.markdown import plain, table
from hasten.report.numbers import metric, share
from hasten.report.sections import SECTIONS
from hasten.search.result import Result

FILL = "*To be filled in by who publishes the model.*"
SHOWN = 10


def card(result: Result) -> str:
    """The card as Markdown."""
    manifest = result.manifest
    found: dict[str, Any] = manifest.get("details", {})
    parts = [
        ("Model card", [f"{words.headline(result)}." if result.better else f"{words.headline(result)}: {plain(result.reason)}."], 1),
        ("What it is", _what(result), 2),
        ("How it was made", _made(found), 2),
        ("Intended use", [FILL, "", "*Who is it for, what for, and what not?*"], 2),
        ("Measured performance", _performance(result, found), 2),
        ("Data", _data(result), 2),
        ("Limits", [f"- {plain(line)}" for line in words.limits(result)], 2),
        ("Ethical considerations", [FILL], 2),
        ("How to verify", _verify(result), 2),
    ]
    return "\n".join("\n".join([f"{'#' * level} {title}", "", *lines, ""]) for title, lines, level in parts)


def _what(result: Result) -> list[str]:
    manifest = result.manifest
    ports = {
        kind: ", ".join(f"{p['name']} {p['dtype']}[{', '.join(map(str, p['shape']))}]" for p in manifest[kind])
        for kind in ("inputs", "outputs")
    }
    return [
        f"- File: `{MODEL}` (ONNX, opset 21), SHA-256 `{manifest['digests'][MODEL]}`",
        f"- Runs as: {plain(result.best.name)} (recipe · runtime · threads), batch {result.best.target['batch']}",
        f"- Inputs: {plain(ports['inputs'])}",
        f"- Outputs: {plain(ports['outputs'])}",
        "- Licence, authors, version, contact: *to be filled in*",
    ]


def _made(found: dict[str, Any]) -> list[str]:
    lines = ["From the original by these techniques, in this order:", ""] if found.get("history") else ["It is the original, unchanged."]
    for step in found.get("history", []):
        settings = ", ".join(f"{k} {v}" for k, v in step["settings"].items())
        left = f", {len(step['skipped'])} left alone" if step["skipped"] else ""
        lines.append(
            f"1. {plain(step['name'].replace('_', ' '))}: {step['changed']} nodes changed{left}{f' ({plain(settings)})' if settings else ''}"
        )
    return lines


def _performance(result: Result, found: dict[str, Any]) -> list[str]:
    claims = (*words.speed(result), words.sizes(result), *words.accuracy(result))
    lines = [f"Measured on {plain(words.place(result))}; intervals are 95 %.", "", *(f"- {plain(text)}" for text in claims)]
    if found.get("flips") is not None and result.best.test is not None:
        samples = result.best.test["samples"]
        lines.append(
            f"- {found['flips']} of {samples} test samples ({share(found['flips'] / samples, 1)}) get another class than from the original."
        )
    if changed := [c for c in found.get("classes") or [] if c["after"] < c["before"] and c["samples"] >= words.FEW]:
        worst = min(changed, key=lambda c: c["after"] - c["before"])
        lines.append(
            f"- Recall fell in {len(changed)} of the classes with at least {words.FEW} samples; most in class {worst['label']}: "
            f"{metric(worst['before'])} → {metric(worst['after'])} on {worst['samples']} samples."
        )
    for section in (s for make in SECTIONS if (s := make(result, found)) is not None):
        lines += [f"- {section.title}: {plain(' '.join(section.lines))}"] if section.lines else []
    return [*lines, "", *table(result, SHOWN)]


def _data(result: Result) -> list[str]:
    judged = result.manifest["judged"]
    if judged is None:
        return ["None was given: accuracy was not judged."]
    return [
        "Described by counts and a digest alone; hasten keeps no sample and no label.",
        "",
        *(f"- {name}: {count} samples" for name, count in words.splits(result)),
        f"- labels: {'yes' if judged['labels'] else 'no, the original model is the reference'}",
        f"- digest of data, metric and preprocessing: `{judged['data']}`",
        "- source, collection, consent, licence: *to be filled in*",
    ]


def _verify(result: Result) -> list[str]:
    return [
        "```",
        f"hasten verify FOLDER{' --data DATA' if result.manifest['judged'] else ''}      # digests, speed, accuracy, measured again",
        f"hasten run plan.json {ORIGINAL} -o again    # the same {MODEL}, byte for byte",
        "python run.py --measure                     # its time on your machine",
        "```",
        "",
        f"Made with hasten {result.manifest['hasten']}: {plain(words.versions(result.manifest))}; seed {result.manifest['seed']}.",
    ]
