"""`hasten simplify` beside OnnxSlim and onnxsim: nodes and bytes of the real models, `python benchmarks/simplify.py`.

Neither peer is a dependency: `pip install onnxslim onnxsim` first. Each model goes through each tool in a process of its own. Generators that
hasten's size limit keeps (Expand, Tile …) are not counted as nodes, because the peers write what they make into the file. One JSON line each in
`results/simplify.jsonl`.
"""

from __future__ import annotations

import collections
import datetime
import json
import lzma
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.models import BUILT, DATA

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "simplify.jsonl"
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


def main() -> None:
    import onnx

    models = sorted([*(DATA / "models").glob("*.onnx*"), *BUILT.glob("*.onnx")])
    for path in models:
        with tempfile.TemporaryDirectory() as private:
            model = Path(private) / "model.onnx"
            model.write_bytes(lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes())
            before = sum(n.op_type not in GENERATORS for n in onnx.load(model).graph.node)
            line: dict[str, Any] = {"model": path.name.split(".onnx")[0], "date": datetime.date.today().isoformat(), "before": before}
            line |= {tool: through(tool, model, Path(private)) for tool in TOOLS}
        print(json.dumps(line), flush=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
