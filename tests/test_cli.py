"""The command line: exit codes, the one line that an error is, what an error leaves behind, --help, --json, and the gate."""

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import pytest

from hasten import Task, apply, check, cli, doors, packed, plan
from hasten.errors import BadInput
from hasten.folder import FINISHED, Folder
from hasten.measure import judge, kernels, machine
from hasten.measure.judge import Timing
from hasten.measure.process import WorkerFailed
from hasten.model import Model
from hasten.plan import Plan
from hasten.runtimes import native
from hasten.search import optimize as searching
from tests.conftest import mlp_model, proto_of
from tests.search.quick import quicken

SAMPLES, FEATURES, CLASSES = 300, 8, 4
MLP = mlp_model(inputs=FEATURES, outputs=CLASSES)
X = np.random.default_rng(0).standard_normal((SAMPLES, FEATURES)).astype(np.float32)
Y = check.oracle(MLP).run(None, {"x": X})[0].argmax(1)
OWN_VERBS = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
TECHNIQUE_VERBS = [row.verb for row in plan.TECHNIQUES]


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def hasten(*arguments) -> Ended:
    """`hasten …` in this process; the verbs that main() registers are taken back."""
    out, err, verbs = io.StringIO(), io.StringIO(), list(cli.app.registered_commands)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
    finally:
        cli.app.registered_commands[:] = verbs
    return Ended(ended.value.code or 0, out.getvalue(), err.getvalue())


