"""What `hasten inspect` and `hasten doctor` print."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hasten.advise.inspection import Inspection
from hasten.advise.roofline import Place
from hasten.advise.rules import Line
from hasten.doctor import Diagnosis
from hasten.facts import Row
from hasten.model import Model, Port
from hasten.report.numbers import count, seconds, size, sizes
from hasten.report.terminal import HEAVIEST, screen
from hasten.shrink.groups import Coupled


def show_inspection(model: Model, found: Inspection) -> None:
    """Totals, the heaviest layers with their place below the roof, what bounds the whole, what to try first, and the history."""
    console = screen()
    _show_totals(model, found, console)
    _show_layers(found, console)
    for line in whole_lines(found):
        console.print(line, soft_wrap=True, markup=False)
    for step in model.history:
        console.print(f"history: {step.name} {step.settings or ''}: {step.changed} changed, {len(step.skipped)} left alone", markup=False)
    for missing in found.missing:
        console.print(f"missing: {missing}", soft_wrap=True, markup=False)
    for number, advice in enumerate(found.advice):
        for text in advice_lines(advice, first=number == 0):
            console.print(text, soft_wrap=True, markup=False)


def show_channels(coupled: Coupled) -> None:
    """Each group: its channels, and where the first one is made and goes into; what can't lose any, and why."""
    console = screen()
    for group in coupled.groups:
        console.print(f"channels: {group.channels} of {group.name}: {group.describe(0)}", soft_wrap=True, markup=False)
        if group.inexact:
            console.print(f"          removed is not as if zeroed: {group.inexact}", soft_wrap=True, markup=False)
    for skip in coupled.frozen:
        console.print(f"stays:    {skip.node}: {skip.why}", soft_wrap=True, markup=False)


OBSERVED = 1.2
"""Where the layers' times sum to so many times the call's, profiling itself is a good part of them."""


def advice_lines(line: Line, first: bool) -> list[str]:
    """The command, and below it what it is expected to bring and why."""
    low, high = line.gain
    return [
        f"{'try first' if first else 'then     '}: {line.command}",
        f"           {line.candidate}, expected × {low:.1f} to {high:.1f}: {line.reason}",
    ]


def whole_lines(found: Inspection) -> list[str]:
    """Latency, what it is made of, and what bounds the model."""
    roof, known = found.roofline, found.peaks
    if roof is None or known is None:
        return []
    whole = roof.whole
    lines = []
    if found.timing is not None:
        lines.append(
            f"latency: {seconds(found.timing.seconds)} a call in onnxruntime, {known.threads if found.traits is None else found.traits.threads} "
            f"threads (p99 {seconds(found.timing.percentiles['99'])}); the roof is {seconds(whole.roof)}: {whole.reached or 0:.0%} of the peak"
        )
    total = sum(layer.seconds for layer in found.layers)
    if found.timing is not None and total > OBSERVED * found.timing.seconds:
        lines.append(
            f"the layers' times sum to {seconds(total)}: the profiler's own cost, some µs a layer, is in them; trust their order, not their size"
        )
    lines.append(
        f"bound by {whole.bound}: computing takes at least {seconds(whole.compute)}, moving bytes {seconds(whole.memory)} "
        f"({'within the caches' if roof.cached else 'from memory'}), the call and its nodes {seconds(roof.overhead)}"
    )
    lines.append(
        f"this machine's peaks ({known.threads} threads): {known.float32 / 1e9:.0f} GFLOP/s float32, {known.int8 / 1e9:.0f} GOP/s int8, "
        f"{known.memory / 1e9:.0f} GB/s memory, {known.cache / 1e9:.0f} GB/s caches; {seconds(known.call)} a call, {seconds(known.node)} a node"
    )
    if any(p.reached and p.reached > BEYOND for p in roof.layers if p.seconds and p.seconds > known.call):
        lines.append(
            "some layers reach more than these peaks, which were measured on a busier machine: hasten doctor --peaks measures them anew"
        )
    return lines


BEYOND = 1.3
"""A layer that reaches so much of the peak says that the peak was measured too low."""


