"""The torch runtimes: any Model through the executor, eager or compiled."""

import numpy as np
import pytest

from hasten import check
from hasten.errors import Unsupported
from hasten.model import Model
from hasten.runtimes import Target, get
from hasten.runtimes import torch as torch_runtime
from hasten.search.budget import Budget
from hasten.search.candidates import candidates
from tests.conftest import mlp_model, model_of


@pytest.mark.parametrize("name", ["torch", "torch-compiled"])
@pytest.mark.filterwarnings("ignore")
def test_a_convolutional_net_computes_what_the_oracle_does_and_again_from_the_file(name, digits_cnn):
    target = Target(1, batch=2)
    feeds = check.random_feeds(Model.load(digits_cnn), 2)
    (expected,) = check.oracle(Model.load(digits_cnn)).run(None, feeds)
    session = get(name).compile(digits_cnn, target)
    assert session.batch == (2 if name == "torch-compiled" else None)
    (found,) = session.run(feeds).values()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_arrays_that_may_not_be_written_to_are_read_all_the_same():
    x = np.zeros((2, 8), np.float32)
    x.flags.writeable = False
    assert get("torch").compile(mlp_model(), Target(1)).run({"x": x})["y"].shape == (2, 4)


def test_what_the_executor_has_no_row_for_is_refused_by_node_before_it_runs():
    model = model_of("g (float[N, M] x) => (float[K] y, int64[K] i) { y, i = Unique (x) }")
    for name in ("torch", "torch-compiled"):
        (skip,) = get(name).unsupported(model, Target(1))
        assert skip.node == "Unique_0"
        assert "ai.onnx::Unique, opset 21" in skip.why
        with pytest.raises(Unsupported, match="Unique"):
            get(name).compile(model, Target(1))


def test_without_torch_it_says_so(monkeypatch):
    monkeypatch.setattr(torch_runtime.importlib.util, "find_spec", lambda name: None)
    (skip,) = get("torch").unsupported(mlp_model(), Target(1))
    assert skip.why == "torch is not installed: pip install 'hasten[torch]'"
    with pytest.raises(Unsupported, match="torch is not installed"):
        get("torch-compiled").compile(mlp_model(), Target(1))


def test_the_search_tries_them_where_they_are_named_and_else_does_not():
    def tried(budget):
        return {c.runtime for c in candidates(budget, Target(1), 1.0, judged=True)}

    assert tried(Budget()) == {"onnxruntime", "openvino", "native"}
    assert tried(Budget(runtimes=("torch", "torch-compiled"))) == {"torch", "torch-compiled"}
