"""The kernels of the native engine beside the peak of one core, and their picture in docs: `python benchmarks/kernels.py [--rounds 5] [--draw]`.

`hasten benchmark --kernels` in several processes, one after the other; of each kernel the fastest counts, and of the peak the highest. One JSON line
goes to `benchmarks/results/kernels.jsonl`; `--draw` measures nothing and draws the last line again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, PICTURE = HERE / "results" / "kernels.jsonl", HERE.parent / "docs" / "kernels.svg"
COLOURS = {"GEMM": "#4c78a8", "convolution": "#4c78a8", "first layer": "#9ecae9", "depthwise": "#f58518", "one row": "#b279a2"}
GOALS = {"512 rows, 512 → 512": 0.65, "3 × 3, 64 → 64 at 56 × 56": 0.65, "3 × 3, 16 → 16 at 32 × 32": 0.5}
"""Shares of the peak on 8 bits that we set out to reach."""

TYPES = {"u8s8": "", "f32": ", float32", "bf16": ", bfloat16"}
"""What is added to a layer's name; without a word it is on 8 bits."""


def measured(rounds: int) -> dict[str, Any]:
    """The grid, the best of so many processes."""
    from hasten.measure.kernels import types_of
    from hasten.measure.machine import machine

    runs = []
    for _ in range(rounds):
        done = subprocess.run([sys.executable, "-m", "hasten", "benchmark", "--kernels", "--json"], check=True, stdout=subprocess.PIPE)
        runs += json.loads(done.stdout)
    peaks = {types: max(run["peaks"][types] for run in runs) for types in runs[0]["peaks"]}
    rows = []
    for same in zip(*(run["kernels"] for run in runs), strict=True):
        best = min(same, key=lambda row: row["seconds"])
        rate = best["operations"] / best["seconds"]
        rows.append(
            {k: best[k] for k in ("name", "kernel", "shape")} | {"us": round(best["seconds"] * 1e6, 3), "gops": round(rate / 1e9, 1)}
        )
        rows[-1]["types"] = types_of(best["kernel"])
        rows[-1]["share"] = round(rate / peaks[rows[-1]["types"]], 3)
    head = {"date": datetime.date.today().isoformat(), "cpu": machine().cpu, "isa": runs[0]["isa"], "rounds": rounds}
    return head | {"peaks_gops": {types: round(peak / 1e9, 1) for types, peak in peaks.items()}, "kernels": rows}


def draw(report: dict[str, Any]) -> None:
    """Bars of each kernel's share of the peak, with its GOP/s; a stroke where a goal was."""
    import altair as alt
    import vl_convert

    rows = [
        {
            "layer": f"{k['name']}: {k['shape']}{TYPES[k['types']]}",
            "kind": k["name"],
            "share": k["share"],
            "said": f"{k['share']:.0%} · {k['gops']:.0f} GOP/s",
        }
        | {"goal": GOALS.get(k["shape"]) if k["types"] == "u8s8" else None}
        for k in report["kernels"]
    ]
    axis = alt.Axis(labelLimit=400, minExtent=270, ticks=False, domain=False)
    y = alt.Y("layer:N", sort=[r["layer"] for r in rows], title=None, axis=axis)
    x = alt.X("share:Q", title=f"share of the peak of one core ({report['isa']})")
    x = x.scale(domain=[0, 1.22]).axis(format="%", values=[0, 0.25, 0.5, 0.75, 1], grid=True)
    colour = alt.Color("kind:N", scale=alt.Scale(domain=list(COLOURS), range=list(COLOURS.values())), legend=None)
    base = alt.Chart(alt.Data(values=rows)).encode(y=y)
    bars = base.mark_bar(height=14).encode(x=x, color=colour)
    said = base.mark_text(align="left", dx=5, fontSize=11).encode(x=x, text="said:N")
    goals = alt.Chart(alt.Data(values=[r for r in rows if r["goal"]])).mark_tick(color="black", thickness=2, size=20)
    chart = alt.layer(bars, said, goals.encode(y=y, x=alt.X("goal:Q"))).properties(width=460, height=alt.Step(22))
    PICTURE.write_text(vl_convert.vegalite_to_svg(chart.configure_view(stroke=None).to_dict()) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draw", action="store_true")
    arguments = parser.parse_args()
    if not arguments.draw:
        report = measured(arguments.rounds)
        with RESULTS.open("a") as file:
            file.write(json.dumps(report, ensure_ascii=False) + "\n")
    draw(json.loads(RESULTS.read_text().splitlines()[-1]))


if __name__ == "__main__":
    main()
