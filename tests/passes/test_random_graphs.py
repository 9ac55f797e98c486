"""Every pass on random graphs: valid, the same inputs and outputs, the same numbers as the un-optimised oracle, a second run changes nothing."""

import logging
import os
import random
from collections import Counter

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings

from hasten import check
from tests.passes.random_graphs import DOMAIN, PASSES, agree, check_passes, graphs, random_graph

COUNT = int(os.environ.get("HASTEN_RANDOM_GRAPHS", "2000" if os.environ.get("CI") else "200"))
"""How many graphs; tools/random_graphs.py runs any number."""

WHOLE = 4
"""One of so many is put through `simplify` too."""


@pytest.fixture(autouse=True)
def quiet():
    """onnx_ir warns of graphs whose shapes it can't infer; here they are many."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def test_every_pass_keeps_random_graphs_and_each_finds_something_to_do():
    fired: Counter[str] = Counter()
    for number in range(COUNT):
        try:
            fired += check_passes(random_graph(random.Random(f"test:{number}")), whole=number % WHOLE == 0)
        except AssertionError as e:
            raise AssertionError(f"graph {number}: {e}") from e
    assert not [row.name for row in PASSES if not fired[row.name] and row.name != "fuse_attention"]  # a sum with a norm is rare here
    assert fired["not run by the oracle"] <= COUNT // 100
    assert fired["nodes after"] < 0.8 * fired["nodes before"]


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_a_graph_that_fails_shrinks(proto):
    check_passes(proto)


def test_random_graphs_have_bodies_of_every_kind():
    protos = [random_graph(random.Random(f"bodies:{number}")) for number in range(300)]
    found = Counter(node.op_type for proto in protos for body in (proto.graph, *proto.functions) for node in body.node)
    calls = Counter(node.domain for proto in protos for function in proto.functions for node in function.node)
    assert min(found["If"], found["Loop"], found["Scan"], sum(bool(p.functions) for p in protos), calls[DOMAIN]) >= 3


def test_random_graphs_are_valid_and_the_same_for_the_same_seed():
    for number in range(20):
        proto = random_graph(random.Random(f"valid:{number}"))
        onnx.checker.check_model(proto, full_check=True)
        assert proto == random_graph(random.Random(f"valid:{number}"))


def test_the_comparison_sees_a_wrong_result():
    right = np.linspace(-2, 2, 9, dtype=np.float32)
    agree("y", right, right * np.float32(1.00001), check.FLOAT32)
    with pytest.raises(AssertionError, match="y differs by"):
        agree("y", right, right * np.float32(1.001), check.FLOAT32)
    with pytest.raises(AssertionError, match="y differs by"):
        agree("y", right, right * np.float32(1.00001), check.BITS)
    with pytest.raises(AssertionError, match=r"y is float32\(9,\), expected float32\(3, 3\)"):
        agree("y", right.reshape(3, 3), right, check.FLOAT32)