def child(*arguments, first="") -> Ended:
    """`hasten …` in a process of its own, after the statement `first`."""
    code = f"{first}\nfrom hasten.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-B", "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def files(folder) -> dict[str, bytes | None]:
    """Everything below the folder: a file's bytes, None for a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refuses(place, *arguments, says, code=2):
    """The command ends with the code and one line that holds every text of `says`, and leaves every file as it was, and no other."""
    before = files(place)
    ended = hasten(*arguments)
    assert ended.code == code, ended
    assert re.fullmatch(r"hasten: [^\n]+\n", ended.err), ended.err
    for text in (says,) if isinstance(says, str) else says:
        assert text in ended.err
    assert files(place) == before


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch.setattr)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working folder, with a model, its data, a plan, and all temporary files in it, so that none goes unseen."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.chdir(tmp_path)
    MLP.save("model.onnx")
    np.savez("data.npz", x=X, y=Y)
    (tmp_path / "plan.json").write_text(Plan(()).to_json())
    (tmp_path / "file").write_text("precious")
    return tmp_path


@pytest.fixture
def speeds(monkeypatch):
    """Timings by plan instead of by clock: seconds of each file by its stem, 1 ms where none are given; several are taken in turn."""
    planned = {}

    def time_once(subject, feeds, percentile=50.0):
        turns = planned.setdefault(subject.path.stem, itertools.repeat(1e-3))
        seconds = next(turns)
        return Timing(seconds, dict.fromkeys(("50", "95", "99", f"{percentile:g}"), seconds), 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)
    return planned


# --- models that can't be used


def model_bytes() -> bytes:
    return MLP.to_bytes()


def nonsense_operator(domain: str = "") -> bytes:
    """Relu, then a node `odd_one` with an operator that nobody knows."""
    proto = proto_of("m (float[N, 8] x) => (float[N, 8] y) { a = Relu (x)\n y = Relu (a) }")
    proto.graph.node[1].name, proto.graph.node[1].op_type, proto.graph.node[1].domain = "odd_one", "Frobnicate", domain
    if domain:
        proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    return proto.SerializeToString()


def weight_of(value: float) -> bytes:
    """The MLP with one weight at `value`."""
    proto = onnx.load_from_string(model_bytes())
    array = onnx.numpy_helper.to_array(proto.graph.initializer[0]).copy()
    array.flat[1] = value
    proto.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, proto.graph.initializer[0].name))
    return proto.SerializeToString()


BAD_MODELS = {
    "missing": ("bad.onnx", None, 2, ("bad.onnx does not exist", "expected an ONNX file")),
    "empty": ("bad.onnx", b"", 2, ("bad.onnx is empty", "expected an ONNX file")),
    **{
        f"cut off at {share:.0%}": ("bad.onnx", model_bytes()[: int(share * len(model_bytes()))], 2, ("bad.onnx can't be read", "cut off"))
        for share in (0.05, 0.5, 0.99)
    },
    "only a header": ("bad.onnx", model_bytes()[:2], 2, ("not an ONNX model: it has no graph", "expected a file that an exporter wrote")),
    "text": ("bad.onnx", b"a letter to my aunt\n", 2, ("bad.onnx can't be read as ONNX", "another format")),
    "a zip": ("bad.onnx", b"PK\3\4" + bytes(100), 2, ("bad.onnx can't be read as ONNX", "another format")),
    "packed, cut off": ("bad.packed", packed.pack(MLP)[:-9], 2, ("bad.packed does not agree with its checksum", "copy it again")),
    "packed, another format": (
        "bad.packed",
        model_bytes(),
        2,
        ("bad.packed is not a packed model", "expected a file that `hasten convert"),
    ),
    "not packed": ("bad.onnx.xz", model_bytes(), 2, ("bad.onnx.xz can't be unpacked", "not .xz")),
    "a checkpoint": ("bad.pt", b"weights", 2, ("a checkpoint has weights and no graph", "give `file.py:function`")),
    "a function that raises": ("bad.py:make", b"raise OSError('two\\nlines')", 2, ("bad.py:make: the file raised OSError: two lines",)),
    "unknown operator": ("bad.onnx", nonsense_operator(), 4, ("'odd_one'", "Frobnicate", "no such operator", "export the model again")),
    "unknown domain": ("bad.onnx", nonsense_operator("acme"), 4, ("'odd_one'", "acme::Frobnicate", "domain is unknown")),
    "unknown in com.microsoft": ("bad.onnx", nonsense_operator("com.microsoft"), 4, ("'odd_one'", "com.microsoft::Frobnicate")),
    "unknown in ai.onnx.ml": ("bad.onnx", nonsense_operator("ai.onnx.ml"), 4, ("'odd_one'", "ai.onnx.ml::Frobnicate")),
    "NaN weight": ("bad.onnx", weight_of(np.nan), 2, ("weight 'w1' holds 1 values that are NaN or infinite", "export the model again")),
    "infinite weight": ("bad.onnx", weight_of(np.inf), 2, ("weight 'w1' holds 1 values that are NaN or infinite",)),
}
MODEL_VERBS = {
    "inspect": ("inspect", "BAD"),
    "convert": ("convert", "BAD", "out.onnx"),
    "optimize": ("optimize", "BAD", "--data", "data.npz", "-o", "out"),
    "run": ("run", "plan.json", "BAD", "-o", "out"),
    "evaluate": ("evaluate", "BAD", "--data", "data.npz"),
    "benchmark": ("benchmark", "model.onnx", "BAD"),
    "compare": ("compare", "model.onnx", "BAD", "--data", "data.npz"),
    "cleanup": ("cleanup", "BAD", "out.onnx"),
    "quantize-static": ("quantize-static", "BAD", "out.onnx", "--data", "data.npz"),
}


@pytest.mark.parametrize("verb", MODEL_VERBS)
@pytest.mark.parametrize("case", BAD_MODELS)
def test_a_model_that_cannot_be_used(place, case, verb):
    name, data, code, says = BAD_MODELS[case]
    if data is not None:
        (place / name.partition(":")[0]).write_bytes(data)
    refuses(place, *(name if a == "BAD" else a for a in MODEL_VERBS[verb]), code=code, says=says)


def test_a_torch_file_that_is_none_gives_one_line_too(place):
    (place / "bad.pt2").write_bytes(b"nothing of torch's")
    ended = child("inspect", "bad.pt2")
    assert (ended.code, ended.out) == (2, "")
    assert re.fullmatch(r"hasten: bad.pt2 can't be read as a torch ExportedProgram: [^\n]+\n", ended.err)


# --- data that can't be used


BAD_DATA = {
    "missing": ("bad.npz", None, ("bad.npz does not exist", "expected data")),
    "no data at all": ("bad.npz", b"", ("bad.npz can't be read", "cut off or of another format")),
    "text": ("bad.npz", b"a letter to my aunt\n", ("bad.npz can't be read", "another format")),
    "unknown form": ("bad.mat", b"MATLAB", ("bad.mat is not data that hasten reads", "expected .npz")),
    "an empty table": ("bad.csv", b"", ("bad.csv has 0 lines", "expected a header and at least one row")),
    "a table without rows": ("bad.csv", b"a,b,label\n", ("bad.csv has 1 lines", "expected a header and at least one row")),
    "an empty .npy": ("bad.npy", b"", ("bad.npy can't be read", "cut off")),
    "a single number": (
        "bad.npy",
        np.float32(1),
        ("bad.npy is a single number", "expected an array with the samples along its first axis"),
    ),
    "no samples": ("bad.npz", {"x": X[:0], "y": Y[:0]}, ("the data is empty", "expected at least 6 samples")),
    "a single sample": ("bad.npz", {"x": X[:1], "y": Y[:1]}, ("the data has 1 samples", "at least 6 are needed")),
    "a single test sample": (
        "bad.npz",
        {"x_train": X, "y_train": Y, "x_test": X[:1], "y_test": Y[:1]},
        ("300 samples and 1 for test", "at least 6 are needed"),
    ),
    "wrong shape": ("bad.npz", {"x": X[:, :7], "y": Y}, ("input 'x' wants samples of shape 8, the data has 7", "reshape the data")),
    "wrong rank": ("bad.npz", {"x": np.stack([X, X], 1), "y": Y}, ("wants samples of shape 8", "the data has 2×8")),
    "words": ("bad.npz", {"x": X.astype(str), "y": Y}, ("bad.npz has no samples", "x <U", "expected numbers")),
    "complex numbers": ("bad.npz", {"x": X.astype(complex), "y": Y}, ("has no samples", "x complex128[300, 8]", "expected numbers")),
    "objects": ("bad.npz", {"x": X.astype(object), "y": Y}, ("bad.npz can't be read", "saved without pickled objects")),
    "NaN": (
        "bad.npz",
        {"x": np.where(X > 3, np.nan, X), "y": Y},
        ("column 'x' holds NaN or infinite values in", "of 300 samples", "clean"),
    ),
    "a label above": ("bad.npz", {"x": X, "y": np.arange(SAMPLES) % 5}, ("labels run from 0 to 4, output 'y' has 4 classes (0 to 3)",)),
    "a label below": (
        "bad.npz",
        {"x": X, "y": np.arange(SAMPLES) % 5 - 1},
        ("labels run from -1 to 3, output 'y' has 4 classes (0 to 3)",),
    ),
    "labels from 1": ("bad.npz", {"x": X, "y": np.arange(SAMPLES) % 4 + 1}, ("labels run from 1 to 4", "count from 1: subtract 1")),
    "a label too few": ("bad.npz", {"x": X, "y": Y[1:]}, ("300 samples and 299 labels", "one label for each sample")),
    "one label": ("bad.npz", {"x": X, "y": np.int64(3)}, ("300 samples and 1 labels", "one label for each sample")),
    "fractions as labels": ("bad.npz", {"x": X, "y": Y + 0.5}, ("accuracy wants class numbers", "float64 with fractions", "--metric mse")),
    "words as labels": ("bad.npz", {"x": X, "y": Y.astype(str)}, ("the labels are of type <U", "expected numbers")),
}
DATA_VERBS = {
    "optimize": ("optimize", "model.onnx", "--data", "BAD", "-o", "out"),
    "evaluate": ("evaluate", "model.onnx", "--data", "BAD"),
    "benchmark": ("benchmark", "model.onnx", "--data", "BAD"),
    "compare": ("compare", "model.onnx", "model.onnx", "--data", "BAD"),
    "quantize-static": ("quantize-static", "model.onnx", "out.onnx", "--data", "BAD"),
}


def write(path, content):
    """Bytes as they are, a dict as .npz, an array as .npy."""
    if isinstance(content, dict):
        np.savez(path, **content)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)


@pytest.mark.parametrize("verb", DATA_VERBS)
@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_used(place, case, verb):
    name, content, says = BAD_DATA[case]
    write(place / name, content)
    refuses(place, *(name if a == "BAD" else a for a in DATA_VERBS[verb]), says=says)


BESIDE = {
    "labels of a wrong shape": ({"x": X, "y": np.stack([Y] * 3, 1)}, "accuracy", ("outputs of shape", ", 4)", "labels of shape", ", 3)")),
    "values of a wrong shape": ({"x": X, "y": X[:, :7]}, "mse", ("mse can't compare outputs of shape", ", 4)", "labels of shape", ", 7)")),
    "class numbers for values": ({"x": X, "y": Y}, "mse", ("mse can't compare outputs of shape", ", 4)", "another --metric")),
    "NaN among the values": ({"x": X, "y": np.full((SAMPLES, 4), np.nan)}, "mse", ("the labels hold NaN or infinite values", "clean")),
    "auc of one class": ({"x": X, "y": np.zeros(SAMPLES, int)}, "auc", ("auc", "not defined", "one class")),
}


@pytest.mark.parametrize("verb", ["optimize", "evaluate", "compare"])
@pytest.mark.parametrize("case", BESIDE)
def test_labels_that_do_not_fit_the_outputs(place, case, verb):
    """Seen only once the model ran; still nothing is left behind."""
    content, metric, says = BESIDE[case]
    write(place / "bad.npz", content)
    speed = ["--skip-speed"] if verb == "compare" else []
    refuses(place, *("bad.npz" if a == "BAD" else a for a in DATA_VERBS[verb]), "--metric", metric, *speed, says=says)


def test_fractions_for_token_ids(place):
    proto = proto_of("m (int64[N, 8] ids) => (float[N, 8, 4] y) { y = Gather (table, ids) }", {"table": np.ones((10, 4))})
    onnx.save(proto, "tokens.onnx")
    refuses(place, "evaluate", "tokens.onnx", "--data", "data.npz", says="input 'ids' wants int64 (whole numbers, such as token ids)")


# --- options that make no sense

OPTIMIZE, EVALUATE, COMPARE = DATA_VERBS["optimize"], DATA_VERBS["evaluate"], (*DATA_VERBS["compare"], "--skip-speed")
BAD_OPTIONS = [
    (OPTIMIZE, "--metric=beauty", ("there is no metric 'beauty'", "accuracy, top-5", "file.py:name")),
    (OPTIMIZE, "--metric=none.py:score", ("there is no file 'none.py'", "expected path/file.py:name")),
    (OPTIMIZE, "--shape=N", ("--shape 'N' is not understood", "expected AXIS=SIZE")),
    (OPTIMIZE, "--shape=N=0", ("--shape 'N=0' is not understood", "expected AXIS=SIZE")),
    (OPTIMIZE, "--shape=N=²", ("--shape 'N=²' is not understood", "expected AXIS=SIZE")),
    (OPTIMIZE, "--shape=seq=3", ("no dynamic axis 'seq'", "it has N")),
    (("inspect", "model.onnx"), "--shape=seq=3", ("no dynamic axis 'seq'", "it has N")),
    (OPTIMIZE, "--max-drop=-1", ("max_drop is -1.0", "expected a number of at least 0")),
    (OPTIMIZE, "--max-drop=nan", ("max_drop is nan", "expected a number of at least 0")),
    (COMPARE, "--max-drop=nan", ("--max-drop is nan", "expected a number")),
    (COMPARE, "--max-drop=-0.01", ("--max-drop is -0.01", "expected a number of at least 0")),
    (("compare", "model.onnx", "none.onnx", "--data", "none.npz"), "--max-drop=inf", ("--max-drop is inf",)),
    (
        ("optimize", "model.onnx", "--data", "data.npz", "--labels", "y.npy", "-o", "out"),
        "--no-labels",
        ("--labels y.npy came with --no-labels",),
    ),
    (("optimize", "model.onnx", "-o", "out"), "--no-labels", ("--no-labels came without --data", "give the data too")),
    (COMPARE, "--max-slowdown=0", ("--max-slowdown is 0.0", "expected a number above 0")),
    (COMPARE, "--max-slowdown=1.05", ("speed left out", "leave out one of the two")),
    (COMPARE, "--robust-samples=50", ("--robust-samples came without --robust", "give --robust too")),
    (COMPARE, "--explain-samples=8", ("--explain-samples came without --explain", "give --explain too")),
    (("compare", "masks.onnx", "masks.onnx", "--data", "masks.npz", "--skip-speed"), "--robust", ("no corruption applies", "expected pic")),
    (("compare", "values.onnx", "values.onnx", "--data", "values.npz", "--skip-speed"), "--explain", ("--explain wants class scores",)),
    (("optimize", "masks.onnx", "--data", "masks.npz", "-o", "out"), "--robust", ("--robust: no corruption applies to the inputs mask",)),
    (("optimize", "values.onnx", "--data", "values.npz", "-o", "out"), "--explain", ("--explain wants class scores",)),
    (("optimize", "model.onnx", "-o", "out"), "--robust", ("--robust needs data", "give --data")),
    (("optimize", "model.onnx", "-o", "out"), "--explain", ("--explain needs data", "give --data")),
    (OPTIMIZE, "--price-per-hour=-0.34", ("--price-per-hour is -0.34", "expected a number above 0")),
    (("benchmark", "model.onnx"), "--price-per-hour=nan", ("--price-per-hour is nan", "expected a number above 0")),
    (OPTIMIZE, "--watts-per-core=0", ("--watts-per-core is 0.0", "expected a number above 0")),
    (OPTIMIZE, "--time-limit=10", ("'10' is not a time", "expected a number and a unit")),
    (OPTIMIZE, "--time-limit=soon", ("'soon' is not a time", "expected a number and a unit")),
    (OPTIMIZE, "--time-limit=0s", ("time_limit is 0.0", "expected more than 0")),
    (OPTIMIZE, "--max-size=4", ("'4' is not a size", "expected a number and a unit")),
    (OPTIMIZE, "--for=fridge", ("there is no profile 'fridge'", "use one of realtime, server, mobile")),
    (OPTIMIZE, "--guard=recall:9", ("--guard recall:9: the test data has no class 9", "it has 1, 2, 3")),
    (OPTIMIZE, "--guard=beauty", ("the guard 'beauty' is not understood", "expected recall:CLASS")),
    (OPTIMIZE, "--guard-drop=2", ("guard_drop is 2.0", "expected a share of at least 0")),
    (OPTIMIZE, "--recipes=magic", ("there is no recipe 'magic'", "use some of original, graph")),
    (("optimize", "model.onnx", "-o", "out"), "--for=medical", ("a guard on recall needs labels", "--guard none")),
    (OPTIMIZE, "--runtimes=tpu", ("no runtime 'tpu'", "use some of onnxruntime")),
    (EVALUATE, "--runtime=tpu", ("no runtime 'tpu'", "use one of onnxruntime")),
    (EVALUATE, "--output=z", ("no output 'z'", "it has y")),
    (EVALUATE, "--label=z", ("no array 'z' for labels", "it has x, y")),
    (EVALUATE, "--labels=none.npy", ("none.npy does not exist", "expected a file of labels")),
    (EVALUATE, "--preprocess=magic", ("there is no preprocessing 'magic'", "use one of unit")),
    (EVALUATE, "--example-input=3xq", ("example input '3xq' is not understood", "expected sizes")),
    (("optimize", "model.onnx", "-o", "out"), "--test=data.npz", ("--test came without --data", "give the data too")),
    (("run", "plan.json", "model.onnx", "-o"), "file", ("file exists and is not an empty folder", "give -o another one")),
    (("run", "data.npz", "model.onnx", "-o"), "out", ("this is not a plan", "expected the plan.json")),
    (("quantize-static", "model.onnx"), "out.onnx", ("quantize_static needs data", "give --data")),
    (("cleanup",), "model.onnx", ("cleanup writes one file, and none came", "with -o OUT")),
    (("cleanup", "model.onnx", "out.onnx"), "-oother.onnx", ("out.onnx and -o other.onnx came", "give one")),
    (("verify",), "temporary", ("temporary has no manifest.json", "expected a folder that `hasten optimize` wrote")),
]


@pytest.mark.parametrize(("command", "option", "says"), BAD_OPTIONS, ids=[f"{c[0]} {o}" for c, o, _ in BAD_OPTIONS])
def test_an_option_that_makes_no_sense(place, command, option, says):
    onnx.save(proto_of("m (int64[N, 4] mask) => (float[N, 4] y) { y = Cast <to = 1> (mask) }"), "masks.onnx")
    onnx.save(proto_of("m (float[N, 8] x) => (float[N, 8, 1] y) { y = Unsqueeze (x, a) }", {"a": np.array([2])}), "values.onnx")
    np.savez("masks.npz", x=np.arange(400).reshape(100, 4) % 2)
    np.savez("values.npz", x=X)
    refuses(place, *("data.npz" if a == "BAD" else a for a in command), option, says=says)


@pytest.mark.parametrize(
    "option", ["--max-drop=much", "--batch=0", "--batch=-2", "--threads=-1", "--seed=-1", "--rounds=1", "--frobnicate"]
)
def test_an_option_that_the_parser_refuses(place, option):
    before = files(place)
    ended = hasten("compare", "model.onnx", "model.onnx", "--data", "data.npz", option)
    assert (ended.code, ended.out) == (2, "")
    assert option.partition("=")[0] in ended.err and "--help" in ended.err and "Traceback" not in ended.err
    assert files(place) == before


# --- folders that can't be used


@pytest.mark.parametrize(("out", "says"), [("file/out", "file/out can't be written (Not a directory)"), ("file", "file is a file")])
def test_an_output_folder_that_cannot_be_made(place, out, says):
    """Below or at a regular file: that stops root too."""
    refuses(place, "optimize", "model.onnx", "--data", "data.npz", "-o", out, says=(says, "folder"))


@pytest.mark.parametrize("command", [("convert", "model.onnx"), ("cleanup", "model.onnx"), ("run", "plan.json", "model.onnx", "-o")])
def test_an_output_file_that_cannot_be_made(place, command):
    refuses(place, *command, "file/out", says=("file/out can't be", "(Not a directory)", "give"))


def test_a_folder_of_somebody_else(place):
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.txt").write_text("precious")
    for force in ([], ["--force"]):
        refuses(place, "optimize", "model.onnx", "-o", "thesis", *force, says=("not empty and not hasten's", "give -o a new folder"))


MANIFESTS = {"cut off": '{"state": "fin', "a list": "[]", "too little": '{"state": "finished"}'}


@pytest.mark.parametrize("verb", ["verify", "benchmark", "inspect"])
@pytest.mark.parametrize("case", MANIFESTS)
def test_a_folder_with_a_broken_manifest(place, case, verb):
    (place / "out").mkdir()
    (place / "out" / "manifest.json").write_text(MANIFESTS[case])
    refuses(place, verb, "out", says="out is a folder" if verb == "inspect" else ("manifest.json", "make the folder again"))


def optimize(*more):
    return hasten("optimize", "model.onnx", "--data", "data.npz", "-o", "out", "--runtimes", "onnxruntime", "--max-drop", "0.9", *more)


def test_optimize_ends_with_0_or_3_and_keeps_what_is_finished(place, speeds):
    nothing = optimize()
    assert nothing.code == 3
    assert (place / "out" / "report.html").read_text().startswith("<!doctype html>")
    assert "look at it: out/report.html" in nothing.out
    assert re.fullmatch(r"hasten: nothing better than the original [^\n]+\n", nothing.err)
    assert (place / "out" / "model.onnx").read_bytes() == (place / "out" / "original.onnx").read_bytes()
    refuses(place, "optimize", "model.onnx", "--data", "data.npz", "-o", "out", says=("holds a finished run", "--resume", "--force"))

    speeds["int8-static"] = itertools.repeat(1e-4)
    assert optimize("--resume").code == 3  # shown again, not measured again
    better = optimize("--force", "--json")
    assert (better.code, better.err) == (0, "")
    assert parsed(better.out)["chosen"].startswith("int8 static")
    assert files(place / "temporary") == {}


def test_a_profile_is_printed_and_what_is_given_overrides_it(place, speeds):
    plain = optimize("--for", "realtime")
    assert "for realtime (one sample at a time, and the slow calls count): objective latency, percentile 99, batch 1" in plain.out
    given = optimize("--force", "--for", "realtime", "--percentile", "95", "--json")
    budget = parsed(given.out)["budget"]
    assert (budget["purpose"], budget["percentile"], budget["batch"], budget["max_drop"]) == ("realtime", 95.0, 1, 0.9)
    medical = optimize("--force", "--for", "medical", "--no-strict", "--guard", "recall:1", "--json")
    budget = parsed(medical.out)["budget"]
    assert (budget["strict"], budget["guards"]) == (False, [{"label": 1}])


def test_a_deadline_at_the_tail_ranks_by_the_tail(place, monkeypatch):
    """A candidate that is twice as fast in the middle and slower at p99 is not returned for real time."""

    def time_once(subject, feeds, percentile=50.0):
        seconds, tail = (5e-4, 5e-3) if subject.path.stem == "int8-dynamic" else (1e-3, 1e-3)
        return Timing(seconds, {"50": seconds, "95": tail, "99": tail}, 0.1, 1 << 20)

    monkeypatch.setattr(judge, "time_once", time_once)
    mlp_model(inputs=FEATURES, outputs=CLASSES, hidden=1024).save("model.onnx")
    only = ("--recipes", "int8 dynamic", "--threads", "1", "--metric", "nll", "--max-drop", "100")
    assert optimize(*only).code == 0
    late = optimize("--force", "--for", "realtime", *only)
    assert late.code == 3
    assert "slower than original · onnxruntime · 1T at p99: × 0.200" in late.err


def test_recipes_restrict_what_is_tried_and_the_advice_is_judged(place, speeds):
    mlp_model(inputs=FEATURES, outputs=CLASSES, hidden=1024).save("model.onnx")
    speeds["int8-dynamic"] = itertools.repeat(1e-4)
    found = optimize("--recipes", "int8 dynamic,graph", "--metric", "nll", "--max-drop", "100")
    assert found.code == 0
    manifest = json.loads((place / "out" / "manifest.json").read_text())
    assert {c["recipe"] for c in manifest["candidates"]} == {"original", "int8 dynamic", "graph"}
    advice = manifest["details"]["advice"]
    assert isinstance(advice["held"], bool) and advice["lines"][0]["candidate"].startswith("int8 dynamic") and advice["why"]
    assert f"advice {'held' if advice['held'] else 'did not hold'}: " in found.out
    kept = [json.loads(line) for line in (place / "out" / "records.jsonl").read_text().splitlines()]
    kinds = [r["kind"] for r in kept]
    assert kinds.index("advice") < kinds.index("duel")  # written down before anything was compared


def test_an_original_that_does_not_run_leaves_nothing(place, monkeypatch):
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: judge.Failure("crashed: the worker was killed by signal 11"))
    refuses(place, *OPTIMIZE[:3], "data.npz", "-o", "out", code=4, says="the original model does not run in onnxruntime: crashed")


def test_an_error_late_in_a_search_keeps_what_was_measured(place, monkeypatch, speeds):
    with monkeypatch.context() as late:
        late.setattr(searching, "choose", fails(BadInput("picture 7 of the test data is broken")))
        ended = optimize()
    assert (ended.code, ended.err) == (2, "hasten: picture 7 of the test data is broken\n")
    kept = (place / "out" / "records.jsonl").read_text()
    assert kept.count('"kind": "screened"') > 1
    assert optimize().code == 3
    assert (place / "out" / "records.jsonl").read_text().startswith(kept)


# --- what runs out

ENOSPC = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails(error):
    def raising(*arguments, **named):
        raise error

    return raising


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "interrupted; nothing that was finished is lost"),
        (MemoryError(), 5, "out of memory; use a smaller sample"),
        (ENOSPC, 5, "No space left on device; free space or choose another place"),
    ],
    ids=["interrupted", "memory", "disk"],
)
def test_what_stops_a_command_from_outside(place, monkeypatch, error, code, says):
    monkeypatch.setattr(doors, "load", fails(error))
    refuses(place, "optimize", "model.onnx", "-o", "out", code=code, says=says)


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "pathlib.Path.mkdir"])
def test_a_full_disk_ends_a_search_that_then_goes_on(place, monkeypatch, speeds, call):
    with monkeypatch.context() as full:
        full.setattr(call, fails(ENOSPC))
        ended = optimize()
    assert ended.code == 5
    assert re.fullmatch(r"hasten: [^\n]*No space left on device[^\n]*run the same command again\n", ended.err)
    assert Folder(place / "out").state != FINISHED
    assert optimize().code == 3
    assert Folder(place / "out").state == FINISHED


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))"


@pytest.mark.parametrize(
    ("command", "left"),
    [
        (("convert", "model.onnx", "out.onnx"), set()),
        (("run", "plan.json", "model.onnx", "-o", "out"), {"out"}),
        (("optimize", "model.onnx", "--data", "data.npz", "-o", "out"), {"out", "out/.work", "out/records.jsonl"}),
    ],
    ids=["convert", "run", "optimize"],
)
def test_a_write_that_really_fails_leaves_no_half_file(place, command, left):
    """No file may grow above 4 KB, and the model has 7: the operating system refuses, root or not."""
    before = files(place)
    ended = child(*command, first=LIMIT)
    assert ended.code == 5
    assert re.fullmatch(r"hasten: [^\n]*File too large[^\n]+\n", ended.err)
    after = files(place)
    assert after.keys() - before.keys() == left
    assert {k: after[k] for k in before} == before


# --- the traceback


def test_a_traceback_comes_with_debug_alone(place):
    with pytest.raises(BadInput, match=r"none\.onnx does not exist"):
        hasten("inspect", "none.onnx", "--debug")
    plain, debug = child("inspect", "none.onnx"), child("inspect", "none.onnx", "--debug")
    assert (plain.code, plain.out, plain.err) == (2, "", "hasten: none.onnx does not exist; expected an ONNX file\n")
    assert "Traceback" in debug.err and "BadInput: none.onnx does not exist" in debug.err


# --- help


def test_help_lists_every_verb_and_the_exit_codes():
    ended = hasten("--help")
    assert (ended.code, ended.err) == (0, "")
    for verb in OWN_VERBS + TECHNIQUE_VERBS:
        assert re.search(rf"^│ {verb} ", ended.out, re.MULTILINE), verb
    assert "Exit codes" in ended.out


@pytest.mark.parametrize("verb", OWN_VERBS + TECHNIQUE_VERBS)
def test_help_of_a_verb_shows_examples_and_explains_every_option(verb):
    ended = hasten(verb, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.count(f"\n hasten {verb} ") >= 2, "two examples"
    if verb in TECHNIQUE_VERBS:
        row = plan.row(verb)
        assert row.about.split(".")[0] in " ".join(ended.out.split())
        for field in dataclasses.fields(row.settings):
            assert f"--{field.name.replace('_', '-')}" in ended.out


# --- a technique


def test_a_technique_takes_its_output_either_way(place):
    assert hasten("cleanup", "model.onnx", "one.onnx").code == hasten("cleanup", "model.onnx", "-o", "other.onnx").code == 0
    assert (place / "one.onnx").read_bytes() == (place / "other.onnx").read_bytes()


# --- JSON


def parsed(text: str):
    """One line of strict JSON, and nothing else."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    assert text.endswith("\n") and text.count("\n") == 1, text
    return json.loads(text, parse_constant=refuse)


