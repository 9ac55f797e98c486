"""`hasten simplify` beside OnnxSlim and onnxsim on the real models: nodes, bytes and speed, `python benchmarks/simplify.py`, then `… --time`.

Neither peer is a dependency: `pip install onnxslim onnxsim` first. Each model goes through each tool in a process of its own. Generators that
hasten's size limit keeps (Expand, Tile …) are not counted as nodes, because the peers write what they make into the file. With `--time` what they
made is timed beside the original, in turns of fresh processes, in onnxruntime with its own optimisation off and on. One JSON line each in
`results/simplify.jsonl`; models stay in build/simplify.
"""

from __future__ import annotations

import argparse
import collections
import datetime
import json
import lzma
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import BUILT, DATA

ROOT = Path(__file__).resolve().parent.parent
RESULTS, MADE = ROOT / "benchmarks" / "results" / "simplify.jsonl", ROOT / "build" / "simplify"
RUNTIMES = ("onnxruntime-plain", "onnxruntime")
GENERATORS = ("ConstantOfShape", "Expand", "Tile", "Range", "Constant")
TOOLS = {
    "hasten": "import hasten.cli; hasten.cli.main(['simplify', {a!r}, '-o', {b!r}, '--no-timing', '-q'])",
    "onnxslim": "import onnx, onnxslim; onnx.save(onnxslim.slim(onnx.load({a!r})), {b!r})",
    "onnxsim": "import onnx, onnxsim; onnx.save(onnxsim.simplify(onnx.load({a!r}))[0], {b!r})",
}


def through(tool: str, model: Path, place: Path) -> dict[str, Any]:
    """Nodes (generators aside), bytes and seconds, the start of Python among them; or why it failed."""
    import onnx

    out = place / f"{tool}.onnx"
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", TOOLS[tool].format(a=str(model), b=str(out))], capture_output=True, text=True, timeout=600, check=False
    )
    if not out.exists():
        return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
    operators = collections.Counter(n.op_type for n in onnx.load(out, load_external_data=False).graph.node)
    nodes = sum(n for op, n in operators.items() if op not in GENERATORS)
    return {"nodes": nodes, "bytes": out.stat().st_size, "seconds": round(time.monotonic() - start, 1)}


def counted(name: str, packed: Path) -> dict[str, Any]:
    """What each tool makes of the model."""
    import onnx

    place = MADE / name
    place.mkdir(parents=True, exist_ok=True)
    model = place / "original.onnx"
    model.write_bytes(lzma.decompress(packed.read_bytes()) if packed.suffix == ".xz" else packed.read_bytes())
    before = sum(n.op_type not in GENERATORS for n in onnx.load(model).graph.node)
    return {"before": before} | {tool: through(tool, model, place) for tool in TOOLS}


def timed(name: str) -> dict[str, Any]:
    """By runtime and tool, how many times faster than the original; `original`: itself, the noise."""
    from hasten import check
    from hasten.doors.onnx import load_onnx
    from hasten.errors import HastenError
    from hasten.measure.beside import ratios_beside
    from hasten.measure.machine import cores
    from hasten.runtimes import Target

    files = {tool: MADE / name / f"{tool}.onnx" for tool in ("original", *TOOLS)}
    models = {tool: load_onnx(file) for tool, file in files.items() if file.exists()}
    original = models["original"]
    batch = next((p.shape[0] for p in original.inputs if p.shape and isinstance(p.shape[0], int)), 1)
    speeds: dict[str, dict[str, float]] = {}
    for runtime in RUNTIMES:
        try:
            ratios = ratios_beside(
                original, list(models.values()), runtime, Target(cores(), batch), check.random_feeds(original, batch), rounds=3
            )
        except HastenError as e:
            print(f"{name} is not timed in {runtime}: {e}", flush=True)
            continue
        speeds[runtime] = {tool: round(1 / ratio, 3) for tool, ratio in zip(models, ratios, strict=True)}
    return {"speed": speeds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--time", action="store_true", help="time what an earlier call made")
    parser.add_argument("models", nargs="*", help="by name; all by default")
    given = parser.parse_args()
    for path in sorted([*(DATA / "models").glob("*.onnx*"), *BUILT.glob("*.onnx")]):
        name = path.name.split(".onnx")[0]
        if given.models and name not in given.models:
            continue
        line = {"model": name, "date": datetime.date.today().isoformat(), **(timed(name) if given.time else counted(name, path))}
        print(json.dumps(line), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
