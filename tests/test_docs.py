"""The documentation: every command line that it shows runs, what stands under a command is what it prints, and nothing is missing or stale.

Commands run in this process, on the digits and a few made pictures under the names that the docs use, each in a folder of its own. Times are
planned and not measured (int8 is twice as fast), so that what a search finds does not depend on the machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import typer
from PIL import Image

import hasten
from hasten import cli, packed, plan, runtimes
from hasten.doors.onnx import from_proto
from hasten.measure import judge
from hasten.measure.judge import Timing
from hasten.measure.worker import run_batched
from hasten.search import candidates, details, extras, finals
from tests.conftest import MODELS, proto_of
from tests.search.quick import few_candidates, quicken

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("make_docs", ROOT / "tools" / "make_docs.py")
make_docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_docs)

NOT_RUN = {
    "make demo": "it makes a virtual environment of its own; tests/test_cli.py and this file run what it runs",
    "make test": "this is it",
    "make docs": "a test below builds them",
    "make setup-core": "it installs",
    "make bench": "half an hour",
    "make study": "an hour",
    "python examples/handwritten_digits/study.py out/study": "some minutes; tests/test_examples.py runs it with few epochs",
    "pip install 'hasten[all]'": "it installs",
    "pip install '.[all]'": "it installs",
}
"""What can't be run in a test, and why."""

SOURCES = {
    path.relative_to(ROOT).as_posix(): make_docs.filled(path.read_text())
    for path in [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
} | {f"docs/{place}": text for place, text in make_docs.pages().items()}


# --- what the docs show


@dataclasses.dataclass(frozen=True)
class Shown:
    """A command line that a page shows, and the lines under it, where it shows what comes out."""

    page: str
    line: str
    output: tuple[str, ...] = ()


def blocks(text: str):
    """(language, lines) of each code block, fenced or indented."""
    lines, i = text.splitlines(), 0
    while i < len(lines):
        fence = re.match(r"```(\w*)", lines[i])
        start = i
        if fence:
            i = lines.index("```", i + 1)
            yield fence[1], lines[start + 1 : i]
        elif lines[i].startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            yield "", [line[4:] for line in lines[start:i]]
            continue
        i += 1


COMMAND = re.compile(r"\s*(?:\$ |- run: )?((?:hasten|make|python|pip) \S.*)")


def commands(page: str, text: str):
    """Every command line of a page: in code blocks, and in the text as `hasten VERB ARGUMENT …`."""
    for language, lines in blocks(text):
        if language == "python":
            continue
        found: list[tuple[str, list[str]]] = []
        for line in lines:
            command = COMMAND.fullmatch(line)
            if command and (language != "console" or line.startswith("$ ")):
                found.append((command[1], []))
            elif language == "console" and found and line.strip():
                found[-1][1].append(line)
        yield from (Shown(page, line, tuple(output)) for line, output in found)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for line in re.findall(r"`(hasten [^`\s]+ [^`\n]+)`", prose):
        yield Shown(page, line)


def plain(line: str) -> str:
    """The command without its comment."""
    return re.sub(r"\s\s+#.*", "", line).strip()


ALL = [shown for page, text in SOURCES.items() for shown in commands(page, text)]
UNIQUE = {(plain(s.line), s.output): s for s in ALL if plain(s.line) not in NOT_RUN}
RUN = [s for (line, output), s in UNIQUE.items() if output or not any(line == other and o for other, o in UNIQUE)]


# --- what the commands find in their folder


def net(size: int | str = 224) -> onnx.ModelProto:
    """Pictures (N, 3, size, size) to 3 scores: which channel is the brightest."""
    weights = {"w": np.eye(3)[:, :, None, None] * np.ones((3, 3, 3, 3)) / 9}
    return proto_of(
        f"""net (float[N, 3, {size}, {size}] image) => (float[N, 3] scores) {{
            a = Conv <kernel_shape = [3, 3], strides = [8, 8]> (image, w)
            b = GlobalAveragePool (a)
            scores = Flatten (b)
        }}""",
        weights,
    )


def small_net() -> onnx.ModelProto:
    """Digits (N, 1, 28, 28) to 10 scores, untrained: a student."""
    text = "small (float[N, 1, 28, 28] image) => (float[N, 10] scores) { a = Flatten (image) scores = MatMul (a, w) }"
    return proto_of(text, {"w": np.random.default_rng(0).standard_normal((784, 10)) / 28})


def normed_net() -> onnx.ModelProto:
    """The same from three convolutions, with batch norm behind the first two."""
    ones = {f"{name}{i}": np.full(8, value) for i in (1, 2) for name, value in (("g", 1.0), ("c", 0.1), ("m", 0.2), ("v", 1.5))}
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((8, 3, 3, 3)), "w2": rng.standard_normal((8, 8, 3, 3)), "w3": rng.standard_normal((3, 8, 1, 1))}
    return proto_of(
        """net (float[N, 3, 224, 224] image) => (float[N, 3] scores) {
            a = Conv <strides = [8, 8]> (image, w1)
            b = BatchNormalization (a, g1, c1, m1, v1)
            d = Relu (b)
            e = Conv <strides = [2, 2]> (d, w2)
            f = BatchNormalization (e, g2, c2, m2, v2)
            h = Relu (f)
            i = Conv (h, w3)
            j = GlobalAveragePool (i)
            scores = Flatten (j)
        }""",
        {**weights, **ones},
    )


