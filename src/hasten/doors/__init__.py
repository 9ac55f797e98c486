"""The doors: how a trained model comes in."""
from hasten.doors.onnx import load_onnx
