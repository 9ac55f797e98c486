"""simplify: all passes until nothing changes; a wrong rewrite is found, undone and named; what each pass brings."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from hasten import check, cli, simplify
from hasten.errors import BadInput
from hasten.graph import add_weight, finish, may_rewrite
from hasten.measure import beside
from hasten.model import Step
from hasten.passes import order_nodes
from hasten.runtimes import Target
from hasten.simplify import Simplified, passes
from tests.conftest import model_of, operators, proto_of


@pytest.fixture
def model():
    return model_of(
        """g (float[N, 4] x) => (float[N, 4] y) {
            a = Relu (x)
            same = Relu (x)
            b = Add (a, w)
            c = Relu (b)
            s = Add (w, w)
            d = Mul (c, s)
            e = Relu (d)
            f = Sub (e, same)
            y = Identity (f)
        }""",
        {"w": np.array([1.0, -2.0, 0.1, -0.1])},
    )


def test_all_passes_run_until_nothing_changes(model):
    found = simplify.simplify(model, passes())
    assert found.checked and found.check_seconds > 0
    assert found.after.nodes < found.before.nodes == 9
    assert "Identity" not in operators(found.model) and operators(found.model).count("Relu") == 3
    check.same(model, found.model, within=check.FLOAT32)
    assert [p.name for p in found.model.outputs] == ["y"]
    again = simplify.simplify(found.model, passes())
    assert again.model.structure == found.model.structure and again.verdicts == ()


def clips(wrong: set[str]):
    """A pass that writes Relu as Clip, and wrongly at some nodes."""

    def pass_(model, settings, task):
        edited, changed = model.edit(), 0
        for node in list(edited.graph):
            if node.op_type == "Relu" and may_rewrite(node):
                low = add_weight(edited.graph, f"{node.name}_low", np.array(0.5 if node.name in wrong else 0.0, np.float32))
                node.op_type = "Clip"
                node.resize_inputs(2)
                node.replace_input_with(1, low)
                changed += 1
        return finish(model, edited, settings, "order_nodes", changed, [])

    return pass_


@pytest.mark.parametrize("number_of_wrong", [1, 2, 4])
def test_the_guilty_rewrite_is_undone_and_named_and_the_others_stay(number_of_wrong, model, monkeypatch):
    relus = [n.name for n in model.ir.graph if n.op_type == "Relu"]
    wrong = set(relus[-number_of_wrong:])
    monkeypatch.setattr(order_nodes, "order_nodes", clips(wrong))
    found = simplify.simplify(model, passes(only=("order-nodes",)))
    (verdict,) = (v for v in found.verdicts if v.technique == "order_nodes")
    assert {node for node, _ in verdict.undone} == wrong
    assert all("of its scale" in why and "BITS allows 0" in why for _, why in verdict.undone)
    check.same(model, found.model, within=check.BITS)
    assert operators(found.model).count("Clip") == len(relus) - number_of_wrong
    unchecked = simplify.simplify(model, passes(only=("order-nodes",)), checked=False)
    with pytest.raises(check.CheckFailed):
        check.same(model, unchecked.model, within=check.FLOAT32)


def test_a_pass_that_is_wrong_whatever_it_leaves_alone_is_undone_as_a_whole(model, monkeypatch):
    def worse(model, settings, task):
        edited = model.edit()
        edited.graph.outputs[0].producer().op_type = "Neg"
        return finish(model, edited, settings, "order_nodes", 1, [])

    monkeypatch.setattr(order_nodes, "order_nodes", worse)
    found = simplify.simplify(model, passes(only=("order-nodes",)))
    assert found.model.structure == model.structure
    ((node, why),) = found.verdicts[0].undone
    assert node == "order-nodes" and why


@pytest.mark.parametrize("lie", ["operator", "input", "attribute", "weight"])
def test_a_pass_that_changes_the_graph_and_says_it_did_not_is_checked_all_the_same(lie, model, monkeypatch):
    """All passes work on one draft: what this one leaves would come to the next one, and out with its work, unseen by the oracle."""

    def liar(model, settings, task):
        edited = model.edit()
        nodes = {n.outputs[0].name: n for n in edited.graph}
        if lie == "operator":
            nodes["c"].op_type = "Neg"
        elif lie == "input":
            nodes["f"].replace_input_with(0, nodes["a"].outputs[0])
        elif lie == "attribute":
            nodes["leaky"].attributes["alpha"] = ir.AttrFloat32("alpha", 0.9)
        else:
            edited.graph.initializers["w"].const_value = ir.Tensor(np.ones(4, np.float32), name="w")
        return model.then(edited, Step("order_nodes", {}, 0))

    text = """g (float[N, 4] x) => (float[N, 4] y) {
        a = Relu (x)
        b = Add (a, w)
        c = Abs (b)
        leaky = LeakyRelu <alpha = 0.1> (x)
        f = Sub (c, leaky)
        y = Identity (f)
    }"""
    model = model_of(text, {"w": np.array([1.0, -2.0, 0.1, -0.1])})
    monkeypatch.setattr(order_nodes, "order_nodes", liar)
    found = simplify.simplify(model, [*passes(only=("order-nodes",)), *passes(only=("cleanup",))])
    assert "Identity" not in operators(found.model)
    check.same(model, found.model, within=check.BITS)
    (verdict,) = (v for v in found.verdicts if v.technique == "order_nodes")
    assert [name for name, _ in verdict.undone] == ["order-nodes"]


def test_a_pass_that_counts_too_little_and_is_right_stays_and_counts_as_one(model, monkeypatch):
    def modest(model, settings, task):
        made = clips(set())(model, settings, task)
        return model.then(made.ir, Step("order_nodes", {}, 0))

    monkeypatch.setattr(order_nodes, "order_nodes", modest)
    found = simplify.simplify(model, passes(only=("order-nodes",)))
    assert "Relu" not in operators(found.model)
    assert [(v.technique, v.changed, v.undone) for v in found.verdicts] == [("order_nodes", 1, ())]


def test_what_is_wrong_on_real_inputs_alone_is_found_there(model, monkeypatch):
    """0.5 instead of 0 as the lower end of the first Relu shows where its input is below 0.5: never on inputs that are far above."""
    first = next(n.name for n in model.ir.graph if n.op_type == "Relu")
    monkeypatch.setattr(order_nodes, "order_nodes", clips({first}))
    monkeypatch.setattr(check, "_feeds", lambda model, seed: [{"x": np.full((2, 4), 9, np.float32)}])
    rows = passes(only=("order-nodes",))
    assert not simplify.simplify(model, rows).verdicts[0].undone
    assert [n for n, _ in simplify.simplify(model, rows, feeds=[{"x": np.zeros((2, 4), np.float32)}]).verdicts[0].undone] == [first]


@pytest.mark.parametrize("speeds, said", [
    ({"onnxruntime-plain": 1.2, "onnxruntime": 1.01}, "already done by onnxruntime: no gain; for quantize-static"),
    ({"onnxruntime-plain": 1.2, "onnxruntime": 1.1, "openvino": 1.0}, "faster: × 1.10 in onnxruntime; for"),
    ({"onnxruntime-plain": 1.0, "onnxruntime": 0.9}, "no gain in time; slower: × 0.90 in onnxruntime; for"),
    ({"onnxruntime-plain": 1.0, "onnxruntime": 1.02}, "no gain in time; for"),
    ({}, "for quantize-static"),
])  # fmt: skip
def test_the_verdict_says_who_did_it_already(speeds, said):
    assert simplify._says("fold_batchnorm", speeds, 0.03).startswith(said)


def test_a_pass_that_makes_it_slower_is_left_out(model, monkeypatch):
    """The clock says that a graph with fewer than four Relus takes twice as long in onnxruntime."""

    def clock(original, models, runtime, target, feeds, rounds=1):
        return [2.0 if operators(m).count("Relu") < 4 and runtime == "onnxruntime" else 1.0 for m in models]

    monkeypatch.setattr(beside, "ratios_beside", clock)
    found = simplify.never_slower(model, passes(only=("cleanup", "fold_constants")), None, True, Target(1), check.random_feeds(model, 1))
    assert [v.technique for v in found.verdicts] == ["fold_constants"]
    assert found.speed["onnxruntime"] == 1.0
    assert operators(found.model).count("Relu") == 4


def test_unknown_passes_are_refused():
    with pytest.raises(BadInput, match="there is no pass 'to_float16' that keeps the results; there are cleanup, "):
        passes(only=("to-float16",))
    assert "cleanup" not in [r.name for r in passes(leave=("cleanup",))]


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(list(arguments))
    shown = capsys.readouterr()
    return end.value.code, shown.out, shown.err


def test_the_verb_writes_the_file_and_the_table(model, tmp_path, capsys):
    model.save(tmp_path / "a.onnx")
    code, out, _ = run(capsys, "simplify", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "b.onnx"), "--no-timing", "-q")
    assert code == 0
    assert "as it came" in out and "cleanup" in out and "checked against the oracle" in out
    made = ir.load(tmp_path / "b.onnx")
    assert len(made.graph) < 9
    code, out, _ = run(capsys, "simplify", str(tmp_path / "a.onnx"), "--no-timing", "--json", "--only", "cleanup")
    found = json.loads(out)
    assert [p["technique"] for p in found["passes"]] == ["cleanup"] and found["after"]["nodes"] < found["before"]["nodes"]
    code, _, err = run(capsys, "simplify", str(tmp_path / "a.onnx"), "--only", "magic", "-o", str(tmp_path / "c.onnx"))
    assert code == 2 and "there is no pass 'magic'" in err and not (tmp_path / "c.onnx").exists()
    code, out, err = run(capsys, "simplify", str(tmp_path / "a.onnx"), "-o", str(tmp_path / "none" / "b.onnx"))
    assert code == 2 and "can't be written (there is no folder" in err and not out


def test_simplified_is_plain_json(model):
    found = simplify.simplify(model, passes())
    assert isinstance(found, Simplified) and json.dumps(found.to_json())


WEIGHTS = 8
SIZE = 1448
"""Weights of 8 MiB: 64 MiB in all."""

MEASURED = """
import sys, threading, time
from hasten.doors.onnx import load_onnx
from hasten.simplify import passes, simplify