def test_inspect_shows_which_channels_hang_together(place, digits_cnn):
    text = hasten("inspect", str(digits_cnn), "--no-timing", "--channels").out
    assert "channels: " in text
    assert " → " in text
    assert "stays: " in text
    assert "it reaches the model's output" in text
    found = parsed(hasten("inspect", str(digits_cnn), "--no-timing", "--channels", "--json").out)["channels"]
    assert {"name", "node", "channels", "first", "inexact", "weights"} == set(found["groups"][0])
    assert found["frozen"]


def test_json_of_inspect_and_evaluate(place, speeds):
    found = parsed(hasten("inspect", "model.onnx", "--json").out)
    assert (found["macs"], found["inputs"], found["operators"]) == (
        128 * 8 + 128 * 4,
        [{"name": "x", "dtype": "float32", "shape": ["N", 8]}],
        {"Gemm": 2, "Relu": 1},
    )
    assert (found["timing"]["seconds"], found["missing"]) == (1e-3, [])
    assert found["advice"][0]["command"].startswith("hasten optimize model.onnx ")
    looked = parsed(hasten("inspect", "model.onnx", "--no-timing", "--json").out)
    assert (looked["macs"], looked["digest"], looked["timing"], looked["advice"]) == (found["macs"], found["digest"], None, [])
    shown = hasten("inspect", "model.onnx", "-q")
    assert (shown.code, shown.err) == (0, "")
    for text in ("latency: 1 ms a call", "bound by ", "try first: hasten optimize model.onnx", "expected × "):
        assert text in shown.out
    found = parsed(hasten("evaluate", "model.onnx", "--data", "data.npz", "--json").out)
    assert (found["metric"], found["value"], found["samples"]) == ("accuracy", 1.0, 144)
    assert 0.9 < found["interval"]["low"] < 1


