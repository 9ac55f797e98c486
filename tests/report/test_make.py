"""Where a report is written, and what is refused."""

import subprocess
import sys

import pytest

from hasten.errors import BadInput, ClaimFailed
from hasten.folder import Folder
from hasten.report.make import make, write
from hasten.search.result import Result
from tests.report.made import result


def test_the_page_goes_into_the_folder_and_its_digests_still_hold(tmp_path):
    result(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert write(tmp_path) == tmp_path / "report.html"
    assert write(tmp_path).read_text().startswith("<!doctype html>")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "report.html"} == before
    Folder(tmp_path).check()
    Folder(tmp_path).clear()
    assert list(tmp_path.iterdir()) == []


def test_the_page_is_the_same_every_time(tmp_path):
    found = result(tmp_path)
    assert make(found) == make(Result.load(tmp_path)) == found.report()


def test_other_forms_go_where_they_are_sent(tmp_path):
    found = result(tmp_path / "out")
    assert write(tmp_path / "out", "markdown", tmp_path / "a.md").read_text() == found.report("markdown")
    assert write(tmp_path / "out", "card", tmp_path / "b.md").read_text() == found.report("card")


@pytest.mark.parametrize(
    "form, out, says",
    [
        ("pdf", "x.pdf", "there is no report of form 'pdf'; use one of html, markdown, card"),
        ("html", "out/manifest.json", "manifest.json in .* is the run's own file"),
        ("markdown", "out/report.html", "report.html in .* is the run's own file"),
        ("card", "out/plan.json", "plan.json in .* is the run's own file"),
        ("html", "nowhere/report.html", "can't be written"),
        ("html", "out", "is a folder; -o expects a file"),
    ],
)
def test_what_is_refused_changes_nothing(tmp_path, form, out, says):
    result(tmp_path / "out")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match=says):
        write(tmp_path / "out", form, tmp_path / out)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_changed_folder_has_no_report(tmp_path):
    result(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"another")
    with pytest.raises(ClaimFailed, match=r"model.onnx has digest .* it was changed"):
        write(tmp_path)


def test_an_unfinished_folder_has_no_report(tmp_path):
    result(tmp_path, changes={"state": "unfinished"})
    with pytest.raises(BadInput, match="was not finished"):
        write(tmp_path)


def test_the_verb(tmp_path):
    result(tmp_path)
    command = [sys.executable, "-m", "hasten", "report", str(tmp_path)]
    done = subprocess.run([*command, "--format", "markdown"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("### hasten: 2.70 times faster")
    assert not (tmp_path / "report.html").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{tmp_path / 'report.html'}: open it in a browser"
    bad = subprocess.run([*command, "--format", "pdf"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stderr.strip()) == (2, "hasten: there is no report of form 'pdf'; use one of html, markdown, card")
