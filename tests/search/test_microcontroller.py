"""--for microcontroller: the choice by flash, RAM and the accuracy of the C code; what does not fit is refused with the reason."""

import shutil
import subprocess

import pytest

import hasten
from hasten.errors import BadInput
from hasten.folder import C_FILES
from hasten.measure.verify import verify
from hasten.model import Model
from hasten.search import run as running
from hasten.search.budget import Budget
from hasten.task import Task
from tests.search.quick import quicken


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    quicken(monkeypatch.setattr)


def search(model, data, out, **more):
    return hasten.optimize(model, Task(data), out=out, purpose="microcontroller", **{"max_drop": 0.02, **more})


def test_the_code_is_chosen_judged_and_written(digits_cnn, digits, tmp_path):
    """However slow it is on this machine: times here decide nothing."""
    lines = []
    result = search(digits_cnn, digits, tmp_path / "out", max_flash=256 << 10, max_ram=32 << 10, say=lines.append)
    best = result.best
    assert result.better and best.recipe == "int8 static"
    assert 150_000 < best.footprint["flash"] < 256 << 10 and best.footprint["ram"] < 32 << 10
    assert best.as_c["samples"] == 600 and best.as_c["value"] > 0.97
    assert any(line.startswith("test, as C: int8 static") for line in lines)
    assert result.warnings[0].startswith("time was not measured on the target")
    assert set(C_FILES) <= set(result.manifest["digests"])
    assert f"#define MODEL_FLASH {best.footprint['flash']}\n" in (tmp_path / "out" / "c" / "model.h").read_text()
    for form in ("html", "markdown", "card"):
        text = result.report(form)
        assert "time not measured on the target" in text and f"{best.footprint['flash']} bytes of flash" in text
    if compiler := shutil.which("cc"):
        made = [tmp_path / "out" / name for name in C_FILES if name.endswith(".c")]
        subprocess.run([compiler, "-std=c99", "-O1", *made, "-o", tmp_path / "program"], check=True)
        subprocess.run([tmp_path / "program"], check=True, capture_output=True)
    result.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "c" / "model.c").is_file()
    assert all(claim.state in ("holds", "not checked") for claim in verify(tmp_path / "out", tmp_path, skip_speed=True))
    (tmp_path / "out" / "c" / "mine.c").write_text("")
    search(digits_cnn, digits, tmp_path / "out", max_ram=100, force=True)
    assert [p.name for p in (tmp_path / "out" / "c").iterdir()] == ["mine.c"]


@pytest.mark.parametrize(
    "limit,says", [({"max_flash": 1000}, "bytes of flash, 1000 are allowed"), ({"max_ram": 1000}, "bytes of RAM, 1000")]
)
def test_what_does_not_fit_is_refused_with_the_reason(digits_cnn, digits, tmp_path, limit, says):
    result = search(digits_cnn, digits, tmp_path / "out", **limit)
    assert not result.better and "as C it needs " in result.reason and says in result.reason
    assert not (tmp_path / "out" / "c").exists()


def test_what_has_no_c_code_is_refused_with_the_reason(digits_cnn, digits, tmp_path):
    result = search(digits_cnn, digits, tmp_path / "out", recipes=("graph",))
    assert "C code is made of a model with 8-bit weights and activations" in result.reason


def test_code_that_breaks_the_budget_is_not_returned(digits_cnn, digits, tmp_path, monkeypatch):
    real = running.Run.judged_as_c

    def worse(self, candidate):
        judged = real(self, candidate)
        object.__setattr__(judged.difference, "estimate", -0.5)
        return judged

    monkeypatch.setattr(running.Run, "judged_as_c", worse)
    result = search(digits_cnn, digits, tmp_path / "out")
    assert not result.better
    assert (
        "breaks the budget on test as C: a drop of 0.5000, 0.02 is allowed"
        in next(c for c in result.candidates if c.recipe == "int8 static").reason
    )


def test_limits_alone_ask_for_code_too():
    assert Budget(max_ram=1 << 16).as_c and not Budget(max_ram=1 << 16).by_bytes and not Budget().as_c
    with pytest.raises(BadInput, match="max_flash is 0, expected more than 0"):
        Budget(max_flash=0)


def test_the_original_is_still_what_it_was(digits_cnn, digits, tmp_path):
    result = search(digits_cnn, digits, tmp_path / "out", max_ram=100)
    assert result.model().digest == Model.load(tmp_path / "out" / "original.onnx").digest