def test_a_model_is_packed_looked_at_and_unpacked(place, speeds):
    """Also a folder's, and any verb takes what came out."""
    shown = hasten("convert", "model.onnx", "small.packed", "--to", "packed", "-q")
    assert (shown.code, shown.err) == (0, "")
    assert re.match(r"size: \S+ KB raw, \S+ KB packed, \S+ KB entropy-coded\nsmall.packed: 3 nodes", shown.out)
    looked = hasten("inspect", "small.packed", "--no-timing", "-q").out
    assert shown.out.splitlines()[0] in looked.splitlines()
    assert hasten("convert", "small.packed", "back.onnx").code == 0
    assert (place / "back.onnx").read_bytes() == (place / "model.onnx").read_bytes()
    assert hasten("cleanup", "small.packed", "clean.onnx").code == 0
    assert hasten("evaluate", "small.packed", "--data", "data.npz").code == 0
    sizes = parsed(hasten("inspect", "small.packed", "--no-timing", "--json").out)["sizes"]
    assert sizes["raw"] == (place / "model.onnx").stat().st_size and sizes["entropy_coded"] == (place / "small.packed").stat().st_size
    speeds["model"] = itertools.repeat(1e-3)
    assert optimize().code in (0, 3)
    assert hasten("convert", "out", "--to", "packed").code == 0
    assert hasten("convert", "out/model.packed", "again.onnx").code == 0
    assert (place / "again.onnx").read_bytes() == (place / "out" / "model.onnx").read_bytes()
    assert hasten("convert", "out", "copy.onnx").code == 0
    assert hasten("verify", "out").code in (0, 7)
    (place / "out" / "model.onnx").write_bytes(b"changed")
    assert hasten("convert", "out", "other.packed").code == 6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("model.onnx", "out.lite", "--to", "tflite"), ("--to 'tflite' is not understood", "expected one of onnx, packed")),
        (("model.onnx",), ("none was named", "`hasten convert MODEL OUT`")),
        (("model.onnx", "--to", "packed"), ("none was named",)),
        (("model.onnx", "out.packed", "--to", "onnx"), ("would be read as packed", "call it otherwise")),
        (("model.onnx", "nowhere/out.packed"), ("can't be written", "give a place that can")),
        (("temporary", "out.packed"), ("temporary is a folder",)),
    ],
)
def test_what_convert_can_not_do(place, arguments, says):
    refuses(place, "convert", *arguments, says=says)


