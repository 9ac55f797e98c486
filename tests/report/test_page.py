"""The page in a headless Chromium without a network: it renders, its pictures are drawn, nothing is asked for, its numbers are the manifest's."""

import functools
import itertools
import json
import os
import re
from importlib import resources

import pytest

from hasten.report import pictures
from hasten.report.page import libraries, page
from hasten.search.result import Result
from tests.report import made
from tests.report.browser import Browser, executable

MOST_BYTES = 3_000_000


@functools.cache
def browser() -> None:
    """Skip where there is no Chromium, never in CI."""
    if executable() is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium: CI must have one")
        pytest.skip("no Chromium (chromium, chromium-browser, google-chrome) is installed")


def specs(html: str) -> dict:
    """The pictures' specifications by the id of their place."""
    return json.loads(re.search(r'<script type="application/json" id="pictures">(.*?)</script>', html, re.S)[1])


def values(spec) -> list[dict]:
    """All rows of data in a specification."""
    return [row for rows in spec["datasets"].values() for row in rows] if "datasets" in spec else list(_values(spec))


def _values(part):
    if isinstance(part, dict):
        if isinstance(part.get("data"), dict) and "values" in part["data"]:
            yield from part["data"]["values"]
        for each in part.values():
            yield from _values(each)
    elif isinstance(part, list):
        for each in part:
            yield from _values(each)


@pytest.mark.parametrize("verdict", ["proven", "kept", "none"])
@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
def test_the_page_stands_alone(tmp_path, verdict, scheme, width):
    browser()
    html = page(made.result(tmp_path / "out", verdict))
    assert len(html.encode()) <= MOST_BYTES
    assert html.count("window.vegaEmbed") == 1
    file = tmp_path / "report.html"
    file.write_text(html)
    with Browser(scheme, width) as tab:
        tab.open(file)
        assert tab.problems == []
        assert [r for r in tab.requests if not r.startswith(("file:", "data:"))] == []
        drawn = tab.run("[...document.querySelectorAll('.plot')].map(p => [p.id, !!p.querySelector('svg path, svg text')])")
        assert dict(drawn) == dict.fromkeys(specs(html), True)
        assert tab.run("document.documentElement.scrollWidth") == width  # wide things scroll in their own box
        paper = tab.run("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", paper))) > 600) == (scheme == "light")
        levels = tab.run("[...document.querySelectorAll('h1,h2,h3')].map(h => +h.tagName[1])")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(later - before <= 1 for before, later in itertools.pairwise(levels))
        assert tab.run("[...document.querySelectorAll('th')].every(h => h.scope)")
        assert tab.run("[...document.querySelectorAll('.plot')].every(p => p.parentElement.getAttribute('aria-label').length > 20)")


def test_the_browser_would_notice(tmp_path):
    """What the test above asserts can fail: an error on the console, a request, a picture that can't be drawn."""
    browser()
    file = tmp_path / "bad.html"
    file.write_text(
        "<script>setTimeout(() => { document.documentElement.dataset.ready = '1'; null.x }); </script><img src='http://example.org/a.png'>"
    )
    with Browser() as tab:
        tab.open(file)
        tab.run("new Promise(done => setTimeout(done, 300))")
        assert any(r.startswith("http://example.org") for r in tab.requests)
        assert any("Uncaught" in p for p in tab.problems)


def test_a_table_is_sorted_by_its_heads(tmp_path):
    browser()
    file = tmp_path / "report.html"
    file.write_text(page(made.result(tmp_path / "out")))
    names = "[...document.querySelectorAll('table.sortable tbody th')].map(h => h.textContent.trim())"
    with Browser() as tab:
        tab.open(file)
        tab.run("document.querySelectorAll('table.sortable thead button')[1].click()")
        rising = tab.run(names)
        assert rising[0] == "int8 static · openvino · 2T"
        assert rising[-1] == "int8 dynamic · onnxruntime · 2T"
        tab.run("document.querySelectorAll('table.sortable thead button')[1].click()")
        assert tab.run(names) == rising[::-1]
        assert tab.run("document.querySelectorAll('table.sortable thead th')[1].getAttribute('aria-sort')") == "descending"


