"""Does the judge agree with itself? `python benchmarks/noise.py aa MODEL.onnx [--runs 20]` compares a model with itself: how many of the
intervals cover 1. `… verify FOLDER --data DATA [--runs 10]` verifies a finished folder again and again: how many runs agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HASTEN = [sys.executable, "-m", "hasten"]


def compare_with_itself(model: str) -> tuple[bool, str]:
    """One A/A comparison of the same bytes under two names."""
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "twin.onnx"
        twin.write_bytes(Path(model).read_bytes())
        done = subprocess.run([*HASTEN, "benchmark", model, str(twin), "--json"], capture_output=True, text=True, check=True)
    ratio = json.loads(done.stdout)["standings"][1]["ratio"]
    return ratio["low"] <= 1 <= ratio["high"], f"{ratio['estimate']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def verify(folder: str, data: list[str]) -> tuple[bool, str]:
    """One `hasten verify`."""
    done = subprocess.run([*HASTEN, "verify", folder, *data, "--json"], capture_output=True, text=True, check=False)
    claims = json.loads(done.stdout) if done.stdout.strip() else []
    return done.returncode == 0, "; ".join(f"{c['name']} {c['state']}: {c['why']}" for c in claims if c["name"] == "speed")


def main() -> None:
    """Run and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("aa", "verify"))
    parser.add_argument("subject")
    parser.add_argument("--runs", type=int, default=0)
    arguments, more = parser.parse_known_args()
    runs = arguments.runs or (20 if arguments.what == "aa" else 10)
    agreed = 0
    for number in range(runs):
        good, line = compare_with_itself(arguments.subject) if arguments.what == "aa" else verify(arguments.subject, more)
        agreed += good
        print(f"{number + 1:3d} {'agrees' if good else 'DIFFERS'} {line}", flush=True)
    print(f"{agreed} of {runs}")


if __name__ == "__main__":
    main()