def test_an_int8_model_becomes_c(place):
    assert hasten("quantize-static", "model.onnx", "-o", "int8.onnx", "--data", "data.npz", "-q").code == 0
    shown = hasten("convert", "int8.onnx", "firmware", "--to", "c", "--data", "data.npz", "--name", "my net", "-q")
    assert (shown.code, shown.err) == (0, "")
    assert sorted(p.name for p in (place / "firmware").iterdir()) == ["my_net.c", "my_net.h", "my_net_test.c"]
    assert re.match(r"layer +computes +flash +RAM in use\n0 \S+ +gemm of 8 to 128 ", shown.out)
    for text in ("bytes of constants; RAM: ", "time: not measured", "test it: cc -std=c99 firmware/my_net.c"):
        assert text in shown.out
    assert "3 samples of the data" in (place / "firmware" / "my_net_test.c").read_text()
    refuses(place, "convert", "int8.onnx", "firmware", "--to", "c", "--name", "my_net", says=("my_net.h exists", "--force"))
    assert hasten("convert", "int8.onnx", "firmware", "--to", "c", "--name", "my_net", "--force").code == 0
    assert "3 seeded codes" in (place / "firmware" / "my_net_test.c").read_text()
    refuses(place, "convert", "int8.onnx", "int8.onnx", "--to", "c", says=("is a file", "folder"))
    refuses(place, "convert", "model.onnx", "other", "--to", "c", says=("quantize it first",), code=4)
    refuses(place, "convert", "int8.onnx", "a.onnx", "--name", "x", says=("--name is for C code",))


