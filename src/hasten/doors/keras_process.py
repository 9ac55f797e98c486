"""The Keras export, in a process of its own: the torch backend, the model called once, torch's exporter on a wrapper module.

Keras' own `export(format="onnx")` takes torch's legacy exporter for a dynamic batch, which fails on MultiHeadAttention and is silently
wrong for recurrent layers over dynamic time. Prints one JSON line: inputs, outputs and notes; or `bad_input` or `unsupported`, the reason.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
import numpy as np
import onnx
import torch

from hasten.doors.torch import BATCHES, TOLERANCE, export, to_onnx
from hasten.errors import HastenError

RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "StackedRNNCells")
FREE = 7
"""What a dynamic axis other than the batch is given while exporting; such axes are then fixed."""


class Wrapper(torch.nn.Module):
    """A Keras model as a plain torch module of positional tensors."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, *tensors: Any) -> Any:
        """The Keras model's prediction."""
        return self.model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)


def batch_norm(self: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:
    """Inference of keras.layers.BatchNormalization as one operator: as written in Keras it arrives as Sub, Mul and Add, which can't be
    recognised, trained or folded."""
    x = torch.movedim(inputs, self.axis, 1)
    gamma = self.gamma.value if self.scale else None
    beta = self.beta.value if self.center else None
    y = torch.nn.functional.batch_norm(x, self.moving_mean.value, self.moving_variance.value, gamma, beta, False, 0.0, self.epsilon)
    return torch.movedim(y, 1, self.axis)


def convert(path: Path, target: Path) -> dict[str, Any]:
    """Read, export, compare, write. Returns what is printed."""
    try:
        model = keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as e:  # noqa: BLE001 - Keras raises many types for a bad file
        text = " ".join(str(e).split())
        if "Lambda" in text or "lambda" in text:
            return {
                "unsupported": "a Lambda layer holds Python code, which a file may not bring; write it as a layer of its own, or export to ONNX"
            }
        return {"bad_input": f"the Keras file can't be read: {text[:300]}"}
    if refusal := _refusal(model):
        return {"unsupported": refusal}
    names = [_clean(t.name, i) for i, t in enumerate(model.inputs)]
    examples = tuple(torch.from_numpy(a) for a in _examples(model, 2))
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    expected = {b: _predict(model, _examples(model, b)) for b in BATCHES}
    notes: list[str] = []
    original = keras.layers.BatchNormalization.call
    keras.layers.BatchNormalization.call = batch_norm
    try:
        wrapper = Wrapper(model)
        wrapper(*examples)
        # Parameters inside the wrapper already; deepcopy of a Keras model is slow and needless: inference mode is asked for in the call.
        proto, outputs = to_onnx(export(wrapper, examples, {}, notes), examples, {})
    except HastenError as e:
        return {"unsupported": str(e)}
    finally:
        keras.layers.BatchNormalization.call = original
    _rename_inputs(proto, names)
    target.write_bytes(proto.SerializeToString())
    if why := _differs(target, model, names, expected):
        return {"unsupported": why}
    notes.append(f"keras {keras.__version__}: exported, compared with Keras' prediction at batch {', '.join(map(str, BATCHES))}")
    if layers:
        notes.append(f"{len(layers)} BatchNormalization layers kept as operators")
    return {"inputs": names, "outputs": outputs, "notes": notes}


def _refusal(model: Any) -> str:
    """Why the model can't be carried, empty if it can."""
    for layer in model._flatten_layers():
        if type(layer).__name__ in RECURRENT:
            return (
                f"layer {layer.name!r} ({type(layer).__name__}) is recurrent: torch's exporter unrolls it over a fixed time; "
                "export it to ONNX with its own LSTM or GRU node (tf2onnx does), and give that"
            )
        if type(layer).__name__ == "Lambda":
            return f"layer {layer.name!r} is a Lambda, which holds Python code; write it as a layer of its own"
    for tensor in model.inputs:
        if any(d is None for d in tensor.shape[1:]):
            free = [i for i, d in enumerate(tensor.shape) if d is None and i]
            return f"input {tensor.name!r} has axes {free} of no fixed size; build the model with keras.Input of a full shape"
    return ""


def _examples(model: Any, batch: int) -> list[Any]:
    """Random inputs: 0..1 floats; whole numbers below the smallest Embedding's number of rows."""
    rng = np.random.default_rng(batch)
    rows = min((layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)), default=2)
    values = []
    for tensor in model.inputs:
        shape = (batch, *(d or FREE for d in tensor.shape[1:]))
        if keras.backend.is_float_dtype(tensor.dtype) and not _feeds_embedding(model, tensor):
            values.append(rng.random(shape).astype(tensor.dtype))
        else:
            values.append(rng.integers(0, rows, shape).astype(tensor.dtype))
    return values


def _feeds_embedding(model: Any, tensor: Any) -> bool:
    """Whether an input goes straight into an Embedding (Keras gives such inputs float32 by default)."""
    return any(
        isinstance(layer, keras.layers.Embedding) and any(tensor is t for t in getattr(layer._inbound_nodes[0], "input_tensors", []))
        for layer in model._flatten_layers()
        if layer._inbound_nodes
    )


def _predict(model: Any, values: list[Any]) -> list[Any]:
    with torch.no_grad():
        result = model([torch.from_numpy(v) for v in values] if len(values) > 1 else torch.from_numpy(values[0]), training=False)
    return [t.detach().cpu().numpy() for t in torch.utils._pytree.tree_leaves(result)]


def _differs(target: Path, model: Any, names: list[str], expected: dict[int, list[Any]]) -> str:
    """Where the written file and Keras' own prediction differ, empty where they agree."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    for batch, wanted in expected.items():
        found = session.run(None, dict(zip(names, _examples(model, batch), strict=True)))
        for number, (a, b) in enumerate(zip(wanted, found, strict=True)):
            scale = float(np.max(np.abs(a), initial=0.0))
            error = float(np.max(np.abs(a.astype(np.float64) - b), initial=0.0)) if a.shape == b.shape else float("inf")
            if not error <= TOLERANCE * max(scale, 1e-6):
                return f"the exported graph is not the Keras model: output {number} at batch {batch} is off by {error:.3g} at scale {scale:.3g}"
    return ""


def _rename_inputs(proto: onnx.ModelProto, names: list[str]) -> None:
    old = {v.name: n for v, n in zip(proto.graph.input, names, strict=True)}
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = old.get(name, name)
    for value in proto.graph.input:
        value.name = old[value.name]
    for name in names:
        for value in list(proto.graph.value_info):
            if value.name == name:
                proto.graph.value_info.remove(value)


def _clean(name: str, number: int) -> str:
    """An input's name without Keras' suffixes."""
    return name.split(":")[0] or f"input_{number}"


def main() -> None:
    """`python -m hasten.doors.keras_process model.keras out.onnx`."""
    answer = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
