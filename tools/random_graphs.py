"""Put random graphs through every pass, any number of them: `python tools/random_graphs.py 50000 --seed 0`. Goes on where it was stopped.

One in four goes through the whole of `simplify` too. Graph number i is made from the seed `SEED:i`, so a failure that is printed can be made again
with `--only i`. Every hundred graphs the counts go to `--state`, and from there a later call with the same seed goes on.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

from tests.passes.random_graphs import check_passes, random_graph  # noqa: E402

EVERY = 100
WHOLE = 4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, help="how many graphs, in all calls with this seed together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this graph alone, and print it")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time; a later call goes on")
    parser.add_argument("--state", type=Path, help="where the counts are kept; default: build/random_graphs_SEED.json")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    if options.only is not None:
        import onnx

        proto = random_graph(random.Random(f"{options.seed}:{options.only}"))
        print(onnx.printer.to_text(proto))
        print(dict(check_passes(proto, whole=True)))
        return 0
    state = options.state or ROOT / "build" / f"random_graphs_{options.seed}.json"
    state.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(state.read_text()) if state.exists() else {"done": 0, "counts": {}, "failures": []}
    counts, begun = Counter(kept["counts"]), time.monotonic()
    while kept["done"] < options.count and time.monotonic() - begun < options.seconds:
        number = kept["done"]
        try:
            counts += check_passes(random_graph(random.Random(f"{options.seed}:{number}")), whole=number % WHOLE == 0)
        except Exception as e:  # noqa: BLE001 - what went wrong is what this tool is for
            text = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            kept["failures"].append([number, text])
            print(f"graph {number}: {text}", flush=True)
        kept["done"] += 1
        if kept["done"] % EVERY == 0 or kept["done"] == options.count:
            state.write_text(json.dumps(kept | {"counts": dict(counts)}, indent=1))
    state.write_text(json.dumps(kept | {"counts": dict(counts)}, indent=1))
    print(f"{kept['done']} graphs, {len(kept['failures'])} failures")
    for name, count in sorted(counts.items()):
        print(f"{name:20} {count}")
    return 1 if kept["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
