"""The passes' own time over the size of the graph: `python benchmarks/large_graph.py [100 1000 10000]`.

The graphs are made up as exporters write them: residual blocks of convolutions with batch norm, some of them channels last, then blocks of a
transformer with LayerNorm and Gelu in pieces and with shapes that are computed. Weights are small, for the time of the walk is what counts.
One JSON line for each size in `results/large_graph.jsonl`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RESULTS = Path(__file__).resolve().parent / "results" / "large_graph.jsonl"
RUNS = 3
CHANNELS, SIDE, HEADS = 8, 4, 2
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]


class Writer:
    """Nodes and weights of a graph while it grows."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.numbers = np.random.default_rng(0)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"{name}_node", **attributes))
        return name

    def weight(self, array: Any) -> str:
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def random(self, *shape: int) -> str:
        return self.weight((self.numbers.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))).astype(np.float32))

    def number(self, value: float) -> str:
        return self.weight(np.float32(value))

    def whole(self, *numbers: int) -> str:
        return self.weight(np.array(numbers, np.int64))


def residual_block(w: Writer, x: str, last: bool) -> str:
    """Two convolutions with batch norm beside the identity. `last`: channels last, with a Transpose before and behind each convolution."""
    y = x
    for index in range(2):
        y = w.node("Conv", y, w.random(CHANNELS, CHANNELS, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        statistics = [w.random(CHANNELS), w.random(CHANNELS), w.random(CHANNELS), w.weight(np.ones(CHANNELS, np.float32))]
        y = w.node("BatchNormalization", y, *statistics)
        if last:
            y = w.node("Transpose", y, perm=TO_LAST)
        if index == 0:
            y = w.node("Relu", y)
            y = w.node("Transpose", y, perm=TO_FIRST) if last else w.node("Identity", y)
    if last:
        return w.node("Transpose", w.node("Relu", w.node("Add", y, w.node("Transpose", x, perm=TO_LAST))), perm=TO_FIRST)
    return w.node("Relu", w.node("Add", y, x))


def layer_norm(w: Writer, x: str) -> str:
    difference = w.node("Sub", x, w.node("ReduceMean", x, w.whole(-1)))
    variance = w.node("ReduceMean", w.node("Pow", difference, w.number(2)), w.whole(-1))
    deviation = w.node("Sqrt", w.node("Add", variance, w.number(1e-5)))
    return w.node("Add", w.node("Mul", w.node("Div", difference, deviation), w.random(CHANNELS)), w.random(CHANNELS))


def linear(w: Writer, x: str, inputs: int, outputs: int) -> str:
    return w.node("Add", w.node("MatMul", x, w.random(inputs, outputs)), w.random(outputs))


def reshaped(w: Writer, x: str, *behind: int) -> str:
    """To (batch, …), as torch's older exporter writes it: the batch is read from the value's own shape."""
    batch = w.node("Unsqueeze", w.node("Gather", w.node("Shape", x), w.weight(np.int64(0))), w.whole(0))
    return w.node("Reshape", x, w.node("Concat", batch, *(w.whole(size) for size in behind), axis=0))


def transformer_block(w: Writer, x: str) -> str:
    normal = layer_norm(w, x)
    orders = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    parted = [reshaped(w, linear(w, normal, CHANNELS, CHANNELS), SIDE * SIDE, HEADS, CHANNELS // HEADS) for _ in orders]
    q, k, v = (w.node("Transpose", part, perm=order) for part, order in zip(parted, orders, strict=True))
    scores = w.node("Div", w.node("MatMul", q, k), w.number(np.sqrt(CHANNELS // HEADS)))
    mixed = w.node("Transpose", w.node("MatMul", w.node("Dropout", w.node("Softmax", scores, axis=-1)), v), perm=[0, 2, 1, 3])
    x = w.node("Add", x, linear(w, reshaped(w, mixed, SIDE * SIDE, CHANNELS), CHANNELS, CHANNELS))
    wide = linear(w, layer_norm(w, x), CHANNELS, 2 * CHANNELS)
    bent = w.node("Add", w.node("Erf", w.node("Div", wide, w.number(np.sqrt(2)))), w.number(1))
    gelu = w.node("Mul", w.node("Mul", wide, bent), w.number(0.5))
    return w.node("Add", x, linear(w, gelu, 2 * CHANNELS, CHANNELS))


def large_graph(nodes: int) -> onnx.ModelProto:
    """A graph of about so many nodes, the first half of them in residual blocks, the second in a transformer's."""
    w = Writer()
    value, count = "image", 0
    while len(w.nodes) < nodes / 2:
        value, count = residual_block(w, value, last=count % 2 == 1), count + 1
    value = w.node("Transpose", reshaped(w, value, CHANNELS, SIDE * SIDE), perm=[0, 2, 1])
    while len(w.nodes) < nodes:
        value = transformer_block(w, value)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", CHANNELS, SIDE, SIDE])
    result = helper.make_tensor_value_info(value, TensorProto.FLOAT, ["N", SIDE * SIDE, CHANNELS])
    graph = helper.make_graph(w.nodes, "large", [image], [result], w.weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def measured(nodes: int) -> dict[str, Any]:
    """The least of RUNS: seconds of all passes, of the whole call, which counts bytes and MACs as well, by the
    processor's clock and by the one on the wall."""
    from hasten.doors.onnx import from_proto
    from hasten.simplify import passes, simplify

    proto = large_graph(nodes)
    least = [float("inf")] * 3
    for _ in range(RUNS):
        model = from_proto(proto)
        begin, begin_processor = time.perf_counter(), time.process_time()
        found = simplify(model, passes(), checked=False)
        whole, processor = time.perf_counter() - begin, time.process_time() - begin_processor
        least = [min(pair) for pair in zip(least, (found.seconds, processor, whole), strict=True)]
    return {
        "date": datetime.date.today().isoformat(),
        "nodes": found.before.nodes,
        "after": found.after.nodes,
        "passes_seconds": round(least[0], 3),
        "processor_seconds": round(least[1], 3),
        "seconds": round(least[2], 3),
        "microseconds_per_node": round(1e6 * least[0] / found.before.nodes),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sizes", type=int, nargs="*", default=[100, 1_000, 10_000])
    for size in parser.parse_args(arguments).sizes:
        line = json.dumps(measured(size))
        print(line, flush=True)
        with RESULTS.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
