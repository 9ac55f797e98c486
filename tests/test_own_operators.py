"""Our own operators: the bodies beside numpy, in every runtime; the file keeps them, and no pass unpacks them."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch

from hasten import check, numerics, plan
from hasten.doors.onnx import from_proto
from hasten.facts import facts
from hasten.learn.executor import build
from hasten.model import Model
from hasten.own_operators import DOMAIN, PACKED, SIGNS, add_functions, is_packed, unpacked
from hasten.runtimes import Target, get
from hasten.task import Task

BATCH = 3
KINDS = ("Binary", "Ternary")


def quantized(kind: str, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(codes, packed, scale) of rows."""
    codes, scale = (numerics.binary if kind == "Binary" else numerics.ternary)(w)
    return codes, (numerics.pack_signs if kind == "Binary" else numerics.pack_ternary)(codes), scale


def packed_model(kind: str, first: str = "Sign", norm: bool = False, group: int = 1) -> tuple[Model, dict[str, np.ndarray]]:
    """x (N, 4, 7, 7) → signs → packed convolution (6 channels, stride 2, padded) → batch norm or none → step → packed product → y (N, 5)."""
    rng = np.random.default_rng(group)
    columns = 4 // group * 9
    w, w2 = rng.standard_normal((6, columns)).astype(np.float32), rng.standard_normal((5, 96)).astype(np.float32)
    (codes, p, s), (codes2, p2, s2) = quantized(kind, w), quantized(kind, w2)
    weights = {
        "p": p, "s": s.reshape(-1, 1, 1), "b": rng.standard_normal((6, 1, 1)).astype(np.float32),
        "p2": p2, "s2": s2, "b2": rng.standard_normal(5).astype(np.float32),
        "g": rng.uniform(0.5, 2, 6).astype(np.float32) * np.array([1, -1, 1, 1, -1, 1], np.float32), "z": rng.standard_normal(6).astype(np.float32),
        "m": rng.standard_normal(6).astype(np.float32), "v": rng.uniform(0.5, 2, 6).astype(np.float32),
    }  # fmt: skip
    proto = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 4, 7, 7] x) => (float[N, 5] y) {{
            a = hasten.{first} (x)
            h = hasten.{kind}Conv <shape = [6, {4 // group}, 3, 3], columns = [{columns}], strides = [2, 2], pads = [1, 1, 1, 1], dilations = [1, 1],
                group = {group}> (a, p, s, b)
            {"n = BatchNormalization (h, g, z, m, v)" if norm else "n = Identity (h)"}
            c = hasten.Step (n)
            f = Flatten (c)
            y = hasten.{kind}Gemm <shape = [5, 96], columns = [96]> (f, p2, s2, b2)
        }}"""
    )
    for name, array in weights.items():
        if norm or name not in "gzmv":
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    edited = ir.from_proto(proto)
    add_functions(edited)
    return from_proto(ir.to_proto(edited)), {**weights, "codes": codes.reshape(6, -1, 3, 3), "codes2": codes2}


def by_hand(x: np.ndarray, w: dict[str, np.ndarray], low: float, norm: bool, group: int) -> np.ndarray:
    """The same in torch's convolution on whole numbers and numpy."""
    signs = torch.tensor(np.where(x >= 0, 1.0, low))
    sums = torch.conv2d(signs, torch.tensor(w["codes"].astype(np.float64)), stride=2, padding=1, groups=group).numpy()
    h = sums * w["s"] + w["b"]
    if norm:
        g, z, m, v = (w[k].astype(np.float64).reshape(-1, 1, 1) for k in "gzmv")
        h = (h - m) / np.sqrt(v + 1e-5) * g + z
    return (h >= 0).reshape(len(x), -1).astype(np.float64) @ w["codes2"].T * w["s2"] + w["b2"]


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    found = np.random.default_rng(5).standard_normal((BATCH, 4, 7, 7)).astype(np.float32)
    found[:, :, ::3] = 0.0
    found[:, 0, 1] = -0.0
    return found


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "reference", "torch"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first, group", [("Sign", 1), ("Step", 2)])
def test_every_runtime_computes_what_the_bodies_say(runtime, kind, first, group, x):
    if get(runtime).unsupported(packed_model(kind)[0], Target(1)):
        pytest.skip(f"{runtime} is not installed")
    model, weights = packed_model(kind, first, group=group)
    y = get(runtime).compile(model, Target(1, batch=BATCH)).run({"x": x})["y"]
    expected = by_hand(x, weights, -1 if first == "Sign" else 0, False, group)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    weights["codes"] = -weights["codes"]
    assert np.abs(y - by_hand(x, weights, -1 if first == "Sign" else 0, False, group)).max() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_torch_inlines_the_bodies(kind, x):
    model, weights = packed_model(kind)
    executor = build(model)
    (y,) = executor.module(torch.from_numpy(x))
    np.testing.assert_allclose(y.detach().numpy(), by_hand(x, weights, -1, False, 1), rtol=1e-5, atol=1e-5)


def test_the_sign_of_zero_is_one_of_both_zeros():
    for name, low in (("Sign", -1), ("Step", 0)):
        proto = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : 21]> g (float[4] x) => (float[4] y) {{ y = hasten.{name} (x) }}'
        )
        edited = ir.from_proto(proto)
        add_functions(edited)
        session = check.oracle(from_proto(ir.to_proto(edited)))
        (y,) = session.run(None, {"x": np.array([0.0, -0.0, -1e-45, 1e-45], np.float32)})
        assert y.tolist() == [1, 1, low, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_keeps_functions_and_digest(kind, tmp_path):
    model, _ = packed_model(kind)
    check.legal(model)
    model.save(tmp_path / "m.onnx")
    again = Model.load(tmp_path / "m.onnx")
    assert again.digest == model.digest
    assert again.to_bytes() == model.to_bytes()
    assert {f.name for f in onnx.load(tmp_path / "m.onnx").functions} == {"Sign", "Step", f"{kind}Conv", f"{kind}Gemm"}


@pytest.mark.parametrize("row", [r for r in plan.TECHNIQUES if r.folder == "passes"], ids=lambda r: r.name)
@pytest.mark.parametrize("kind", KINDS)
def test_no_pass_unpacks_the_weights(row, kind):
    model, _ = packed_model(kind, norm=True)
    made = row.apply(model, row.settings(), None)
    check.legal(made)
    assert [n.op_type for n in made.ir.graph if is_packed(n)] == [f"{kind}Conv", f"{kind}Gemm"]
    assert {f.name for f in made.ir.functions.values()} == {"Sign", "Step", f"{kind}Conv", f"{kind}Gemm"}
    packed = [n.inputs[1].const_value.numpy() for n in made.ir.graph if is_packed(n)]
    before = [n.inputs[1].const_value.numpy() for n in model.ir.graph if is_packed(n)]
    assert all(np.array_equal(a, b) for a, b in zip(packed, before, strict=True))
    check.same(model, made, within=check.FLOAT16 if row.name == "to_float16" else check.FLOAT32)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_goes_into_scale_and_bias(kind, x):
    model, weights = packed_model(kind, norm=True)
    folded = plan.row("fold_batchnorm").apply(model, plan.row("fold_batchnorm").settings(), None)
    assert "BatchNormalization" not in [n.op_type for n in folded.ir.graph]
    (y,) = check.oracle(folded).run(None, {"x": x})
    np.testing.assert_allclose(y, by_hand(x, weights, -1, True, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind, bits", [("Binary", 1), ("Ternary", 2)])
def test_facts_count_weights_and_not_bytes(kind, bits):
    model, _ = packed_model(kind)
    found = facts(model)
    rows = {r.op: r for r in found.rows}
    assert rows[f"{kind}Conv"].macs == (6 * 4 * 4) * (4 * 9)
    assert rows[f"{kind}Gemm"].macs == 5 * 96
    assert rows[f"{kind}Gemm"].bits == rows[f"{kind}Conv"].bits == bits
    assert rows[f"{kind}Gemm"].weight_bytes == 5 * 96 * bits // 8 + 5 * 4 * 2
    assert found.parameters == 6 * 36 + 6 + 6 + 5 * 96 + 5 + 5
    assert found.unknown == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_packed_unpacks(kind):
    model, weights = packed_model(kind, group=2)
    conv, gemm = (n for n in model.ir.graph if is_packed(n))
    assert np.array_equal(unpacked(conv, conv.inputs[1].const_value.numpy()), weights["codes"])
    assert np.array_equal(unpacked(gemm, gemm.inputs[1].const_value.numpy()), weights["codes2"])


def test_a_static_quantized_neighbour_runs_on_codes_in_the_reference(x):
    """A float convolution before a packed product: int8 for the one, the other stays; the integer reference runs both."""
    rng = np.random.default_rng(0)
    _, packed, scale = quantized("Binary", rng.standard_normal((5, 6 * 16)).astype(np.float32))
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 4, 7, 7] x) => (float[N, 5] y) {
            h = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w, c)
            a = hasten.Sign (h)
            f = Flatten (a)
            y = hasten.BinaryGemm <shape = [5, 96], columns = [96]> (f, p, s, b)
        }"""
    )
    weights = {
        "w": rng.standard_normal((6, 4, 3, 3)).astype(np.float32), "c": rng.standard_normal(6).astype(np.float32),
        "p": packed, "s": scale, "b": np.zeros(5, np.float32),
    }  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    edited = ir.from_proto(proto)
    add_functions(edited)
    model = from_proto(ir.to_proto(edited))
    task = Task({"x": rng.standard_normal((64, 4, 7, 7)).astype(np.float32)}).bind(model)
    row = plan.row("quantize_static")
    made, _ = plan.run(plan.Plan((plan.PlannedStep("quantize_static", row.settings()),)), model, task)
    assert {"QuantizeLinear", "BinaryGemm"} <= {n.op_type for n in made.ir.graph}
    ours, theirs = (get(r).compile(made, Target(1, batch=BATCH)).run({"x": x})["y"] for r in ("reference", "onnxruntime"))
    np.testing.assert_allclose(ours, theirs, atol=float(4 * scale.max()))


def test_the_table_of_functions_is_whole():
    assert set(PACKED) == {f"{k}{layer}" for k in KINDS for layer in ("Gemm", "Conv")}
    assert set(SIGNS) == {"Sign", "Step"}
    assert DOMAIN == "hasten"
