"""What kernels do in a second: operations are those of the layers and not of the tiles; what can't run is refused in one line."""

import numpy as np
import pytest

from hasten import check, facts
from hasten.errors import Unsupported
from hasten.lower import lower
from hasten.measure import kernels
from hasten.measure.kernels import GRID, Case, case_plan, of_grid, of_model, types_of
from hasten.runtimes import native
from tests.conftest import model_of
from tests.lower.quantized import Net

built = pytest.mark.usefixtures("engine")


def net():
    """Every kind of layer, with channels that fill no tile."""
    made = Net(3, 3, 9, 9)
    x = made.conv(made.first, 5, 3, 2, 1)
    x = made.conv(x, 5, 3, 1, 1, group=5)
    x = made.conv(x, 7, 1)
    return made.model(made.gemm(made.flat(made.pool(x, 5, 1)), 10, last=True))


@built
def test_every_kernel_of_a_model_with_the_operations_of_its_layer():
    model = net()
    found = of_model("net", model, check.random_feeds(model, 4, seed=0), 4, seconds=0.01)
    shapes = [k.shape for k in found.kernels]
    assert shapes == ["3 at 9 × 9", "3 × 3 by 2, 3 → 5 at 9 × 9", "3 × 3, 5 at 5 × 5", "1 × 1, 5 → 7 at 5 × 5", "7 at 5 × 5", "7 → 10"]
    macs = {row.name: row.macs for row in facts.facts(model).rows if row.macs}
    assert {k.name: k.operations for k in found.kernels if k.operations} == {name: 2.0 * 4 * n for name, n in macs.items()}
    for kernel in found.kernels:
        assert 0 < kernel.seconds <= max(kernel.median, 1e-9)
        assert (kernel.rate is None) == (kernel.share is None) == (kernel.operations == 0)
    layer = found.kernels[1]
    assert layer.rate == layer.operations / layer.seconds
    assert layer.share == layer.rate / found.peaks["u8s8"]
    told = found.to_json()
    assert (told["of"], told["batch"], told["kernels"][1]["rate"], told["kernels"][0]["rate"]) == ("net", 4, layer.rate, None)


@built
def test_the_grid_is_measured_beside_the_peak():
    """Of three small cases: the whole grid takes seconds."""
    some = (Case("GEMM", 1, 64, 64, 64), Case("convolution", 8, 8, 3, 16, 3, 2), Case("depthwise", 8, 8, 16, 16, 3, depthwise=True))
    some += tuple(Case("GEMM", 1, 64, 64, 64, types=types) for types in ("f32", "bf16"))
    found = of_grid(some, seconds=0.01)
    assert [(k.name, k.shape, k.operations) for k in found.kernels] == [
        ("GEMM", "64 rows, 64 → 64", 2.0 * 64**3),
        ("convolution", "3 × 3 by 2, 3 → 16 at 8 × 8", 2.0 * 27 * 16 * 16),
        ("depthwise", "3 × 3, 16 at 8 × 8", 2.0 * 9 * 16 * 64),
        *[("GEMM", "64 rows, 64 → 64", 2.0 * 64**3)] * 2,
    ]
    assert [types_of(k.kernel) for k in found.kernels] == ["u8s8"] * 3 + ["f32", "bf16"]
    assert all(0 < k.share < 1.2 for k in found.kernels)


@built
@pytest.mark.parametrize("case", [c for c in GRID if c.types == "u8s8"], ids=lambda c: f"{c.name} {c.inputs} {c.outputs} {c.h}")
def test_the_cases_of_the_grid_load_and_spread_over_the_codes(case):
    """A layer whose codes all clip would be measured as well, but nobody would believe it."""
    from hasten import _native

    engine = _native.Model.from_bytes(case_plan(case).to_bytes())
    x = np.random.default_rng(1).standard_normal((1, case.inputs, case.h, case.w)).astype(np.float32)
    (y,) = engine.run({"x": x}).values()
    assert y.std() > 20 / 64
    assert np.mean((y == -2) | (y == 127 / 64)) < 0.05


def test_a_model_that_is_not_taken_is_refused_with_the_node():
    sine = model_of("m (float[N, 4] x) => (float[N, 4] y) { y = Sin (x) }")
    with pytest.raises(Unsupported, match=r"native: .*no Sin"):
        of_model("sine", sine, {}) if native.available() else lower(sine)


def test_without_the_engine(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(Unsupported, match="the native engine was not built"):
        kernels.of_grid()
