"""What `hasten simplify` prints."""

from __future__ import annotations

from rich.table import Table

from hasten.report.numbers import count, seconds, size
from hasten.report.terminal import screen
from hasten.simplify import Simplified, Size


def show_simplified(found: Simplified) -> None:
    """The table of the passes that did something, what was undone, and the whole."""
    console = screen()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("pass", "changed", "nodes", "MACs", "weights", "moved", "peak memory"):
        table.add_column(name, justify="left" if name == "pass" else "right")
    names = list(found.speed)
    for name in names:
        table.add_column(SHORT.get(name, name), justify="right")
    table.add_row("as it came", "", *_numbers(found.before))
    for verdict in found.verdicts:
        speeds = [f"× {verdict.speed[n]:.2f}" if n in verdict.speed else "" for n in names]
        table.add_row(verdict.technique.replace("_", "-"), str(verdict.changed), *_numbers(verdict.after), *speeds)
    table.add_row("all", "", *_numbers(found.after), *(f"× {found.speed[n]:.2f}" for n in names))
    console.print(table)
    if names:
        console.print(
            f"speed: beside the graph before each pass; ORT plain: onnxruntime's own optimisation off; noise floor {found.floor:.1%}"
        )
    if found.peaks is not None:
        before, after = found.peaks
        console.print(
            f"activations that lived at once while torch ran the file's order, measured: {size(before)} → {size(after)}", markup=False
        )
    for verdict in found.verdicts:
        if verdict.says:
            console.print(f"{verdict.technique.replace('_', '-')}: {verdict.says}", soft_wrap=True, markup=False)
        for node, wrong in verdict.undone:
            console.print(f"undone: {verdict.technique.replace('_', '-')} at {node}: {wrong}", soft_wrap=True, markup=False)
    for step in found.model.history:
        for skip in step.skipped if step.name in {v.technique for v in found.verdicts} else ():
            console.print(f"left alone: {skip.node}: {skip.why}", soft_wrap=True, markup=False)
    told = f"checked against the oracle in {seconds(found.check_seconds)}" if found.checked else "not checked"
    console.print(f"the passes took {seconds(found.seconds)}; {told}", markup=False)


SHORT = {"onnxruntime-plain": "ORT plain", "onnxruntime": "ORT", "openvino": "OpenVINO"}


def _numbers(value: Size) -> list[str]:
    return [str(value.nodes), count(value.macs), size(value.bytes), size(value.moved), size(value.peak)]
