"""Random float graphs of the operators that lower/ takes: convolutional nets, and transformers on sequences or token numbers."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from hasten.doors.onnx import from_proto

ACTIVATIONS = ("Relu", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Erf", "Abs", "Neg", "Exp")


class FloatNet:
    """A graph under construction: each method takes the name of a value and gives that of another; shapes are without the batch."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.initializers, self.shapes, self.inputs, self.count = [], [], {}, {}, 0

    def input(self, name, shape, whole=0):
        """`whole`: numbers from 0 up to it instead of floats."""
        self.shapes[name], self.inputs[name] = shape, whole
        return name

    def constant(self, array):
        self.count += 1
        self.initializers.append(numpy_helper.from_array(np.asarray(array), f"c{self.count}"))
        return f"c{self.count}"

    def floats(self, *shape, size=1.0):
        return self.constant((self.rng.standard_normal(shape) * size).astype(np.float32))

    def ints(self, *numbers):
        return self.constant(np.array(numbers, np.int64))

    def node(self, op, inputs, shape, **attributes):
        self.count += 1
        name = f"{op.lower()}{self.count}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        self.shapes[name] = shape
        return name

    def conv(self, x, channels, kernel=3, stride=1, pad=0, dilation=1, group=1, bias=True):
        c, h, w = self.shapes[x]
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        out = tuple((n + 2 * pad - (k - 1) * dilation - 1) // stride + 1 for n, k in ((h, kh), (w, kw)))
        weight = self.floats(channels, c // group, kh, kw, size=1 / np.sqrt(c // group * kh * kw))
        inputs = [x, weight, *([self.floats(channels)] if bias else [])]
        sizes = {"kernel_shape": [kh, kw], "strides": [stride] * 2, "pads": [pad] * 4, "dilations": [dilation] * 2}
        return self.node("Conv", inputs, (channels, *out), group=group, **sizes)

    def linear(self, x, channels, bias=True):
        inputs = self.shapes[x][-1]
        y = self.node("MatMul", [x, self.floats(inputs, channels, size=1 / np.sqrt(inputs))], (*self.shapes[x][:-1], channels))
        return self.node("Add", [y, self.floats(channels)], self.shapes[y]) if bias else y

    def unary(self, x, op):
        return self.node(op, [x], self.shapes[x])

    def binary(self, op, a, b):
        return self.node(op, [a, b], self.shapes[a])

    def pool(self, x, op="MaxPool", kernel=2, stride=2, pad=0):
        c, h, w = self.shapes[x]
        out = tuple((n + 2 * pad - kernel) // stride + 1 for n in (h, w))
        return self.node(op, [x], (c, *out), kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def mean(self, x):
        return self.node("GlobalAveragePool", [x], (self.shapes[x][0], 1, 1))

    def flat(self, x):
        return self.node("Flatten", [x], (int(np.prod(self.shapes[x])),), axis=1)

    def norm(self, x):
        c = self.shapes[x][-1]
        return self.node("LayerNormalization", [x, self.floats(c), self.floats(c)], self.shapes[x], epsilon=1e-5)

    def attention(self, x, heads, mask=None):
        """Multi-head self-attention as exporters write it: projections, heads apart, scaled scores, softmax, heads together."""
        length, c = self.shapes[x]
        parts = []
        for perm, shape in (
            ((0, 2, 1, 3), (heads, length, c // heads)),
            ((0, 2, 3, 1), (heads, c // heads, length)),
            ((0, 2, 1, 3), (heads, length, c // heads)),
        ):
            apart = self.node("Reshape", [self.linear(x, c), self.ints(0, length, heads, c // heads)], (length, heads, c // heads))
            parts.append(self.node("Transpose", [apart], shape, perm=perm))
        scores = self.node("MatMul", parts[:2], (heads, length, length))
        scores = self.node("Mul", [scores, self.constant(np.float32(1 / np.sqrt(c // heads)))], self.shapes[scores])
        if mask is not None:
            scores = self.node("Add", [scores, mask], self.shapes[scores])
        weights = self.node("Softmax", [scores], self.shapes[scores], axis=-1)
        mixed = self.node("MatMul", [weights, parts[2]], (heads, length, c // heads))
        together = self.node("Transpose", [mixed], (length, heads, c // heads), perm=(0, 2, 1, 3))
        return self.linear(self.node("Reshape", [together, self.ints(0, length, c)], (length, c)), c)

    def block(self, x, heads, mask=None, activation="Gelu"):
        """A transformer's block, its norms behind the sums."""
        x = self.norm(self.binary("Add", x, self.attention(x, heads, mask)))
        inner = self.unary(self.linear(x, 2 * self.shapes[x][-1] + 3), activation)
        return self.norm(self.binary("Add", x, self.linear(inner, self.shapes[x][-1])))

    def codes(self, x, channels=False):
        """Quantized and dequantized, `channels`: with a scale for each, and one for all behind it (as SmoothQuant leaves them)."""
        scale, zero = np.float32(0.03), np.uint8(self.rng.choice([0, 100, 128]))
        s, z = self.constant(scale), self.constant(zero)
        if channels:
            c = self.shapes[x][-1]
            scales = self.constant((self.rng.uniform(0.5, 2, c) * 0.03).astype(np.float32))
            q = self.node("QuantizeLinear", [x, scales, self.constant(np.full(c, zero))], self.shapes[x], axis=-1)
        else:
            q = self.node("QuantizeLinear", [x, s, z], self.shapes[x])
        return self.node("DequantizeLinear", [q, s, z], self.shapes[x])

    def linear8(self, x, channels):
        """A product with int8 weights of codes, and a float bias."""
        inputs = self.shapes[x][-1]
        codes = self.constant(self.rng.integers(-127, 128, (inputs, channels)).astype(np.int8))
        scale = self.constant((self.rng.uniform(0.5, 1.5, channels) / 70 / np.sqrt(inputs)).astype(np.float32))
        w = self.node("DequantizeLinear", [codes, scale, self.constant(np.zeros(channels, np.int8))], (inputs, channels), axis=1)
        y = self.node("MatMul", [x, w], (*self.shapes[x][:-1], channels))
        return self.node("Add", [self.floats(channels), y], self.shapes[y])

    def block8(self, x, activation="Gelu"):
        """A transformer's perceptron on codes."""
        inner = self.unary(self.linear8(self.codes(x, channels=True), 2 * self.shapes[x][-1] + 3), activation)
        y = self.linear8(self.codes(inner, channels=bool(self.rng.random() < 0.5)), self.shapes[x][-1])
        return self.norm(self.node("Add", [y, x], self.shapes[x]))

    def mask(self, name):
        """(batch, length) of 0 and 1 to what is added to the scores."""
        length = self.shapes[name][0]
        floats = self.node("Cast", [name], (length,), to=TensorProto.FLOAT)
        away = self.node("Sub", [self.constant(np.float32(1)), floats], (length,))
        away = self.node("Mul", [away, self.constant(np.float32(-1e4))], (length,))
        return floats, self.node("Reshape", [away, self.ints(0, 1, 1, length)], (1, 1, length))

    def model(self, *outputs):
        def port(name):
            type_ = TensorProto.INT64 if self.inputs.get(name) else TensorProto.FLOAT
            return helper.make_tensor_value_info(name, type_, ("batch", *self.shapes[name]))

        graph = helper.make_graph(self.nodes, "net", [port(n) for n in self.inputs], [port(o) for o in outputs], self.initializers)
        proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
        onnx.checker.check_model(proto)
        return from_proto(proto)

    def samples(self, count):
        feeds = {}
        for name, whole in self.inputs.items():
            shape = (count, *self.shapes[name])
            feeds[name] = self.rng.integers(0, whole, shape) if whole else self.rng.standard_normal(shape).astype(np.float32)
        return feeds


def random_convolutional(seed):
    """(model, feeds): branches, groups, odd sizes, sums, pools, and a vector or an image at the end."""
    net = FloatNet(seed)
    rng = net.rng
    c, h, w = int(rng.choice([1, 3, 5, 16, 20])), int(rng.integers(4, 18)), int(rng.integers(4, 18))
    x = net.input("x", (c, h, w))
    for _ in range(rng.integers(1, 6)):
        c, h, w = net.shapes[x]
        kernel, stride, dilation = int(rng.choice([1, 3, 5])), int(rng.integers(1, 3)), int(rng.choice([1, 1, 1, 2]))
        pad = int(rng.integers(0, kernel // 2 * dilation + 1))
        fits = min(h, w) + 2 * pad > (kernel - 1) * dilation
        match rng.integers(0, 9):
            case 0 | 1 if fits:
                x = net.conv(x, int(rng.choice([1, 7, 16, 33, 40])), kernel, stride, pad, dilation, bias=bool(rng.random() < 0.7))
            case 2 if fits:
                x = net.conv(x, c, kernel, stride, pad, dilation, group=c)
            case 3 if fits and c % 2 == 0:
                x = net.conv(x, 2 * int(rng.choice([3, 8])), kernel, 1, pad, dilation, group=2)
            case 4:
                y = net.conv(x, c, 3, 1, 1)
                x = net.binary(str(rng.choice(["Add", "Mul", "Max", "Sub"])), y, x)
            case 5 if min(h, w) >= 3:
                x = net.pool(x, str(rng.choice(["MaxPool", "AveragePool"])), 3, int(rng.integers(1, 3)), int(rng.integers(0, 2)))
            case 6:
                x = net.node("Concat", [x, net.conv(x, 5, 1)], (c + 5, h, w), axis=1)
            case 7:
                x = net.node("Add", [x, net.floats(1, c, 1, 1)], (c, h, w))
            case _:
                x = net.unary(x, str(rng.choice(ACTIVATIONS[:-1])))
        if rng.random() < 0.5:
            x = net.unary(x, str(rng.choice(ACTIVATIONS[:8])))
    match rng.integers(0, 4):
        case 0:
            y = x
        case 1:
            y = net.flat(x)
        case 2:
            y = net.linear(net.flat(net.mean(x)), 10)
        case _:
            y = net.unary(net.linear(net.unary(net.linear(net.flat(x), 33), "Relu"), 10), "Sigmoid")
    return net.model(y), net.samples(int(rng.choice([1, 3])))


def random_transformer(seed):
    """(model, feeds): token numbers with a mask, or floats; one or two blocks; a mean over the positions that count, or all of them."""
    net = FloatNet(seed)
    rng = net.rng
    length, heads, size = int(rng.integers(2, 40)), int(rng.integers(1, 4)), int(rng.choice([3, 8, 16, 20]))
    c, floats, mask = heads * size, None, None
    if rng.random() < 0.6:
        ids = net.input("ids", (length,), whole=50)
        x = net.node("Gather", [net.floats(50, c), ids], (length, c))
        x = net.norm(net.node("Add", [x, net.floats(1, length, c)], (length, c)))
        if rng.random() < 0.7:
            floats, mask = net.mask(net.input("mask", (length,), whole=2))
    else:
        x = net.input("x", (length, c))
    for _ in range(rng.integers(1, 3)):
        x = net.block(x, heads, mask, str(rng.choice(["Gelu", "Relu", "Tanh"])))
    match rng.integers(0, 3):
        case 0 if floats is not None:
            wide = net.node("Unsqueeze", [floats, net.ints(2)], (length, 1))
            total = net.node("ReduceSum", [net.node("Mul", [x, wide], (length, c)), net.ints(1)], (c,), keepdims=0)
            count = net.node("ReduceSum", [floats, net.ints(1)], (1,), keepdims=1)
            mean = net.node("Div", [total, net.node("Clip", [count, net.constant(np.float32(1e-9))], (1,))], (c,))
            norm = net.node("ReduceL2", [mean, net.ints(1)], (1,), keepdims=1)
            y = net.node("Div", [mean, norm], (c,))
        case 1:
            y = net.linear(net.node("Gather", [x, net.constant(np.int64(0))], (c,), axis=1), 7)
        case _:
            y = x
    feeds = net.samples(int(rng.choice([1, 3])))
    if "mask" in feeds:
        feeds["mask"][:, 0] = 1
    return net.model(y), feeds