MODULE = """
import torch
from torch import nn

def make():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, stride=8, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight[:] = torch.eye(3)[:, :, None, None].expand(3, 3, 3, 3) / 9
    return net.eval()
"""

KERAS = """
import keras, numpy as np
net = keras.Sequential([keras.Input((224, 224, 3)), keras.layers.Conv2D(3, 3, strides=8, use_bias=False), keras.layers.GlobalAveragePooling2D()])
net.layers[0].set_weights([np.eye(3)[None, None] * np.ones((3, 3, 1, 1)) / 9])
net.save("model.keras")
"""


def idx(array: np.ndarray) -> bytes:
    """An idx file of bytes."""
    return struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def pictures(place: Path) -> None:
    """images.zip and labels.csv: 90 pictures, 30 each of red, green and blue."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(place / "images.zip", "w") as archive:
        for i in range(90):
            pixels = np.kron(rng.integers(0, 60, (14, 14, 3), np.uint8), np.ones((16, 16, 1), np.uint8))
            pixels[..., i % 3] += 150
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, "PNG", compress_level=1)
            archive.writestr(f"{i}.png", png.getvalue())
    (place / "labels.csv").write_text("file,class_index\n" + "".join(f"{i}.png,{i % 3}\n" for i in range(90)))


def python_blocks(page: str, word: str) -> str:
    """The page's Python blocks that hold the word."""
    return "\n".join("\n".join(lines) for language, lines in blocks(SOURCES[page]) if language == "python" and word in "\n".join(lines))


