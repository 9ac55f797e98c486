"""single: a technique from Python does what its verb does."""

import subprocess
import sys

import pytest

import hasten
from hasten.errors import BadInput, Refused
from hasten.task import Task


def test_it_does_what_the_verb_does(digits, digits_cnn, tmp_path):
    made = hasten.apply("quantize_static", digits_cnn, Task(digits), method="minmax")
    command = ["quantize-static", str(digits_cnn), str(tmp_path / "a.onnx"), "--data", str(digits), "--method", "minmax", "-q"]
    subprocess.run([sys.executable, "-m", "hasten", *command], check=True, capture_output=True)
    assert made.to_bytes() == (tmp_path / "a.onnx").read_bytes()


def test_a_training_keeps_its_records_and_a_student_is_smaller(digits, digits_cnn, tmp_path):
    task = Task(digits, train=digits)
    made = hasten.apply("distill", digits_cnn, task, place=tmp_path / "kept", student="narrow:0.5", epochs=1, batch=32)
    assert made.weight_bytes < hasten.Model.load(digits_cnn).weight_bytes / 2
    assert (tmp_path / "kept" / "training.jsonl").exists()
    taught = hasten.apply("distill", made, task, teacher=digits_cnn, epochs=1, batch=32)
    assert taught.history[-1].name == "distill"


def test_what_makes_no_sense_is_refused(digits_cnn):
    with pytest.raises(BadInput, match="train has no teacher, and one came; leave it out"):
        hasten.apply("train", digits_cnn, teacher=digits_cnn)
    with pytest.raises(BadInput, match="there is no technique 'shrink'"):
        hasten.apply("shrink", digits_cnn)
    with pytest.raises(Refused, match="train needs data to train on"):
        hasten.apply("train", digits_cnn)
