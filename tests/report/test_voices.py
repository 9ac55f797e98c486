"""What a long job tells: plain lines, the live table, and silence."""

import io

import pytest
from rich.console import Console

from hasten.report.lines import EVERY, Lines
from hasten.report.live import SHOWN, Live
from hasten.voice import Told, Voice, speaking, voice


def test_the_voice_is_the_one_set_around_the_job_and_silent_without():
    heard: list[str] = []
    voice().say("nobody hears this")
    with speaking(Told(heard.append)):
        voice().say("one")
        with speaking(Voice()):
            voice().say("not this")
        voice().detail("nor this")
        voice().say("two")
    voice().say("nor that")
    assert heard == ["one", "two"]


def test_lines_say_what_is_known_of_a_candidate_and_details_only_when_asked(capsys):
    lines = Lines()
    lines.candidate("int8 static · openvino · 2T", 1.25e-4, 2.5, ("accuracy", 0.98765), "final")
    lines.candidate("float16 · onnxruntime · 2T", note="its file is too large")
    lines.detail("more")
    Lines(verbose=True).detail("much more")
    out = capsys.readouterr().out.splitlines()
    assert out[0].split("  ")[-1].strip() == "125 µs (× 2.50) accuracy 0.9877 final"
    assert out[1].endswith("its file is too large")
    assert out[2:] == ["much more"]


def test_lines_say_where_a_stage_stands_after_silence_alone(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hasten.report.lines.time.monotonic", lambda: now[0])
    lines = Lines()
    for done in range(4):
        lines.step("calibration", done, 4)
        now[0] += EVERY / 2 + 0.1
    lines.step("calibration", 4, 4)
    assert capsys.readouterr().out.splitlines() == ["calibration: 2 of 4, about 10.2 s left"]


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), force_terminal=True, width=120, height=50, highlight=False)


def test_the_live_table_merges_what_is_known_fastest_first_and_counts_the_rest(screen):
    live = Live(console=screen)
    for number in range(SHOWN + 3):
        live.candidate(f"candidate {number}", 1e-3, 1.0 + number / 10)
    live.candidate("candidate 14", judged=("f1", 0.75))
    live.step("first timing", 3, 20)
    text = io.StringIO()
    Console(file=text, width=120).print(live._picture())
    rows = text.getvalue().splitlines()
    assert rows[0].split() == ["candidate", "time", "speed-up", "f1"]
    assert rows[1].split() == ["candidate", "14", "1", "ms", "×", "2.40", "0.7500"]
    assert "… and 3 more" in text.getvalue()
    assert "first timing" in rows[-1]
    assert "3/20" in rows[-1]


def test_a_finished_stage_leaves_the_screen_and_sentences_stay(screen):
    with Live(console=screen) as live:
        live.step("calibration", 0, 2)
        live.say("a sentence")
        live.detail("not asked for")
        live.step("calibration", 2, 2)
        assert live._progress.tasks == []
    assert "a sentence" in screen.file.getvalue()
    assert "not asked for" not in screen.file.getvalue()
