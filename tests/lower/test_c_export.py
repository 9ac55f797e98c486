"""Exported C: compiled strictly, run under sanitizers; held, bit for bit, to arithmetic written here, to the evaluator and to the engine."""

import itertools
import os
import re
import shutil
import subprocess

import numpy as np
import onnx
import onnx.helper as make
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hasten.doors.onnx import from_proto
from hasten.errors import BadInput, Unsupported
from hasten.lower import c_export, c_memory, evaluate, lower
from hasten.model import Model
from hasten.numerics import addition, addition_fixed, fixed_multiplier
from tests.conftest import mlp_model

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror")
SANITIZED = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def compilers() -> list[str]:
    """Every C compiler that is there; skipped without one, never in CI."""
    found = [c for c in ("gcc", "clang") if shutil.which(c)] or [c for c in ("cc",) if shutil.which(c)]
    if not found:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no C compiler: install gcc or clang")
    return found


def built(compiler, place, name="model", flags=SANITIZED):
    """The test's program, compiled."""
    sources = [place / f"{name}.c", place / f"{name}_test.c"]
    done = subprocess.run([compiler, *STRICT, *flags, *sources, "-o", place / "program"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return place / "program"


def ran(program) -> tuple[int, str]:
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


# --- random nets, and the arithmetic written down a second time


class Net:
    """A QDQ graph that grows operator by operator, with the codes (samples, channels, h, w) that fixed point must give for each value."""

    def __init__(self, seed: int, shape: tuple[int, ...], samples: int = 3) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.count, self.samples = [], [], 0, samples
        scale, zero = self.meaning()
        self.x = self.rng.normal(0, 60 * scale, (samples, *shape)).astype(np.float32)
        codes = np.clip(np.rint(self.x / np.float32(scale)) + zero, 0, 255).astype(np.int64)
        self.shape = shape
        self.first = self.dequantized(self.quantized("x", scale, zero), codes, scale, zero)

    def meaning(self) -> tuple[np.float32, int]:
        return np.float32(self.rng.uniform(0.02, 0.08)), int(self.rng.integers(0, 256))

    def constant(self, array) -> str:
        self.count += 1
        self.constants.append(onnx.numpy_helper.from_array(np.asarray(array), f"c{self.count}"))
        return f"c{self.count}"

    def node(self, op: str, inputs: list[str], **attributes) -> str:
        self.count += 1
        self.nodes.append(make.make_node(op, inputs, [f"v{self.count}"], f"{op.lower()} */ {self.count}", **attributes))
        return f"v{self.count}"

    def quantized(self, name: str, scale, zero) -> str:
        return self.node("QuantizeLinear", [name, self.constant(scale), self.constant(np.uint8(zero))])

    def dequantized(self, name: str, codes, scale, zero):
        out = self.node("DequantizeLinear", [name, self.constant(scale), self.constant(np.uint8(zero))])
        return out, codes, scale, zero

    def ended(self, name: str, codes_of, relu: bool = False, same=None):
        """Behind a float value: perhaps a Relu, then Q and DQ. codes_of(scale, zero) gives the codes without the Relu."""
        scale, zero = same or self.meaning()
        codes = codes_of(scale, zero)
        if relu:
            name, codes = self.node("Relu", [name]), np.maximum(codes, zero)
        return self.dequantized(self.quantized(name, scale, zero), codes, scale, zero)

    def layer(
        self, value, channels: int, kernel=(3, 3), strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1), group=1, relu=False, last=False
    ):
        name, x, scale, zero = value
        inputs = x.shape[1] // group
        w = self.rng.integers(-127, 128, (channels, inputs, *kernel)).astype(np.int8)
        w_scale = self.rng.uniform(0.002, 0.02, channels).astype(np.float32)
        bias = self.rng.integers(-3000, 3000, channels).astype(np.int32)
        weights = self.node(
            "DequantizeLinear", [self.constant(w), self.constant(w_scale), self.constant(np.zeros(channels, np.int8))], axis=0
        )
        b = self.node(
            "DequantizeLinear", [self.constant(bias), self.constant(scale * w_scale), self.constant(np.zeros(channels, np.int32))], axis=0
        )
        sums = slid(x - zero, w.astype(np.int64), strides, pads, dilations, group) + bias[:, None, None]
        if last:  # a Gemm behind a Flatten, whose floats leave the model
            flat = self.node("Flatten", [name])
            out = self.node("Gemm", [flat, self.flattened(w, w_scale, channels), b], transB=1)
            return out, sums[:, :, 0, 0], scale * w_scale
        out = self.node("Conv", [name, weights, b], strides=strides, pads=pads, dilations=dilations, group=group, kernel_shape=kernel)
        combined = lambda to: (scale * w_scale).astype(np.float32) / np.float32(to)  # noqa: E731

        def codes(to, z):
            return clipped(multiplied(sums, combined(to)[:, None, None]) + z)

        return self.ended(out, codes, relu)

    def flattened(self, w, w_scale, channels) -> str:
        flat = w.reshape(channels, -1)
        return self.node(
            "DequantizeLinear", [self.constant(flat), self.constant(w_scale), self.constant(np.zeros(channels, np.int8))], axis=0
        )

    def add(self, a, b, relu=False):
        out = self.node("Add", [a[0], b[0]])

        def codes(scale, zero):
            numbers = [np.asarray(v) for v in (a[2], np.uint8(a[3]), b[2], np.uint8(b[3]), scale, np.uint8(zero))]
            fa, fb, fc, shift = addition_fixed(addition(*numbers))
            return clipped((a[1] * fa + b[1] * fb + fc) >> shift)

        return self.ended(out, codes, relu)

    def pool(self, value, kernel, strides, pads=(0, 0, 0, 0), average=False, relu=False):
        name, x, scale, zero = value
        out = self.node("AveragePool" if average else "MaxPool", [name], kernel_shape=kernel, strides=strides, pads=pads)
        if not average:
            most = slid(x, None, strides, pads, (1, 1), 1, kernel)
            return self.ended(out, lambda *_: most, relu, same=(scale, zero))
        sums = slid(x - zero, np.ones((x.shape[1], 1, *kernel), np.int64), strides, pads, (1, 1), x.shape[1])
        places = kernel[0] * kernel[1]

        def codes(to, z):
            return clipped(multiplied(sums, np.float64(scale) / (np.float64(to) * places)) + z)

        return self.ended(out, codes, relu)

    def joined(self, a, b):
        """Concat, all three with one meaning: the other is asked for in that of the first."""
        out = self.node("Concat", [a[0], b[0]], axis=1)

        def codes(scale, zero):
            return np.concatenate([clipped(recoded(v, scale, zero)) for v in (a, b)], axis=1)

        return self.ended(out, codes)

    def sliced(self, value):
        name, x, scale, zero = value
        bounds = [self.constant(np.array(v, np.int64)) for v in ((0, 1), (999, 999), (2, 1), (2, 1))]
        return self.dequantized(self.quantized(self.node("Slice", [name, *bounds]), scale, zero), x[:, 1:, ::2], scale, zero)

    def model(self, outputs) -> Model:
        ports = [make.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", *self.shape])]
        outs = [make.make_tensor_value_info(o, onnx.TensorProto.FLOAT, ["N", *s]) for o, s in outputs]
        graph = make.make_graph(self.nodes, "net", ports, outs, self.constants)
        return from_proto(make.make_model(graph, ir_version=10, opset_imports=[make.make_opsetid("", 21)]))


def slid(x, w, strides, pads, dilations, group, kernel=()):
    """Sums of a convolution, by its definition; of a maximum where there are no weights."""
    kernel = kernel or w.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])), constant_values=0)
    h, w_out = ((padded.shape[2 + i] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1 for i in range(2))
    channels = x.shape[1] if w is None else len(w)
    y = np.zeros((len(x), channels, h, w_out), np.int64)
    for r, q, i, j in itertools.product(range(h), range(w_out), range(kernel[0]), range(kernel[1])):
        seen = padded[:, :, r * strides[0] + i * dilations[0], q * strides[1] + j * dilations[1]]
        if w is None:
            y[:, :, r, q] = np.maximum(y[:, :, r, q], seen)
            continue
        inputs, outputs = x.shape[1] // group, channels // group
        for g in range(group):
            of = slice(g * outputs, (g + 1) * outputs)
            y[:, of, r, q] += seen[:, g * inputs : (g + 1) * inputs] @ w[of, :, i, j].T
    return y


def multiplied(sums, scale):
    """sums · scale in whole numbers: (sum · factor + half) >> shift."""
    factor, shift = (v.astype(np.int64) for v in fixed_multiplier(scale))
    return (sums * factor + (np.int64(1) << (shift - 1))) >> shift


def clipped(codes):
    return np.clip(codes, 0, 255)


def recoded(value, scale, zero):
    """Codes of the same values in another meaning."""
    _, x, s, z = value
    return np.rint((x - z).astype(np.float32) * np.float32(s) / np.float32(scale)).astype(np.int64) + zero


@st.composite
def nets(draw):
    """(net, its model, whole numbers or codes that are expected, by output)."""
    h, w, c = draw(st.integers(4, 9)), draw(st.integers(4, 9)), draw(st.sampled_from([1, 2, 3, 4, 6]))
    net = Net(draw(st.integers(0, 2**32)), (c, h, w))
    value = net.first
    for _ in range(draw(st.integers(1, 5))):
        x, kinds = value[1], ["conv", "depthwise", "add"]
        kinds += ["max", "average"] if min(x.shape[2:]) > 2 else []
        kinds += ["concat", "group"] if x.shape[1] % 2 == 0 else []
        kinds += ["slice"] if x.shape[1] > 1 and x.shape[2] > 2 else []
        kind, relu = draw(st.sampled_from(kinds)), draw(st.booleans())
        kernel = tuple(draw(st.integers(1, min(3, n))) for n in x.shape[2:])
        strides = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        pads = tuple(draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
        dilations = tuple(
            2 if k > 1 and (k - 1) * 2 + 1 <= n and draw(st.booleans()) else 1 for k, n in zip(kernel, x.shape[2:], strict=True)
        )
        if kind == "conv":
            value = net.layer(value, draw(st.integers(1, 7)), kernel, strides, pads, dilations, relu=relu)
        elif kind == "depthwise":
            value = net.layer(value, x.shape[1], kernel, strides, pads, dilations, group=x.shape[1], relu=relu)
        elif kind == "group":
            value = net.layer(value, 4, kernel, strides, pads, dilations, group=2, relu=relu)
        elif kind == "add":
            value = net.add(*draw(st.permutations([value, net.layer(value, x.shape[1], (1, 1))])), relu=relu)
        elif kind == "concat":
            value = net.joined(value, net.layer(value, 3, (1, 1)))
        elif kind == "slice":
            value = net.sliced(value)
        else:
            value = net.pool(value, kernel, strides, pads if kind == "max" else (0, 0, 0, 0), kind == "average", relu)
    if draw(st.booleans()):
        x = value[1]
        name, sums, scale = net.layer(value, draw(st.integers(1, 5)), x.shape[2:], last=True)
        return net, net.model([(name, sums.shape[1:])]), ("sums", sums, scale)
    return net, net.model([(value[0], value[1].shape[1:])]), ("codes", *value[1:])


def native():
    """The engine; where it was not built, None, but never in CI."""
    try:
        from hasten import _native
    except ImportError:
        if os.environ.get("CI"):
            pytest.fail("CI must have the native engine: it was not built")
        return None
    return _native


def agree(net, model, expected) -> None:
    """Fixed point written here, the evaluator and the native engine give the same."""
    plan = lower(model, "fixed")
    numbers = evaluate.whole_numbers(plan, evaluate.input_codes(plan, {"x": net.x}))
    if expected[0] == "codes":
        np.testing.assert_array_equal(numbers[0].transpose(0, 3, 1, 2).astype(np.int64), expected[1])
    else:
        unit = next(op.unit for op in plan.ops if op.y.port is not None and op.y.type == "float32" and hasattr(op, "unit"))
        wanted = multiplied(expected[1], expected[2].astype(np.float64) / unit)
        np.testing.assert_array_equal(numbers[0].reshape(wanted.shape), wanted)
    if (engine := native()) is not None:
        data = lower(model, "fixed").to_bytes()
        made = engine.Model.from_bytes(data, max_batch=len(net.x)).run({"x": net.x})
        found = evaluate.values(plan, numbers)
        for name, y in made.items():
            np.testing.assert_array_equal(y, found[name])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(found=nets())
def test_c_computes_what_fixed_point_is(found, compilers, tmp_path_factory):
    net, model, expected = found
    agree(net, model, expected)
    place = tmp_path_factory.mktemp("c") / "made"
    c_export.save(c_export.export(model, "model", {"x": net.x}), place)
    assert ran(built(compilers[0], place)) == (0, "sample 0: ok\nsample 1: ok\nsample 2: ok\n")


def small_model() -> tuple[Net, Model]:
    net = Net(0, (3, 8, 8))
    value = net.layer(net.first, 8, pads=(1, 1, 1, 1), relu=True)
    value = net.layer(value, 8, pads=(1, 1, 1, 1), group=8)
    value = net.add(value, net.layer(value, 8, (1, 1)))
    value = net.pool(value, (2, 2), (2, 2))
    name, _, _ = net.layer(value, 4, (4, 4), last=True)
    return net, net.model([(name, (4,))])


def test_a_maximum_below_a_relu_is_clipped(compilers, tmp_path):
    net = Net(3, (2, 6, 6))
    value = net.pool(net.first, (2, 2), (2, 2), relu=True)
    assert value[3] > 0 and (value[1] == value[3]).any()
    agree(net, net.model([(value[0], value[1].shape[1:])]), ("codes", *value[1:]))


def test_every_compiler_takes_it_without_a_word(compilers, tmp_path):
    net, model = small_model()
    c_export.save(c_export.export(model, "model", {"x": net.x}), tmp_path / "made")
    for compiler in compilers:
        for flags in (("-O0",), ("-O3",), ("-Os", "-Wshadow", "-Wcast-qual"), SANITIZED):
            assert ran(built(compiler, tmp_path / "made", flags=flags))[0] == 0
        alone = [*STRICT, "-Os", "-ffreestanding", "-m32", "-c", tmp_path / "made" / "model.c", "-o", tmp_path / "m32.o"]
        done = subprocess.run([compiler, *alone], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or "not supported" in done.stderr, done.stderr


def test_no_float_and_no_library_in_the_code(compilers, tmp_path):
    net, model = small_model()
    files = c_export.export(model, "lenet", {"x": net.x}).files
    assert list(files) == ["lenet.h", "lenet.c", "lenet_test.c"]
    code = re.sub(r"/\*.*?\*/", "", files["lenet.c"], flags=re.DOTALL)
    assert not re.search(r"\b(float|double|malloc)\b|\d\.\d", code)
    assert re.findall(r"#include (.*)", code + files["lenet.h"]) == ['"lenet.h"', "<stdint.h>"]
    assert "gemm__/_" in files["lenet.c"] and "gemm */" not in files["lenet.c"]  # a name of the graph's can't end a comment
    c_export.save(c_export.export(model, "lenet"), tmp_path / "made")
    done = subprocess.run(
        [compilers[0], "-std=c99", "-O2", "-c", tmp_path / "made" / "lenet.c", "-o", tmp_path / "made.o"], capture_output=True, check=False
    )
    assert done.returncode == 0
    if shutil.which("nm"):
        needed = subprocess.run(["nm", "-u", tmp_path / "made.o"], capture_output=True, text=True, check=True).stdout.split()
        assert {n for n in needed if n != "U"} <= {"memset", "memcpy"}  # which compilers put in by themselves


def test_flash_and_ram_are_what_the_compiler_lays_out(compilers, tmp_path):
    if not shutil.which("nm"):
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no nm: install binutils")
    net, model = small_model()
    made = c_export.export(model, "model", {"x": net.x})
    c_export.save(made, tmp_path / "made")
    subprocess.run([compilers[0], "-O0", "-c", tmp_path / "made" / "model.c", "-o", tmp_path / "made.o"], check=True)
    lines = subprocess.run(["nm", "-S", "-t", "d", tmp_path / "made.o"], capture_output=True, text=True, check=True).stdout.splitlines()
    sizes = {}
    for parts in (line.split() for line in lines):
        if len(parts) == 4:
            sizes.setdefault(parts[2], []).append(int(parts[1]))
    assert sum(sizes["r"]) == made.footprint.flash
    assert sizes["b"] == [made.footprint.arena] and "d" not in sizes and "D" not in sizes
    assert made.footprint.outputs == 4 * 4 and made.footprint.ram == made.footprint.arena + 16
    assert f"#define MODEL_FLASH {made.footprint.flash}\n" in made.files["model.h"]
    assert c_export.footprint(model) == made.footprint
    assert sum(layer.flash for layer in made.footprint.layers) == made.footprint.flash
    assert max(layer.ram for layer in made.footprint.layers) <= made.footprint.arena


def test_tensors_lie_over_each_other_as_far_as_they_may(compilers, tmp_path, monkeypatch):
    """A depthwise 3 × 3 writes where it read, a row and a pixel behind; a little nearer, and the test program finds it out."""
    net = Net(1, (8, 9, 7))
    value = net.layer(net.first, 8, pads=(1, 1, 1, 1), group=8)
    model = net.model([(net.layer(value, 8, (1, 1), relu=True)[0], (8, 9, 7))])
    made = c_export.export(model, "model", {"x": net.x})
    size, behind = 9 * 7 * 8, (7 + 1) * 8
    assert made.footprint.arena == size + behind
    exact = c_memory.distance
    monkeypatch.setattr(c_memory, "distance", lambda op, x: exact(op, x) - 1)
    wrong = c_export.export(model, "model", {"x": net.x})
    c_export.save(made, tmp_path / "right")
    c_export.save(wrong, tmp_path / "wrong")
    assert ran(built(compilers[0], tmp_path / "right"))[0] == 0
    code, out = ran(built(compilers[0], tmp_path / "wrong"))
    assert code == 1 and "differs" in out


def test_sizes_beyond_16_bits(compilers, tmp_path):
    net = Net(2, (40000, 1, 1), samples=3)
    name, _, _ = net.layer(net.first, 2, (1, 1), last=True)
    made = c_export.export(net.model([(name, (2,))]), "model", {"x": net.x})
    assert "typedef int32_t size;" in made.files["model.c"]
    c_export.save(made, tmp_path / "made")
    assert ran(built(compilers[0], tmp_path / "made"))[0] == 0


def test_a_float_model_is_told_to_be_quantized():
    with pytest.raises(Unsupported, match="quantize it first: hasten quantize-static MODEL"):
        c_export.export(mlp_model(), "model")


def test_a_node_without_c_code_is_named():
    net = Net(0, (3, 4, 4))
    name = net.node("Softmax", [net.first[0]], axis=1)
    with pytest.raises(Unsupported, match=r"it has no C code: softmax .* Softmax"):
        c_export.export(net.model([(name, (3, 4, 4))]), "model")


@pytest.mark.parametrize(
    "text,expected",
    [("lenet-5.v2", "lenet_5_v2"), ("5x", "model_5x"), ("", "model"), ("int", "int"), ("_x_", "x"), ("größe", "gr_e"), ("模型", "model")],
)
def test_identifiers(text, expected):
    assert c_export.identifier(text) == expected == c_export.identifier(expected)


def test_a_name_that_is_none():
    with pytest.raises(BadInput, match="'a b' can't begin C identifiers; use letters, digits and underscores, such as a_b"):
        c_export.export(small_model()[1], "a b")


def test_a_failed_export_leaves_nothing_and_a_finished_one_is_kept(tmp_path, monkeypatch):
    made = c_export.export(small_model()[1], "model")
    place = tmp_path / "made"
    real = c_export.Path.write_text

    def full(self, text):
        if self.name.endswith("_test.c"):
            raise OSError(28, "No space left on device")
        return real(self, text)

    with monkeypatch.context() as patch:
        patch.setattr(c_export.Path, "write_text", full)
        with pytest.raises(OSError):
            c_export.save(made, place)
    assert list(tmp_path.iterdir()) == []
    c_export.save(made, place)
    assert sorted(p.name for p in place.iterdir()) == ["model.c", "model.h", "model_test.c"]
    with pytest.raises(BadInput, match=r"model\.h exists; give another folder or --name, or --force"):
        c_export.save(made, place)
    (place / "mine.txt").write_text("kept")
    c_export.save(made, place, force=True)
    assert (place / "mine.txt").read_text() == "kept" and len(list(tmp_path.iterdir())) == 1


def test_the_same_model_gives_the_same_files():
    assert c_export.export(small_model()[1], "model").files == c_export.export(small_model()[1], "model").files