def test_doctor_gives_json_and_ends_with_6_where_its_test_fails(place, speeds, monkeypatch):
    from hasten import doctor

    monkeypatch.setattr(doctor, "RUNTIMES", ("onnxruntime",))
    well = hasten("doctor", "--json")
    assert (well.code, well.err) == (0, "")
    assert parsed(well.out)["failed"] == []
    monkeypatch.setattr(judge, "predict", fails(WorkerFailed("crashed")))
    ill = hasten("doctor", "--json")
    assert (ill.code, ill.err) == (6, "hasten: the self-test failed: onnxruntime: crashed\n")
    assert parsed(ill.out)["failed"] == ["onnxruntime: crashed"]


def test_json_of_benchmark_and_compare(place, speeds):
    mlp_model(1).save("other.onnx")
    speeds[Model.load("other.onnx").digest[:16]] = itertools.repeat(5e-4)
    found = parsed(hasten("benchmark", "model.onnx", "other.onnx", "--json").out)
    assert [s["ratio"]["estimate"] for s in found["standings"]] == pytest.approx([1, 2])
    assert found["noise_floor"] == 0
    found = parsed(hasten("compare", "model.onnx", "other.onnx", "--data", "data.npz", "--max-drop", "0.1", "--json").out)
    assert (found["before"], found["accuracy_gate"], found["speed_gate"]) == (1.0, "broken", None)
    assert found["speed"]["standings"][1]["ratio"]["estimate"] == pytest.approx(2)


