"""Plans for the engine's tests in C++ (native/tests/engine_test.cpp): `python -m tests.native.plans FOLDER` writes them."""

import sys
from pathlib import Path

from hasten.lower import lower
from tests.lower.floats import FloatNet
from tests.lower.quantized import Net


def small():
    """Every kind of op on little data: what is damaged byte by byte."""
    net = Net(3, 3, 6, 5)
    x = net.conv(net.first, 8, 3, 1, 1, bounds="relu")
    x = net.add(net.conv(x, 8, 3, 1, 1, group=8), x)
    x = net.concat(net.conv(x, 5, 1), net.conv(x, 8, 3, 1, 1))
    x = net.activation(net.shortcut(net.pool(x, 2, 1), 15), "Sigmoid")
    y = net.gemm(net.flat(net.pool(x, 2, 1, op="AveragePool")), 17, last=True)
    return net.model(y)


def image():
    """An image comes out: codes are dequantized."""
    net = Net(4, 2, 9, 7)
    return net.model(net.conv(net.conv(net.first, 20, 3, 1, 1, bounds="relu"), 5, (1, 3)))


def vector():
    """Gemms alone, whose samples are computed together."""
    net = Net(5, 50, 1, 1, vector=True)
    return net.model(net.gemm(net.gemm(net.gemm(net.first, 130, "relu"), 33), 10, last=True))


def shared():
    """Enough work for a team on one sample."""
    net = Net(6, 3, 33, 31)
    x = net.conv(net.first, 40, 3, 1, 1, bounds="relu")
    x = net.conv(net.add(net.conv(x, 40, 3, 1, 1), x), 40, 3, 2, 1, group=40)
    return net.model(net.gemm(net.flat(net.mean(net.pool(x, 3, 2, 1))), 10, last=True))


def floats():
    """Images of floats through every kernel for them."""
    net = FloatNet(1)
    x = net.unary(net.conv(net.input("x", (3, 7, 6)), 8, 3, 1, 1), "HardSwish")
    x = net.binary("Add", net.conv(x, 8, 3, 1, 1, group=8), x)
    x = net.node("Concat", [net.conv(x, 5, 1), net.node("Mul", [x, net.floats(1, 8, 1, 1)], (8, 7, 6))], (13, 7, 6), axis=1)
    x = net.node("Softmax", [net.pool(x, "AveragePool", 3, 2, 1)], (13, 4, 3), axis=1)
    mean = net.node("ReduceMean", [x, net.ints(2, 3)], (13,), keepdims=0)
    turned = net.node("Transpose", [net.pool(x, "MaxPool", 2, 1)], (2, 13, 3), perm=(0, 3, 1, 2))
    return net.model(net.linear(mean, 17), turned)


def sequence():
    """A transformer on token numbers, with a mask."""
    net = FloatNet(2)
    x = net.node("Gather", [net.floats(9, 12), net.input("ids", (5,), whole=9)], (5, 12))
    counted, mask = net.mask(net.input("mask", (5,), whole=2))
    x = net.block(net.norm(net.node("Add", [x, net.floats(1, 5, 12)], (5, 12))), 3, mask)
    x = net.node("Mul", [x, net.node("Unsqueeze", [counted, net.ints(2)], (5, 1))], (5, 12))
    return net.model(net.node("ReduceL2", [x, net.ints(1)], (12,), keepdims=0))


def mixed():
    """A transformer's block, its perceptron on codes."""
    net = FloatNet(3)
    x = net.block8(net.norm(net.input("x", (6, 20))))
    return net.model(net.unary(net.linear8(net.codes(x), 7), "Sigmoid"))


PLANS = {
    "floats": (floats, "float"),
    "floats_bf16": (floats, "float", "bfloat16"),
    "sequence": (sequence, "float"),
    "mixed": (mixed, "float"),
    "small": (small, "float"),
    "small_fixed": (small, "fixed"),
    "image": (image, "float"),
    "vector": (vector, "float"),
    "shared": (shared, "float"),
    "shared_fixed": (shared, "fixed"),
}


def write(folder):
    """Every plan as FOLDER/NAME.plan."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (made, *how) in PLANS.items():
        (folder / f"{name}.plan").write_bytes(lower(made(), *how).to_bytes())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