@pytest.fixture(scope="module")
def cupboard(tmp_path_factory):
    """Everything that a command of the docs may want, by name; what a command wants under a name of its own is in `WANTED`."""
    place = tmp_path_factory.mktemp("cupboard")
    digits = dict(np.load(MODELS / "digits.npz"))
    cnn = (MODELS / "digits_cnn.onnx").read_bytes()
    for name in ("lenet", "a", "digits_cnn", "released", "digits_net"):
        (place / f"{name}.onnx").write_bytes(cnn)
    folded = plan.row("fold_batchnorm")
    for name in ("b", "candidate"):
        folded.apply(from_proto(onnx.load_from_string(cnn)), folded.settings(), None).save(place / f"{name}.onnx")
    for name in ("digits", "judge"):
        np.savez(place / f"{name}.npz", **digits)
    packed.save(from_proto(onnx.load_from_string(cnn)), place / "small.packed")
    for name in ("clustered", "pruned", "sparse", "shared", "smaller"):
        (place / f"{name}.onnx").write_bytes(cnn)
    hasten.apply("quantize_static", place / "digits_cnn.onnx", hasten.Task(digits["x_train"])).save(place / "int8.onnx")
    np.save(place / "samples.npy", digits["x_test"])
    (place / "mnist").mkdir()
    for split, name in (("train", "train"), ("test", "t10k")):
        (place / "mnist" / f"{name}-images-idx3-ubyte").write_bytes(idx(digits[f"x_{split}"]))
        (place / "mnist" / f"{name}-labels-idx1-ubyte").write_bytes(idx(digits[f"y_{split}"]))
    pictures(place)
    onnx.save(net(), place / "model.onnx")
    onnx.save(net(), place / "large.onnx")
    onnx.save(small_net(), place / "small.onnx")
    tokens = proto_of("m (int64[N, seq] ids) => (float[N, seq, 4] y) { y = Gather (table, ids) }", {"table": np.ones((10, 4))})
    onnx.save(tokens, place / "tokens.onnx")
    onnx.save(normed_net(), place / "normed.onnx")
    (place / "plan.json").write_text(plan.Plan((plan.PlannedStep("quantize_static", plan.make_settings("quantize_static", {})),)).to_json())
    for name in ("mymodel.py", "net.py"):
        (place / name).write_text(MODULE)
    (place / "load.py").write_text(python_blocks("docs/data.md", "def samples"))
    (place / "score.py").write_text(python_blocks("docs/data.md", "def within_one"))
    export = "import torch, mymodel\ntorch.export.save(torch.export.export(mymodel.make(), (torch.zeros(2, 3, 224, 224),)), 'model.pt2')"
    environment = os.environ | {"KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, "-c", KERAS + export], cwd=place, env=environment, check=True, capture_output=True)
    shutil.copy(place / "model.keras", place / "a.keras")
    with planned_times(), contextlib.chdir(place):
        assert run("hasten optimize lenet.onnx --data mnist/").code == 0
        assert run("hasten optimize model.onnx --data images.zip --labels labels.csv").code in (0, 3)
        for name in ("out", "digits_cnn.hasten"):
            shutil.copytree("lenet.hasten", name)
        if run("hasten optimize digits_cnn.onnx --data digits.npz -o digits_cnn.hasten --force").code:
            pytest.fail("the digits' CNN must be found to be better as int8")
    return place


WANTED = {
    "model.onnx": (
        ("mnist/", "digits_net.onnx"),
        ("--shape seq=", "tokens.onnx"),
        ("hasten binarize", "normed.onnx"),
        ("hasten sparsify", "normed.onnx"),
        ("hasten prune-channels", "normed.onnx"),
        ("hasten tune-clusters", "normed.onnx"),
    )
}
"""A name that stands for several things: where the command holds the text, that file is under the name."""

MADE = {
    "hasten optimize": (r"(?:-o|--out) (\S+)", r"optimize (\w+)\.\S+"),
    "hasten run": (r"-o (\S+)",),
    "hasten convert": (r"convert \S+ (\S+)",),
}
"""What a command makes must not be there before."""


@pytest.fixture
def folder(cupboard, tmp_path, monkeypatch):
    """An empty working folder, with a function that fills it for a command."""
    monkeypatch.chdir(tmp_path)

    def fill(line: str) -> None:
        made = {n for start, patterns in MADE.items() if line.startswith(start) for p in patterns for n in re.findall(p, line)}
        made = {name if "." in name else f"{name}.hasten" for name in made} | made
        for source in cupboard.iterdir():
            if source.name not in made or "--resume" in line:
                (shutil.copytree if source.is_dir() else os.symlink)(source, tmp_path / source.name)
        for name, choices in WANTED.items():
            for text, other in choices:
                if text in line:
                    (tmp_path / name).unlink()
                    os.symlink(cupboard / other, tmp_path / name)

    return fill


# --- running


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


class Here:
    """A worker's `run` in this process: nothing is timed here, so nothing has to be kept apart."""

    def __init__(self, subject):
        self._session = runtimes.get(subject.runtime).compile(subject.path, subject.target)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def run(self, feeds, batch):
        return run_batched(self._session, feeds, self._session.batch or batch)


@contextlib.contextmanager
def planned_times():
    """Searches of few candidates, without time per layer, single calls and energy; what is int8 takes half of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROUNDS", "ROUND_SECONDS", "CALLS_SECONDS", "PAIRS", "time_once"):
            patch.setattr(judge, name, getattr(judge, name))
        patch.setattr(finals, "MORE_PAIRS", finals.MORE_PAIRS)
        patch.setattr(candidates, "RECIPES", candidates.RECIPES)
        quicken()
        few_candidates(patch.setattr)

        def time_once(subject, feeds, percentile=50.0):
            seconds = 5e-4 if b"DequantizeLinear" in subject.path.read_bytes() else 1e-3
            return Timing(seconds, dict.fromkeys(("50", "95", "99", f"{percentile:g}"), seconds), 0.1, 1 << 20)

        patch.setattr(judge, "time_once", time_once)
        patch.setattr(judge, "Worker", Here)
        patch.setattr(details, "_layers", lambda run, sides: None)
        patch.setattr(details, "_latency", lambda run, sides: None)
        patch.setattr(extras, "_energy", lambda *arguments: {"failed": "not measured in this test"})
        yield


def run(line: str) -> Ended:
    """One command line. `hasten` runs in this process; a search tries one runtime where the line names none."""
    line = line.replace("…", "--data images.zip --labels labels.csv")
    program, *arguments = shlex.split(line, comments=True)
    if program == "python":
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
        return Ended(done.returncode, done.stdout, done.stderr)
    assert program == "hasten", f"{line}: it is not known how to run this; add it to NOT_RUN with the reason if it can't be"
    if arguments[0] == "optimize" and "--runtimes" not in arguments:
        arguments += ["--runtimes", "onnxruntime"]
    out, err, verbs = io.StringIO(), io.StringIO(), list(cli.app.registered_commands)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main(arguments)
    finally:
        cli.app.registered_commands[:] = verbs
    return Ended(ended.value.code or 0, out.getvalue(), err.getvalue())


MASKS = (
    (r"on [^,\n]*\(family [^)]*\)", "on CPU"),
    (r"\b(original|graph|float16|int8 [a-z ]+) · (onnxruntime|openvino)( bf16)? · \d+T", "CANDIDATE"),
    (r"\b(onnxruntime|openvino), \d+ threads", "RUNTIME"),
    (r"than the original (in onnxruntime( on \d+ threads)?|on one thread)", "than the original"),
    (r"digest [0-9a-f]{8,}", "digest D"),
    (r"[-+−]?\d[\d.,]*(e-?\d+)?( ?(ns|µs|ms|s|B|KB|MB|GB|k|M|G))?\b", "N"),
    (r"\s+", " "),
)
"""What may differ between the docs' machine and this one: the CPU, the winner, its runtime and the fastest baseline, numbers with their units, and
white space."""


def masked(text: str) -> str:
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return text.strip()


CODES = {"optimize": (0, 3)}
"""What may come out beside 0: that nothing better was found is a result too."""


@pytest.mark.parametrize("shown", RUN, ids=[f"{s.page}: {plain(s.line)}" for s in RUN])
def test_a_command_line_of_the_docs_runs_and_prints_what_they_say(shown, folder):
    line = plain(shown.line)
    folder(line)
    with planned_times():
        ended = run(line)
    assert ended.code in CODES.get(line.split()[1], (0,)), f"exit code {ended.code}\n{ended.err}{ended.out}"
    printed = [masked(text) for text in ended.out.splitlines()]
    for text in shown.output:
        if text.strip() != "...":
            assert masked(text) in printed, f"{shown.page} shows {text!r}, and it is not in:\n{ended.out}"


def test_what_is_not_run_is_still_shown_somewhere_and_its_targets_exist():
    lines = {plain(s.line) for s in ALL}
    assert not set(NOT_RUN) - lines - {"make docs", "make bench"}
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make ([\w-]+)", "\n".join(SOURCES.values())):
        if target in {line.removeprefix("make ") for line in NOT_RUN}:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_of_the_readme_runs(folder, monkeypatch):
    folder("")
    shutil.rmtree("lenet.hasten")
    code = python_blocks("README.md", "hasten.optimize")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    names = {"x": np.load("digits.npz")["x_test"][:, None].astype(np.float32) / 255}
    with planned_times():
        exec(compile(code, "README.md", "exec"), names)
    assert names["y"].shape == (600, 10)
    assert "\n".join(lines for _, lines in [("", code)]) in python_blocks("README.md", "hasten.optimize")


def test_every_option_that_the_docs_name_exists():
    known = {"--help", "--version"}
    for verb in [function for _, _, function in cli.VERBS] + [make_docs.technique_command(row) for row in plan.TECHNIQUES]:
        app = typer.Typer(add_completion=False)
        app.command()(verb)
        known |= {o for p in typer.main.get_command(app).params for o in (*p.opts, *p.secondary_opts)}
    known |= {"--measure", "--train"}  # of benchmarks/run.py and benchmarks/peers.py
    known |= {"--build", "--install", "--prefix"}  # of cmake
    for page, text in SOURCES.items():
        named = set(re.findall(r"(?<![\w-])--[a-z][\w-]+", re.sub(r"<!--.*?-->", "", text)))
        assert named <= known, f"{page}: {named - known}"


# --- what is generated


def test_the_docs_list_every_public_name_and_no_other():
    page = make_docs.pages()["reference/python.md"]
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == hasten.__all__
    for name in hasten.__all__:
        if name != "__version__":
            assert (getattr(hasten, name).__doc__ or "").splitlines()[0] in page


def test_the_docs_list_every_verb_and_every_technique():
    made = make_docs.pages()
    verbs = [verb for _, verb, _ in cli.VERBS] + [row.verb for row in plan.TECHNIQUES]
    assert re.findall(r"^## (\S+)$", made["reference/cli.md"], re.MULTILINE) == verbs
    for row in plan.TECHNIQUES:
        page = made[f"techniques/{row.verb}.md"]
        for part in ("## When\n\n", "## What it costs\n\n", "## Example\n\n"):
            assert re.search(re.escape(part) + r"\S", page), (row.verb, part)
        assert f"({row.verb}.md)" in made["techniques/index.md"]


def test_a_technique_without_a_cost_would_be_seen():
    with pytest.raises(ValueError, match="lines `When:` and `Cost:`"):
        make_docs._three("prune: remove what is small.\n\nWhen: always.")


def test_the_pages_build_strictly_and_ask_no_other_host(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    built = list((tmp_path / "site").rglob("*.html"))
    assert len(built) >= len(SOURCES) - 2
    for page in built:
        html = page.read_text()
        assert not re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^>]*>", html), page.name
        assert not re.findall(r"<link\b(?![^>]*rel=\"?canonical)[^>]*href=\"?(?:https?:)?//[^>]*>", html), page.name
        assert "@@" not in html, page.name