def held():  # bytes of the process that are no file's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))

def watch():
    while watching:
        most.append(held())
        time.sleep(0.001)

model = load_onnx(sys.argv[1], check=False)
simplify(model, passes(), checked=False)  # imports what it needs
before, watching, most = held(), True, []
thread = threading.Thread(target=watch)
thread.start()
simplify(model, passes(), checked=False).model.save(sys.argv[2])
watching = False
thread.join()
print(max(most) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is read from Linux's /proc")
@pytest.mark.parametrize("external", [True, False])
def test_weights_are_never_copied_as_a_whole(tmp_path, external):
    lines = [f"m{i} = MatMul ({f'x{i}' if i else 'x'}, w{i}) d{i} = Identity (m{i}) x{i + 1} = Relu (d{i})" for i in range(WEIGHTS)]
    proto = proto_of(f"g (float[N, {SIZE}] x) => (float[N, {SIZE}] x{WEIGHTS}) {{ {' '.join(lines)} }}")
    numbers = np.random.default_rng(0)
    for i in range(WEIGHTS):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers.random((SIZE, SIZE), np.float32), f"w{i}"))
    onnx.save(proto, tmp_path / "a.onnx", save_as_external_data=external, location="a.data")
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (tmp_path / "b.onnx").stat().st_size > WEIGHTS * SIZE * SIZE * 4
    assert int(done.stdout) < WEIGHTS * SIZE * SIZE * 4 * 0.75