def test_the_price_of_a_million_predictions(place, speeds):
    speeds[MLP.digest[:16]] = itertools.repeat(1e-3)
    command = ("benchmark", "model.onnx", "--rounds", "2", "--price-per-hour", "3.6")
    found = parsed(hasten(*command, "--json").out)
    assert (found["standings"][0]["price_per_million"], found["price_per_hour"]) == (pytest.approx(1.0), 3.6)
    shown = hasten(*command).out
    assert "a million" in shown and "at 3.6 an hour, computed: seconds a call / batch" in shown


def int8(place):
    """A model that the native engine takes, as int8.onnx."""
    apply("quantize_static", place / "model.onnx", Task(X)).save(place / "int8.onnx")


@pytest.mark.skipif(not native.available(), reason="the native engine is not built: no C++ compiler")
def test_kernels_of_models_and_of_the_grid(place, monkeypatch):
    int8(place)
    (found,) = parsed(hasten("benchmark", "--kernels", "int8.onnx", "--json").out)
    assert (found["of"], found["batch"]) == ("int8.onnx", 1)
    assert [k["shape"] for k in found["kernels"] if k["operations"]] == ["8 → 128", "128 → 4"]
    shown = hasten("benchmark", "--kernels", "int8.onnx", "int8.onnx", "-q").out
    assert shown.count("int8.onnx, one thread, batch 1") == 2
    assert "peak of one core, measured:" in shown
    assert "GOP/s on 8 bits" in shown
    monkeypatch.setattr(kernels, "GRID", tuple(case for case in kernels.GRID if case.outputs == 1000))
    monkeypatch.setattr(kernels, "SECONDS", 0.01)
    assert [k["shape"] for k in parsed(hasten("benchmark", "--kernels", "--json").out)[0]["kernels"]] == ["512 → 1000"]


def test_kernels_refuse_what_has_no_meaning_for_them(place, monkeypatch):
    refuses(place, "benchmark", says=("none was named", "give some, or --kernels"))
    for option in (("--rounds", "3"), ("--runtime", "openvino"), ("--threads", "2"), ("--price-per-hour", "1")):
        refuses(place, "benchmark", "--kernels", "model.onnx", *option, says=(f"{option[0]} came with --kernels", "leave one out"))
    monkeypatch.setattr(native, "available", lambda: False)
    ended = hasten("benchmark", "--kernels", "-q")
    assert (ended.code, ended.out) == (4, "")
    assert ended.err.startswith("hasten: native: the native engine was not built")


def test_compare_under_corruption_and_with_attributions(place):
    mlp_model(1).save("other.onnx")
    command = ("compare", "model.onnx", "other.onnx", "--data", "data.npz", "--skip-speed", "--robust", "--explain")
    found = parsed(hasten(*command, "--robust-samples", "60", "--explain-samples", "6", "--json").out)
    assert (found["robustness"]["samples"], found["robustness"]["available"], len(found["robustness"]["levels"])) == (60, 144, 15)
    assert (found["explanation"]["samples"], found["explanation"]["regions"]) == (6, FEATURES)
    assert found["calibration"]["after"] > found["calibration"]["before"]
    shown = " ".join(hasten(*command).out.split())
    assert f"144 of 144 test samples, seed 0; without corruption 1.000 → {found['after']:.3f}" in shown
    for text in (
        "gaussian noise 0.05, 0.1, 0.2, 0.35, 0.5 σ ",
        "calibration error (ECE, 15 bins",
        "explanation: attributions agree",
    ):
        assert text in shown


def test_json_of_a_model_that_cannot_be_timed(place, monkeypatch):
    """What is not a number is null: NaN is no JSON."""
    monkeypatch.setattr(judge, "time_once", lambda *a, **k: judge.Failure("timed out"))
    found = parsed(hasten("benchmark", "model.onnx", "--json").out)
    assert (found["standings"][0]["failed"], found["standings"][0]["seconds"], found["noise_floor"]) == ("timed out", None, None)


def test_verify_gives_json_and_ends_with_6_where_a_claim_fails(place, speeds):
    speeds["int8-static"] = itertools.repeat(1e-4)
    assert optimize().code == 0
    speeds["model"] = itertools.repeat(1e-4)  # out/model.onnx, the chosen one
    held = hasten("verify", "out", "--data", "data.npz", "--json")
    assert (held.code, held.err) == (0, "")
    assert {c["name"]: c["state"] for c in parsed(held.out)} == {"digests": "holds", "speed": "holds", "accuracy": "holds"}

    speeds["model"] = itertools.repeat(9e-4)
    lost = hasten("verify", "out", "--json")
    assert (lost.code, {c["name"]: c["state"] for c in parsed(lost.out)}["speed"]) == (6, "fails")
    assert lost.err == "hasten: out: the claim on speed does not hold here\n"

    (place / "out" / "run.py").write_text("print('mine')")
    refuses(place, "verify", "out", code=6, says=("run.py has digest", "it was changed"))


def test_verify_of_a_folder_from_another_machine(place, speeds):
    """The speed can't be checked there: that is inconclusive, unless it is left out; digests and accuracy are."""
    speeds["int8-static"] = itertools.repeat(1e-4)
    assert optimize().code == 0
    path = place / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["machine"]["digest"]
    other = machine.Machine(**manifest["machine"] | {"cpu": "MOS 6502", "cores": 1, "isa": ()})
    path.write_text(json.dumps(manifest | {"machine": dataclasses.asdict(other) | {"digest": other.digest}}))

    there = hasten("verify", "out", "--data", "data.npz")
    assert (there.code, there.err) == (7, "hasten: out: the speed was measured on another machine; --skip-speed leaves it out\n")
    assert "another machine than the one measured" in there.out
    without = hasten("verify", "out", "--data", "data.npz", "--skip-speed", "--json")
    assert (without.code, without.err) == (0, "")
    assert {c["name"]: c["state"] for c in parsed(without.out)} == {"digests": "holds", "speed": "not checked", "accuracy": "holds"}


