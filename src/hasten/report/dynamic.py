"""What `hasten simplify --dynamic` prints of its findings."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table

from hasten.dynamic import Dynamic
from hasten.report.numbers import count
from hasten.report.terminal import screen
from hasten.shrink.idle import Finding, Removed
from hasten.simplify import Size

LISTED = 8
"""Channels of a layer that a row names, at most."""


def show_dynamic(found: Dynamic) -> None:
    """The findings with their evidence, what was undone or stays, and what the judge says."""
    console = screen()
    console.print()
    if found.applied or found.undone:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("idle", "at", "what", "range seen", "error", "MACs"):
            table.add_column(name, justify="left" if name in ("idle", "at", "what") else "right", overflow="fold")
        for row in rows(found.applied):
            table.add_row(*row)
        console.print(table)
    else:
        console.print("the data shows nothing idle")
    if found.applied:
        one = found.applied[0]
        console.print(
            f"{len(found.applied)} findings, each so in all of {found.samples} samples: otherwise in at most {one.otherwise:.1%} of such samples "
            "(95 %, rule of three); effect: lossy",
            soft_wrap=True,
        )
    for finding, why in found.undone:
        console.print(f"undone: {finding.kind} at {finding.node}: {finding.says}: {why}", soft_wrap=True, markup=False)
    for skip in found.left:
        console.print(f"left alone: {skip.node}: {skip.why}", soft_wrap=True, markup=False)
    for judged in found.judged:
        told = f"{judged.metric} on {judged.samples} samples of {judged.split}: {judged.before:.4f} → {judged.after:.4f}"
        drop = (
            f"a drop of {judged.drop.estimate + 0.0:.4f} ({judged.drop.low:.4f} to {judged.drop.high:.4f}), {judged.allowed:g} is allowed"
        )
        console.print(f"{told}, {drop}", soft_wrap=True, markup=False)
    for note in found.notes:
        console.print(note, soft_wrap=True, markup=False, style="yellow")
    if found.applied:
        size = Size.of(found.model)
        speeds = "".join(f", × {speed:.2f} in {name}" for name, speed in found.speed.items())
        console.print(f"without what is idle: {size.nodes} nodes, {count(size.macs)} MACs{speeds}", soft_wrap=True, markup=False)


def rows(findings: Iterable[Finding]) -> list[tuple[str, ...]]:
    """Cells of the table: the channels of one axis that are idle in the same way are one row."""
    together: dict[tuple[str, str, str], list[Finding]] = {}
    for finding in findings:
        where = finding.remedy.group if isinstance(finding.remedy, Removed) else finding.says
        together.setdefault((finding.kind, finding.node, where), []).append(finding)
    return [
        (
            kind,
            node,
            where if len(mine) == 1 and not isinstance(mine[0].remedy, Removed) else f"{_channels(mine)} of {where}",
            f"{min(f.low for f in mine):.3g} … {max(f.high for f in mine):.3g}",
            f"{max(f.error for f in mine):.2g}",
            count(sum(f.macs for f in mine)),
        )
        for (kind, node, where), mine in together.items()
    ]


def _channels(findings: list[Finding]) -> str:
    numbers = [str(f.remedy.channel) for f in findings if isinstance(f.remedy, Removed)]
    more = f" and {len(numbers) - LISTED} more" if len(numbers) > LISTED else ""
    return f"channel{'s' if len(numbers) > 1 else ''} {', '.join(numbers[:LISTED])}{more}"
