"""Markdown for a pull request, and the model card."""

import re

from hasten.report.card import card
from hasten.report.markdown import markdown, plain
from tests.report.made import EVIL, result


def test_markdown_is_short_and_says_it_all(tmp_path):
    text = markdown(result(tmp_path))
    assert len(text.splitlines()) < 30
    assert text.startswith("### hasten: 2.70 times faster, 3.6 times smaller, accuracy kept\n")
    assert "| **int8 static · openvino · 2T** | 456 µs | 2.70 × [2.51, 2.89] | 0.9815 | 346 KB | chosen |" in text
    assert "| int8 dynamic · onnxruntime · 2T | 2.44 ms | – | – | 400 KB | slower than the baseline: × 0.50 |" in text
    assert "the test data proves it" in text


def test_markdown_of_a_run_that_found_nothing_says_why(tmp_path):
    text = markdown(result(tmp_path, "kept"))
    assert "Nothing better than the original within the budget." in text
    assert "faster" not in text.splitlines()[0]


def test_the_card_has_the_usual_headings_and_leaves_the_use_open(tmp_path):
    found = result(tmp_path)
    text = card(found)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    assert headings == [
        "Model card", "What it is", "How it was made", "Intended use", "Measured performance", "Data", "Limits", "Ethical considerations",
        "How to verify",
    ]  # fmt: skip
    use = text.partition("## Intended use")[2].partition("##")[0]
    assert "To be filled in" in use
    data = text.partition("## Data")[2].partition("##")[0]
    assert "- test: 400 samples" in data
    assert "d" * 64 in data
    assert found.manifest["digests"]["model.onnx"] in text
    assert "1. quantize static: 5 nodes changed, 21 left alone (samples 256)" in text
    assert "Recall fell in 1 of the classes with at least 10 samples; most in class 3: 0.9800 → 0.9400 on 40 samples." in text
    assert "<" not in text


def test_cards_in_every_state(tmp_path):
    assert "It is the original, unchanged." in card(result(tmp_path / "kept", "kept"))
    assert "None was given: accuracy was not judged." in card(result(tmp_path / "none", "none"))


def test_text_means_nothing_to_markdown():
    assert plain(f"a|b *c* _d_ [e](f)\n{EVIL}") == r"a\|b \*c\* \_d\_ \[e\](f) node&lt;/script>&lt;img src=x onerror=alert(1)>"
    assert plain("# x") == "&#35; x"