def test_the_numbers_are_the_manifest_s(tmp_path):
    found = made.result(tmp_path)
    html = page(found)
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html[: html.index('<script type="application/json"')]))
    for said in (
        "2.70 × as fast",
        "456 µs",
        "1.23 ms",
        "[2.51, 2.89]",
        "346 KB",
        "0.9825",
        "0.9800",
        "−0.0025 [−0.0085, +0.0015]",
        "Kept: proven",
    ):
        assert said in text, said
    for said in ("slower than the baseline: × 0.50", "not among the finalists", "Test CPU 9000", "On 7 of 400 test samples (1.8 %)"):
        assert said in text, said
    for said in (
        "4.2 mJ → 2.1 mJ a call of 1, estimated: 2.00 × [1.80, 2.20] less.",
        "estimated",
        "0.137 → 0.051",
        "It held",
        "As robust as the original within 0.05",
        "lowest rank correlation of a sample is 0.700",
        "0.0123 to 0.0145",
    ):
        assert said in text, said
    drawn = specs(html)
    points = {r["candidate"]: r for r in values(drawn["pareto"]) if "candidate" in r}
    for choice in found.candidates:
        if choice.seconds is not None:
            assert points[choice.name]["time"] * 1e-3 == pytest.approx(choice.seconds)
            assert points[choice.name]["bytes"] == choice.size
    details = found.manifest["details"]
    heaviest = sorted((layer["seconds"] for layer in details["layers"]["before"]["layers"]), reverse=True)[: pictures.HEAVIEST]
    assert [r["seconds"] for r in values(drawn["layers-before"])] == heaviest
    curve = [r["time"] * 1e-3 for r in values(drawn["latency"]) if r["side"] == "chosen"][: len(details["latency"]["ranks"])]
    assert curve == pytest.approx(details["latency"]["after"])
    assert {r["class"]: round(r["points"], 6) for r in values(drawn["classes"])} == {"class 3": -4.0, "class 4": 2.0}
    assert [r["value"] for r in values(drawn["robustness-0"]) if r["model"] == "chosen"] == pytest.approx(
        [0.97 - 0.11 * i for i in range(1, 6)]
    )


def test_what_comes_from_records_is_never_markup(tmp_path):
    html = page(made.result(tmp_path))
    assert made.EVIL not in html
    assert "node&lt;/script&gt;&lt;img src=x" in html
    assert "<i>why</i>" not in html
    assert "does the work of &#39;int8 static&#39; &lt;b&gt;" in html


def test_a_run_of_an_older_version_without_details_has_a_page(tmp_path):
    found = made.result(tmp_path)
    del found.manifest["details"]
    assert "Where the time goes" not in page(found)


def test_what_could_not_be_measured_says_why(tmp_path):
    found = made.result(tmp_path)
    for key in ("latency", "robustness", "energy", "explanation"):
        found.manifest["details"][key] = {"failed": "the time limit was reached"}
    html = page(found)
    assert html.count("Not measured: the time limit was reached.") == 4
    assert "Not measured: torch tells no time per layer; onnxruntime, openvino and native do." in html


def test_a_single_candidate_needs_no_picture(tmp_path):
    found = made.result(tmp_path, "kept")
    one = Result(found.folder, found.manifest | {"candidates": found.manifest["candidates"][:1]})
    assert pictures.pareto(one) is None
    assert "What was tried" not in page(one)


def test_the_libraries_are_whole_and_end_no_script():
    script = libraries()
    assert "</script" not in script
    assert "sourceMappingURL" not in script


TEXT, MARKS = ("ink", "muted", "chosen", "original", "proven", "doubt", "broken", "link"), ("front", "lost")


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_contrast_in_both_schemes(scheme):
    """WCAG AA: 4.5 for text, 3 for marks; axe can't see it in SVG."""
    css = (resources.files("hasten.report") / "page.css").read_text()
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", re.findall(r":root \{(.*?)\}", css, re.S)[scheme]))
    for ground in ("paper", "sheet"):
        for name in (*TEXT, *MARKS):
            bright, dark = sorted((luminance(colours[name]), luminance(colours[ground])), reverse=True)
            assert (bright + 0.05) / (dark + 0.05) >= (4.5 if name in TEXT else 3), (name, ground)
