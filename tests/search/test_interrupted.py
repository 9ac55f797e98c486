"""kill -9 and ctrl-C at random moments, twenty in all: nothing that was finished is lost, and the same command goes on."""

import json
import random
import signal
import subprocess
import sys
import time

import onnxruntime as ort

KILLS = 20


def lines(path):
    text = path.read_bytes() if path.exists() else b""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def test_twenty_interruptions_lose_nothing(digits_cnn, digits, tmp_path):
    chance = random.Random(0)
    command = [sys.executable, "-m", "tests.search.quick", str(digits_cnn), str(digits)]
    kills, finished, number = 0, 0, 0
    while kills < KILLS:
        out = tmp_path / f"run{number}"
        records = out / "records.jsonl"
        before = lines(records)
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        time.sleep(chance.uniform(0.7, 3.0))
        how = chance.choice((signal.SIGKILL, signal.SIGINT))
        process.send_signal(how)
        output, errors = process.communicate(timeout=120)
        after = lines(records)
        assert after[: len(before)] == before, "a finished measurement was lost"
        assert len({r["key"] for r in after}) == len(after), "a finished measurement was made again"
        if (out / "model.onnx").exists():
            ort.InferenceSession(str(out / "model.onnx"))
        if (out / "manifest.json").exists():  # it is written last: a signal may come between it and the model
            assert (out / "model.onnx").exists()
            assert json.loads((out / "manifest.json").read_text())["state"] in ("finished", "unfinished")
        if process.returncode == 0:
            assert "finished" in output, errors
            finished, number = finished + 1, number + 1
        else:
            kills += 1
            if (out / "manifest.json").exists() and json.loads((out / "manifest.json").read_text())["state"] == "finished":
                number += 1  # the signal came between the last write and the end of the process: there is nothing to go on with
    done = subprocess.run([*command, str(tmp_path / f"run{number}")], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "finished" in done.stdout
    assert not list((tmp_path / f"run{number}").glob(".*"))
