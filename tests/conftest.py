"""Fixtures shared by all tests: real data where it is, the digits that travel with the package, and small models."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

import hasten
from hasten.doors.onnx import from_proto
from hasten.measure.peaks import Peaks, keep
from hasten.model import Model
from hasten.runtimes import native

MODELS = Path(hasten.__file__).parent / "models"

PEAKS = Peaks(
    float32=1.4e11, int8=8e11, memory=2.4e10, cache=6.5e10, call=5e-6, node=2.3e-7, threads=2, openvino_call=3.2e-5,
    openvino_float32=1.3e11, openvino_bfloat16=3.2e11, openvino_int8=6e11, last_level_cache=32 << 20,
)  # fmt: skip
"""A machine for tests: two cores with AVX-512 VNNI and BF16, as measured once."""


LONGEST = ("test_random_graphs.py",)
"""Files of minutes: begun first, that no process waits for another's last one."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory) -> Path:
    """A cache folder of the tests' own, in which this machine's peaks are PEAKS: no test measures them by the way."""
    place = tmp_path_factory.mktemp("cache")
    os.environ["XDG_CACHE_HOME"] = str(place)
    keep(PEAKS)
    return place


@pytest.fixture(scope="session")
def engine() -> None:
    """The native engine; skipped where it was not built, never in CI."""
    if not native.available():
        why = "the native engine is not built: no C++ compiler, or `make native` was not run"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and models: HASTEN_DATA, else ../shared/data beside the repository; skipped where absent, never in CI."""
    here = Path(__file__).resolve().parent.parent
    place = Path(os.environ.get("HASTEN_DATA") or here.parent / "shared" / "data")
    if not place.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"no real data at {place}: CI must have it; set HASTEN_DATA")
        pytest.skip(f"no real data at {place}: set HASTEN_DATA to the folder that holds mnist/, cifar10/ and models/")
    return place


@pytest.fixture(scope="session")
def digits() -> Path:
    """Real handwritten digits, 28 × 28 bytes, with a test split."""
    return MODELS / "digits.npz"


@pytest.fixture(scope="session")
def digits_cnn() -> Path:
    """The CNN trained on them, batch norm kept."""
    return MODELS / "digits_cnn.onnx"


@pytest.fixture(scope="session")
def mlp() -> Model:
    """A small MLP with random weights: x (N, 8) → y (N, 4)."""
    return mlp_model()


def mlp_model(seed: int = 0, inputs: int = 8, hidden: int = 128, outputs: int = 4) -> Model:
    """x (N, inputs) → Gemm → Relu → Gemm → y (N, outputs)."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.standard_normal((hidden, inputs)),
        "b1": rng.standard_normal(hidden),
        "w2": rng.standard_normal((outputs, hidden)) / 8,
        "b2": rng.standard_normal(outputs),
    }
    return model_of(
        f"""mlp (float[N, {inputs}] x) => (float[N, {outputs}] y) {{
            h = Gemm <transB = 1> (x, w1, b1)
            a = Relu (h)
            y = Gemm <transB = 1> (a, w2, b2)
        }}""",
        weights,
    )


def proto_of(text: str, weights: dict[str, np.ndarray] | None = None, opset: int = 21) -> onnx.ModelProto:
    """A ModelProto from ONNX text, that of local functions among it, and weights (float64 becomes float32)."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}')
    proto.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted({f.domain for f in proto.functions}))
    for name, array in (weights or {}).items():
        array = np.asarray(array)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32) if array.dtype == np.float64 else array, name))
    return proto


def model_of(text: str, weights: dict[str, np.ndarray] | None = None) -> Model:
    """A Model from ONNX text and weights."""
    return from_proto(proto_of(text, weights))


def operators(model: Model) -> list[str]:
    """The main graph's operators, in order."""
    return [n.op_type for n in model.ir.graph]
