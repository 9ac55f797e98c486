"""tools/make_results.py: the table of results in the two READMEs is what the records say, the lost rows too."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "make_results.py"
spec = importlib.util.spec_from_file_location("make_results", TOOL)
results = importlib.util.module_from_spec(spec)
spec.loader.exec_module(results)


def report(model="minilm", chosen="graph · onnxruntime · 2T", peer=0.5, kept=True, judged="accuracy"):
    """A line as benchmarks/peers.py writes it, what the table does not read left out."""
    return {
        "model": model,
        "date": "2026-11-24",
        "threads": 2,
        "rounds": 7,
        "chosen": chosen,
        "judged_by": judged,
        "rows": {"hasten's choice": {"ms": 1.0, "value": 0.75, "keeps_budget": kept}, "ORT fp32": {"ms": 2.0, "value": 0.76}},
        "fastest_peer": "NNCF int8",
        "hasten_to_fastest_peer": peer,
        "hasten_to_ort_fp32": 0.25,
    }


def test_the_last_line_of_each_model_counts_in_the_order_of_the_benchmarks():
    lines = [report("new"), report("minilm", peer=0.9), report("mnist_mlp"), report("minilm", peer=0.8)]
    found = results.newest("\n".join(json.dumps(line) for line in lines) + "\n")
    assert [(r["model"], r["hasten_to_fastest_peer"]) for r in found] == [("mnist_mlp", 0.5), ("minilm", 0.8), ("new", 0.5)]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (report(), "faster than all"),
        (report(peer=0.999), "faster than all"),
        (report(peer=1.0), "as fast as the fastest"),
        (report(peer=1.001), "**hasten lost**"),
        (report(kept=False), "**the budget was broken**"),
        (report(chosen="original · onnxruntime · 2T", peer=1.2), "**the original was returned**"),
        (report(chosen="original · onnxruntime · 1T"), "faster than all"),
        (report(chosen="original · openvino · 2T"), "faster than all"),
    ],
)
def test_a_row_says_how_it_ended(given, says):
    row = results.table([given], results.WORDS["README.md"]).splitlines()[2]
    assert row.endswith(f"| {says} |")
    assert f"| 0.250 | {given['hasten_to_fastest_peer']:.3f} (NNCF int8) | 0.7600 → 0.7500 |" in row


def test_models_without_labels_are_named():
    made = results.table([report("mnist_mlp"), report(judged="agreement with the float model")], results.WORDS["README.md"])
    assert "For minilm the last column but one is the cosine with the original's output." in made


def test_only_what_stands_between_the_markers_changes():
    page = f"a\n{results.BEGIN}\nold\n{results.END}\nb"
    assert results.with_table(page, "new\n") == f"a\n{results.BEGIN}\nnew\n{results.END}\nb"
    assert results.with_table(page, "") == f"a\n{results.BEGIN}\n{results.END}\nb"
    with pytest.raises(ValueError, match="expected the markers"):
        results.with_table("a page without", "new")


def test_the_tables_in_both_readmes_are_current():
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}run `python tools/make_results.py`"