def _show_totals(model: Model, found: Inspection, console: Console) -> None:
    facts = found.facts
    for kind, ports in (("input", model.inputs), ("output", model.outputs)):
        for port in ports:
            console.print(f"{kind:7}{_port(port)}", markup=False)
    console.print(f"nodes: {len(facts.rows)}: " + ", ".join(f"{n} {op}" for op, n in facts.operators.items()), soft_wrap=True, markup=False)
    console.print(
        f"{count(facts.parameters)} parameters, {size(facts.weight_bytes)} of weights, {count(facts.macs)} MACs a call, "
        f"{size(facts.activation_bytes)} of activations read and written: {facts.intensity:.2f} MACs a byte",
        soft_wrap=True,
    )
    if found.sizes is not None:
        console.print(f"size: {sizes(found.sizes)}", soft_wrap=True)
    if facts.unknown:
        console.print(f"{facts.unknown} nodes have unknown shapes and are not in the totals; give --shape AXIS=SIZE")


def _show_layers(found: Inspection, console: Console) -> None:
    """The heaviest nodes: by time where it was measured, else by MACs."""
    places = {p.name: p for p in found.roofline.layers} if found.roofline else {}

    def weight(row: Row) -> tuple[float, int]:
        place = places.get(row.name)
        return (place.seconds or 0.0 if place else 0.0, row.macs or 0)

    timed = any(p.seconds for p in places.values())
    columns = ["heaviest nodes", "operator", "output", "MACs", "weights", "bits", "activations", "MACs/byte"]
    table = Table(*columns, *(["time", "share", "bound by", "of the peak"] if timed else []), box=None)
    for row in sorted(found.facts.rows, key=weight, reverse=True)[:HEAVIEST]:
        shape = "×".join(str(d) for d in row.shape) if row.shape is not None else "?"
        moved = row.weight_bytes + (row.activation_bytes or 0)
        cells = [row.name, row.op, shape, count(row.macs), size(row.weight_bytes), str(row.bits or ""), size(row.activation_bytes)]
        cells.append(f"{(row.macs or 0) / moved:.1f}" if moved and row.macs else "")
        table.add_row(*cells, *(_time_cells(places.get(row.name), found) if timed else []))
    console.print(table)


def _time_cells(place: Place | None, found: Inspection) -> list[str]:
    if place is None or place.seconds is None:
        return ["merged", "", "", ""]
    total = sum(layer.seconds for layer in found.layers)
    return [seconds(place.seconds), f"{place.seconds / total:.0%}" if total else "", place.bound, f"{min(place.reached or 0.0, 1.0):.0%}"]


def _port(port: Port) -> str:
    return f"{port.name}  {port.dtype}  [{', '.join(str(d) for d in port.shape)}]"


def show_diagnosis(found: Diagnosis) -> None:
    """The machine, what it enables, what is installed and missing, and the self-test."""
    console = screen()
    here = found.machine
    for line in (
        f"machine: {here.cpu}, {here.system}, Python {here.python}",
        f"cores: this process may use {here.cores} of {found.cores_here}; memory: {size(here.memory)}, {size(found.free_memory)} free",
        f"C++ compiler: {found.compiler or 'none: apt-get install g++ (for the native engine alone)'}",
        f"native engine: {found.engine.missing or f'{found.engine.isa} kernels, interface version {found.engine.abi}'}",
        f"cache: {found.cache}; this machine's peaks are {'kept there' if found.peaks_measured else 'not measured yet (hasten inspect does)'}",
    ):
        console.print(line, soft_wrap=True, markup=False)
    for name, brings in found.enables.items():
        console.print(f"  {name:14}{brings}", markup=False)
    table = Table("package", "version", "what for", "to add it", box=None)
    for package in found.packages:
        table.add_row(package.name, package.version or "missing", package.about, "" if package.version else escape(package.add))
    console.print(table)
    for test in found.tests:
        state = "passed" if test.passed else "FAILED" if test.passed is False else "seen"
        console.print(f"self-test, {test.name}: {state}: {test.seen}", soft_wrap=True, markup=False)
