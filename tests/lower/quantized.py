"""Random QDQ graphs of the operators that lower/ takes, written directly: no calibration, so that odd scales, zero points and saturation occur."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hasten.doors.onnx import from_proto


class Net:
    """A QDQ graph under construction: each method takes the name of a quantized value (c, h, w) and gives that of another."""

    def __init__(self, seed, c, h, w, vector=False):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers, self.shapes = [], [], {}
        self.scales, self.count = {}, 0
        self.input = ("batch", c) if vector else ("batch", c, h, w)
        self.shapes["x"] = (c,) if vector else (c, h, w)
        self.first = self.quantized("x", 0.02, 128)

    def name(self, kind):
        self.count += 1
        return f"{kind}{self.count}"

    def constant(self, array):
        name = self.name("c")
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, inputs, shape, **attributes):
        name = self.name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def quantized(self, value, scale=None, zero=None):
        """Q and DQ behind a value; the name of the DQ's result."""
        scale = np.float32(self.rng.uniform(0.01, 0.1) if scale is None else scale)
        zero = np.uint8(self.rng.choice([0, 1, 100, 128, 254, 255]) if zero is None else zero)
        s, z = self.constant(scale), self.constant(zero)
        q = self.node("QuantizeLinear", [value, s, z], self.shapes[value])
        dq = self.node("DequantizeLinear", [q, s, z], self.shapes[value])
        self.scales[dq] = (scale, zero)
        return dq

    def weights(self, x, shape, inputs):
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        if self.rng.random() < 0.3:
            codes[self.rng.random(shape) < 0.5] = self.rng.choice([-128, 127])
        scale = self.rng.uniform(0.5, 1.5, shape[0]).astype(np.float32) * np.float32(0.03 / np.sqrt(inputs))
        w = self.node(
            "DequantizeLinear", [self.constant(codes), self.constant(scale), self.constant(np.zeros(shape[0], np.int8))], shape, axis=0
        )
        bias_scale = (self.scales[x][0] * scale).astype(np.float32)
        codes = self.rng.integers(-20000, 20000, shape[0]).astype(np.int32)
        b = self.node(
            "DequantizeLinear",
            [self.constant(codes), self.constant(bias_scale), self.constant(np.zeros(shape[0], np.int32))],
            shape[:1],
            axis=0,
        )
        return w, b

    def activated(self, value, bounds):
        """A Relu or Clip as quantizers write it (taken in by the codes' range), or one that cuts, or none."""
        if bounds == "relu":
            return self.quantized(self.node("Relu", [value], self.shapes[value]), None, 0)
        if bounds == "clip":
            low, high = self.constant(np.float32(0)), self.constant(np.float32(6))
            return self.quantized(self.node("Clip", [value, low, high], self.shapes[value]), 6 / 255, 0)
        return self.quantized(value)

    def conv(self, x, channels, kernel=3, stride=1, pad=0, dilation=1, group=1, bounds="none"):
        c, h, w = self.shapes[x]
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        out = tuple((n + 2 * pad - (k - 1) * dilation - 1) // stride + 1 for n, k in ((h, kh), (w, kw)))
        weight, bias = self.weights(x, (channels, c // group, kh, kw), c // group * kh * kw)
        y = self.node(
            "Conv",
            [x, weight, bias],
            (channels, *out),
            kernel_shape=[kh, kw],
            strides=[stride] * 2,
            pads=[pad] * 4,
            dilations=[dilation] * 2,
            group=group,
        )
        return self.activated(y, bounds)

    def add(self, a, b, bounds="none"):
        return self.activated(self.node("Add", [a, b], self.shapes[a]), bounds)

    def pool(self, x, kernel=2, stride=2, pad=0, op="MaxPool"):
        c, h, w = self.shapes[x]
        out = tuple((n + 2 * pad - kernel) // stride + 1 for n in (h, w))
        y = self.node(op, [x], (c, *out), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        return self.quantized(y, *(self.scales[x] if op == "MaxPool" else ()))

    def mean(self, x):
        return self.quantized(self.node("GlobalAveragePool", [x], (self.shapes[x][0], 1, 1)))

    def concat(self, a, b):
        return self.quantized(self.node("Concat", [a, b], (self.shapes[a][0] + self.shapes[b][0], *self.shapes[a][1:]), axis=1))

    def shortcut(self, x, channels):
        """Every second pixel, and channels of zeros around it (ResNet's option A)."""
        c, h, w = self.shapes[x]
        bounds = [self.constant(np.array(v, np.int64)) for v in ([0, 0], [h, w], [2, 3], [2, 2])]
        cut = self.node("Slice", [x, *bounds], (c, (h + 1) // 2, (w + 1) // 2))
        cut = self.quantized(cut, *self.scales[x])
        before = (channels - c) // 2
        pads = self.constant(np.array([0, before, 0, 0, 0, channels - c - before, 0, 0], np.int64))
        return self.quantized(
            self.node("Pad", [cut, pads], (channels, (h + 1) // 2, (w + 1) // 2)), self.scales[x][0] * np.float32(1.01), self.scales[x][1]
        )

    def activation(self, x, op):
        return self.quantized(self.node(op, [x], self.shapes[x]))

    def flat(self, x):
        size = int(np.prod(self.shapes[x]))
        y = self.node("Flatten", [x], (size,), axis=1)
        return self.quantized(y, *self.scales[x])

    def gemm(self, x, channels, bounds="none", last=False):
        inputs = self.shapes[x][0]
        weight, bias = self.weights(x, (channels, inputs), inputs)
        y = self.node("Gemm", [x, weight, bias], (channels,), transB=1)
        return y if last else self.activated(y, bounds)

    def model(self, *outputs):
        ports = [helper.make_tensor_value_info(o, TensorProto.FLOAT, ("batch", *self.shapes[o])) for o in outputs]
        graph = helper.make_graph(
            self.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.input)], ports, self.initializers
        )
        proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
        onnx.checker.check_model(proto)
        return from_proto(proto)

    def samples(self, count):
        return {"x": (self.rng.standard_normal((count, *self.input[1:])) * 1.5).astype(np.float32)}


def random_net(seed):
    """(model, samples): a chain of random operators with residuals and branches, ending in a Gemm, or in codes."""
    rng = np.random.default_rng(seed)
    c, h, w = int(rng.choice([1, 2, 3, 4, 5, 16, 20, 33])), int(rng.integers(5, 20)), int(rng.integers(5, 20))
    net = Net(seed, c, h, w)
    x = net.first
    for _ in range(int(rng.integers(1, 6))):
        c, h, w = net.shapes[x]
        bounds = str(rng.choice(["none", "relu", "clip"]))
        kind = rng.choice(["conv", "conv", "depthwise", "grouped", "residual", "pool", "average", "concat", "activation", "shortcut"])
        channels = int(rng.choice([1, 7, 8, 16, 24, 40, 64, 70]))
        if kind == "conv":
            kernel, pad = ((1, 0), (3, 1), (3, 0), (5, 2), ((1, 3), 0))[int(rng.integers(5))]
            dilation = int(rng.integers(1, 3))
            if min(h, w) + 2 * pad > (max(np.atleast_1d(kernel)) - 1) * dilation:
                x = net.conv(x, channels, kernel, int(rng.integers(1, 3)), pad, dilation, bounds=bounds)
        elif kind == "depthwise" and min(h, w) >= 3:
            x = net.conv(x, c, int(rng.choice([1, 3])), int(rng.integers(1, 3)), int(rng.integers(0, 2)), group=c, bounds=bounds)
        elif kind == "grouped" and c % 2 == 0:
            x = net.conv(x, 2 * int(rng.choice([3, 8, 20])), 3, 1, 1, group=2, bounds=bounds)
        elif kind == "residual":
            y = net.conv(x, c, 3, 1, 1, bounds=bounds)
            x = net.add(y, x, bounds) if rng.random() < 0.5 else net.add(x, y, "none")
        elif kind in ("pool", "average") and min(h, w) >= 4:
            pad = int(rng.integers(0, 2)) if kind == "pool" else 0
            x = net.pool(x, int(rng.integers(2, 4)), int(rng.integers(1, 3)), pad, "MaxPool" if kind == "pool" else "AveragePool")
        elif kind == "concat":
            x = net.concat(net.conv(x, channels, 1, bounds=bounds), net.conv(x, 8, 3, 1, 1))
        elif kind == "activation":
            x = net.activation(x, str(rng.choice(["Sigmoid", "HardSwish", "Tanh", "Relu"])))
        elif kind == "shortcut" and min(h, w) >= 3:
            x = net.shortcut(x, c + int(rng.integers(1, 9)))
    end = rng.random()
    if end < 0.4:
        x = net.mean(x)
    if end < 0.8:
        x = net.gemm(net.flat(x), int(rng.integers(1, 40)), last=True)
    return net.model(x), net.samples(int(rng.integers(1, 5)))