# --- the gate


@pytest.mark.parametrize(
    ("after", "samples", "max_drop", "code", "says"),
    [
        ("model.onnx", SAMPLES, 0.05, 0, ""),
        ("random.onnx", SAMPLES, 0.05, 6, "the gate for accuracy is broken: random.onnx is worse than the limit allows"),
        ("random.onnx", SAMPLES, 0.95, 0, ""),
        ("model.onnx", 30, 0.05, 7, "the gate for accuracy can't be decided: the interval lies across the limit; use more data"),
    ],
    ids=["itself", "random weights", "random weights, a wide gate", "few samples"],
)
def test_the_gate_for_accuracy(place, after, samples, max_drop, code, says):
    mlp_model(1).save("random.onnx")
    np.savez("some.npz", x=X[:samples], y=Y[:samples])
    ended = hasten("compare", "model.onnx", after, "--data", "some.npz", "--max-drop", max_drop, "--skip-speed")
    assert ended.code == code
    assert says in ended.err and bool(says) == bool(ended.err)


def test_outputs_that_are_no_numbers_break_the_gate(place):
    onnx.save(proto_of("m (float[N, 8] x) => (float[N, 8] y) { y = Identity (x) }"), "same.onnx")
    onnx.save(proto_of("m (float[N, 8] x) => (float[N, 8] y) { y = Log (x) }"), "log.onnx")
    np.savez("values.npz", x=X, y=X)
    gate = ("--data", "values.npz", "--metric", "mse", "--max-drop", "0.1", "--skip-speed")
    assert hasten("compare", "same.onnx", "same.onnx", *gate).code == 0
    assert hasten("compare", "same.onnx", "log.onnx", *gate).code == 6


@pytest.mark.parametrize("gate", ["--max-drop=-1", "--max-slowdown=nan"])
def test_a_gate_that_makes_no_sense_is_refused_before_anything_is_measured(place, monkeypatch, gate):
    from hasten.measure import compare, process

    for module, name in ((compare, "under_corruption"), (compare, "attributions"), (compare, "predictions"), (process, "Worker")):
        monkeypatch.setattr(module, name, fails(AssertionError(f"{name} was called")))
    refuses(place, "compare", "model.onnx", "model.onnx", "--data", "data.npz", "--robust", "--explain", gate, says=gate.split("=")[0])


@pytest.mark.parametrize(("turns", "code"), [([1e-3], 0), ([2e-3], 6), ([5e-4, 3e-3], 7)], ids=["as fast", "half as fast", "noise"])
def test_the_gate_for_speed(place, speeds, turns, code):
    mlp_model(1).save("other.onnx")
    speeds[Model.load("other.onnx").digest[:16]] = itertools.cycle(turns)
    ended = hasten("compare", "model.onnx", "other.onnx", "--data", "data.npz", "--max-slowdown", "1.05")
    assert ended.code == code
    assert ("the gate for speed" in ended.err) == bool(code)


# --- zeros

SPARSE = ("model.onnx", "out.onnx", "--train-data", "data.npz", "--epochs", 1, "--sparsity", 0.8)


@pytest.mark.parametrize("verb", ["train", "distill", "qat", "sparsify"])
def test_a_training_to_zeros_that_no_runtime_gains_by_is_refused(place, speeds, verb, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))  # torch makes one where it is imported first
    more = ("--student", "narrow:0.5") if verb == "distill" else ()
    instead = "use prune-channels for speed, or give --for-size to train for the size alone; nothing was trained"
    says = (f"{verb}: 80 % unstructured zeros: no runtime here gains (onnxruntime × 1.00", " × smaller), entropy-coded ", instead)
    refuses(place, verb, *SPARSE, *more, says=says)


def test_it_goes_on_for_the_size_and_the_verdict_is_in_the_records(place, speeds):
    ended = hasten("train", *SPARSE, "--for-size")
    assert ended.code == 0
    (told,) = re.findall(r"^80 % unstructured zeros: no runtime here gains .*$", ended.out, re.MULTILINE)
    assert re.search(r"; raw [\d.]+ KB as before, packed [\d.]+ KB of [\d.]+ KB \(\d\.\d × smaller\), entropy-coded ", told)
    records = [json.loads(line) for line in (place / "out.onnx.training" / "training.jsonl").read_text().splitlines()]
    assert [r["kind"] for r in records] == ["zeros", "epoch", "training"]
    assert records[0]["values"]["speed"]["onnxruntime"]["estimate"] == 1.0
    arrays = (v.const_value.numpy() for v in Model.load("out.onnx").ir.graph.initializers.values())
    assert [(w == 0).mean() for w in arrays if w.ndim == 2] == pytest.approx([0.8, 0.8], abs=1e-3)


def test_a_training_that_goes_on_takes_the_verdict_from_its_records(place, speeds, monkeypatch):
    assert hasten("train", *SPARSE, "--for-size").code == 0
    monkeypatch.setattr(judge, "time_once", fails(AssertionError("it was timed again")))
    assert hasten("train", *SPARSE, "--for-size").code == 0
    refuses(place, "train", *SPARSE, says="no runtime here gains")


def test_zeros_that_a_runtime_gains_by_are_trained(place, speeds):
    speeds["pruned"] = itertools.repeat(5e-4)
    ended = hasten("train", *SPARSE)
    assert ended.code == 0
    assert "80 % unstructured zeros: faster in onnxruntime" in ended.out


def test_zeros_for_the_size_want_zeros(place):
    says = "train: --for-size came, and no zeros to train to; give --sparsity too, or leave it out"
    refuses(place, "train", *SPARSE[:-2], "--for-size", says=says)


def test_pruning_at_once_says_what_it_brings(place, speeds, monkeypatch):
    ended = hasten("prune-weights", "model.onnx", "out.onnx", "--pattern", "2:4")
    assert ended.code == 0
    assert "50 % 2:4 zeros: no runtime here gains (onnxruntime × 1.00" in ended.out
    monkeypatch.setattr(judge, "time_once", fails(AssertionError("it was timed")))
    assert hasten("prune-weights", "model.onnx", "out.onnx", "--pattern", "2:4", "-q").code == 0
