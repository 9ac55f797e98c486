"""The report as Markdown, short: what goes into a pull request."""

from __future__ import annotations

from hasten.report import numbers, pictures, words
from hasten.report.numbers import metric, seconds, size
from hasten.search.result import Result

SHOWN = 8
"""Candidates in the table: the chosen, the original, and the fastest of the others."""


def markdown(result: Result) -> str:
    """The verdict and a table."""
    lines = [f"### hasten: {plain(words.headline(result))}", ""]
    if result.better:
        lines += [f"Chosen: **{plain(result.best.name)}**, measured on {plain(words.place(result))}.", ""]
    else:
        lines += [f"{plain(words.capital(result.reason))}. Measured on {plain(words.place(result))}.", ""]
    claims = (*words.speed(result), words.sizes(result), *words.accuracy(result))
    lines += [f"- {plain(text)}" for text in claims]
    lines += ["", *table(result, SHOWN), "", "Check it: `hasten verify FOLDER --data DATA`.", ""]
    return "\n".join(lines)


def table(result: Result, most: int) -> list[str]:
    """The candidates that were timed, the best first, at most so many."""
    rank = {"chosen": 0, "original": 1}
    timed = [c for c in result.candidates if c.seconds is not None]
    ordered = sorted(timed, key=lambda c: (rank.get(pictures.group(c), 2), c.seconds))
    judged_by = plain(words.name(result)) + (" on validate" if result.manifest["judged"] else "")
    lines = [f"| candidate | time of a call | speed-up | {judged_by} | size | why not |", "|---|---:|---:|---:|---:|---|"]
    for choice in ordered[:most]:
        group, judged = pictures.group(choice), choice.accuracy
        speed = (
            f"{numbers.times(choice.ratio['estimate'])} {numbers.interval(choice.ratio)}"
            if choice.ratio
            else "1 ×"
            if group == "original"
            else "–"
        )
        name = f"**{plain(choice.name)}**" if group == "chosen" else plain(choice.name)
        cells = (
            name,
            seconds(choice.seconds),
            speed,
            metric(judged["value"] if judged else None),
            size(choice.size),
            plain(choice.reason or group),
        )
        lines.append(f"| {' | '.join(cells)} |")
    if len(ordered) > most:
        lines.append(
            f"\n{len(ordered) - most} slower candidates and {len(result.candidates) - len(timed)} that were not timed are in the report."
        )
    return lines


def plain(text: str) -> str:
    """A record's text that means nothing to Markdown or HTML, on one line."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for sign in ("\\", "|", "*", "_", "`", "[", "]", "#"):
        text = text.replace(sign, f"\\{sign}") if sign != "#" else text.replace("#", "&#35;")
    return text
