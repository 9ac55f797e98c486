"""onnxruntime on the CPU: the baseline's runtime, and the widest in operators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hasten.errors import Unsupported
from hasten.model import EXTERNAL_ABOVE, Model, Skip
from hasten.runtimes import Feeds, Outputs, Target


class OnnxRuntime:
    """onnxruntime with its default graph optimisation; `compile` raises Unsupported with onnxruntime's own reason."""

    name = "onnxruntime"
    hints = ("float32",)

    def unsupported(self, model: Model, target: Target) -> tuple[Skip, ...]:
        if target.precision != "float32":
            return (Skip("", f"onnxruntime's CPU kernels have no {target.precision} hint: convert the model instead"),)
        return ()

    def compile(self, model: Model | Path, target: Target) -> OnnxRuntimeSession:
        if isinstance(model, Model) and model.weight_bytes > EXTERNAL_ABOVE:
            raise Unsupported("onnxruntime: weights above 1.5 GB can't be passed in memory; save the model and compile its path")
        source = model.to_bytes() if isinstance(model, Model) else str(model)
        return OnnxRuntimeSession(source, target)


class OnnxRuntimeSession:
    """One InferenceSession with `target.threads` threads within an operator."""

    batch: int | None = None
    """Any batch that the model itself takes."""

    def __init__(self, source: bytes | str, target: Target) -> None:
        import onnxruntime as ort

        ort.set_default_logger_severity(3)
        options = ort.SessionOptions()
        options.intra_op_num_threads = target.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session: Any = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as e:
            raise Unsupported(f"onnxruntime can't load the model: {one_line(e)}") from e
        self._names = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Feeds) -> Outputs:
        return dict(zip(self._names, self._session.run(self._names, feeds), strict=True))


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error's text on one line, cut to `limit` characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


RUNTIME = OnnxRuntime()
