"""What a call costs beside the work: one Relu on 16 floats, `python benchmarks/call.py [--rounds 5]` (needs `make native` and a C compiler).

From C (`hasten_run`), by the binding (`run_list`), through the runtime's `Session.run`, and in onnxruntime; each in a process of its own, in turns.
The least of many rounds of calls, for the machine can only add to it; the median over the processes is written, a JSON line to
`benchmarks/results/call.jsonl`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent / "build" / "native"
GOALS = {"C": 0.1, "binding": 0.6, "Session.run": 1.0}
"""µs that we set out to stay below."""

PROGRAM = r"""
#include <hasten.h>
#include <stdio.h>
#include <time.h>

int main(int count, char **arguments) {
    hasten_model *model;
    if (count != 2 || hasten_load(arguments[1], NULL, &model) != HASTEN_OK) return 1;
    float x[16], y[16];
    for (int i = 0; i < 16; i++) x[i] = (float)(i - 8);
    const void *in[] = {x};
    void *out[] = {y};
    double least = 1;
    for (int round = 0; round < 50; round++) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        for (int i = 0; i < 20000; i++) hasten_run(model, in, out, 1);
        clock_gettime(CLOCK_MONOTONIC, &end);
        const double each = ((double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9) / 20000;
        if (each < least) least = each;
    }
    hasten_free(model);
    return printf("%.9f\n", least) < 0 || y[15] != 7;
}
"""


def least(call: Callable[[], object]) -> float:
    """Seconds of a call, in the best of 50 rounds."""
    found = 1.0
    for _ in range(50):
        begin = time.perf_counter()
        for _ in range(5000):
            call()
        found = min(found, (time.perf_counter() - begin) / 5000)
    return found


def relu(place: Path) -> tuple[Path, Path]:
    """The model and its plan."""
    from onnx import TensorProto, helper

    from hasten.doors.onnx import from_proto
    from hasten.lower import lower

    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 16]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", ports[:1], ports[1:])
    model = from_proto(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]))
    model.save(place / "relu.onnx")
    (place / "relu.plan").write_bytes(lower(model).to_bytes())
    return place / "relu.onnx", place / "relu.plan"


def one(who: str, model: Path) -> float:
    """Seconds of a call, in this process."""
    x = np.linspace(-1, 1, 16, dtype=np.float32)[None]
    if who == "onnxruntime":
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        run, feeds = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]).run, {"x": x}
        return least(lambda: run(None, feeds))
    if who == "binding":
        from hasten import _native

        run_list, inputs = _native.Model.load(str(model.with_suffix(".plan"))).run_list, [x]
        return least(lambda: run_list(inputs))
    from hasten.runtimes import Target, get

    session, given = get("native").compile(model, Target(1)).run, {"x": x}
    return least(lambda: session(given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(one(arguments.one[0], Path(arguments.one[1])))
        return
    with tempfile.TemporaryDirectory() as folder:
        model, plan = relu(Path(folder))
        source, program = Path(folder) / "call.c", Path(folder) / "call"
        source.write_text(PROGRAM)
        include, library = HERE.parent / "native" / "include", f"-Wl,-rpath,{NATIVE}"
        subprocess.run(["cc", "-O2", f"-I{include}", str(source), "-o", str(program), f"-L{NATIVE}", "-lhasten", library], check=True)
        commands = {"C": [str(program), str(plan)]}
        commands |= {who: [sys.executable, __file__, "--one", who, str(model)] for who in ("binding", "Session.run", "onnxruntime")}
        times: dict[str, list[float]] = {who: [] for who in commands}
        for _ in range(arguments.rounds):
            for who, command in commands.items():
                times[who].append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    report = {
        "date": datetime.date.today().isoformat(),
        "rounds": arguments.rounds,
        "us": {who: round(statistics.median(t) * 1e6, 4) for who, t in times.items()},
        "goals": GOALS,
    }
    print(json.dumps(report))
    with (HERE / "results" / "call.jsonl").open("a") as file:
        file.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
