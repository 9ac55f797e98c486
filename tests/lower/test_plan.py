"""The plan file: what `convert` writes and the engine loads."""

import numpy as np
import pytest

from hasten.cli import main
from tests.conftest import model_of
from tests.lower.quantized import Net

needs_engine = pytest.mark.usefixtures("engine")


@pytest.fixture
def net(tmp_path):
    made = Net(1, 3, 8, 8)
    model = made.model(made.gemm(made.flat(made.conv(made.first, 8, 3, 1, 1)), 10, last=True))
    model.save(tmp_path / "int8.onnx")
    return model, made.samples(2), tmp_path


@needs_engine
def test_convert_writes_a_plan_that_the_engine_loads(net):
    from hasten import _native
    from hasten.runtimes import Target, get

    model, feeds, place = net
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(place / "int8.onnx"), str(place / "net.plan"), "--quiet"])
    assert ended.value.code == 0
    engine = _native.Model.load(str(place / "net.plan"), 1, 2)
    np.testing.assert_array_equal(
        engine.run_list([feeds["x"]])[0], next(iter(get("native").compile(model, Target(1, batch=2)).run(feeds).values()))
    )
    assert [port[0] for port in engine.inputs] == ["x"]


@needs_engine
def test_a_plan_of_another_version_says_so(net):
    from hasten import _native
    from hasten.lower import lower

    data = bytearray(lower(net[0]).to_bytes())
    data[8] = 9
    with pytest.raises(ValueError, match="plan of version 9, this engine reads version 2: lower the model again"):
        _native.Model.from_bytes(bytes(data))


def test_a_model_that_is_not_taken_makes_no_plan_and_no_file(tmp_path, capsys):
    (tmp_path / "net.onnx").write_bytes(model_of("m (float[N, 4] x) => (float[N, 4] y) { y = Sin (x) }").to_bytes())
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "net.onnx"), str(tmp_path / "net.plan")])
    assert ended.value.code == 4
    assert "the native engine has no Sin" in capsys.readouterr().err
    assert [f.name for f in tmp_path.iterdir()] == ["net.onnx"]
