"""Writes docs/operators.md: what the torch executor runs, by the node tests that ship inside the onnx package.

    python tools/make_operators.py           # write (about 20 s)
    python tools/make_operators.py --check   # exit code 1 where the page is not current

A test whose inputs the table burns in runs twice: with those inputs computed, and with them as constants.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import numpy_helper

from hasten.doors.onnx import OLDEST_OPSET, from_proto
from hasten.errors import HastenError
from hasten.learn.executor import build
from hasten.learn.operators import OPERATORS, Op
from hasten.learn.values import to_tensor
from hasten.model import OPSET, Model

PAGE = Path(__file__).resolve().parent.parent / "docs" / "operators.md"

REST = (
    (r"uint(16|32|64)$|^bitwise_not_3d$", "torch has no arithmetic on uint16, uint32 and uint64"),
    (r"FLOAT8|FLOAT4|U?INT2|e4m3fn|e5m2|float4e2m1|u?int2$", "floats of 8 and 4 bits and codes of 2 bits are not held"),
    (r"^equal_string|^identity_sequence$|^identity_opt$", "texts, sequences and optionals are not held"),
    (r"^batchnorm_.*_training_mode$|^training_dropout", "training mode written into the file is refused at the door"),
    (r"^spacetodepth_crd_mode", "the attribute is newer than opset 21"),
)
"""Node tests of claimed operators that do not run: a pattern of their names, and why."""

UNCLAIMED = (
    (("If", "Loop", "Scan", "SequenceMap"), "control flow: subgraphs are refused"),
    (("StringConcat", "StringNormalizer", "StringSplit", "RegexFullMatch", "TfIdfVectorizer", "ImageDecoder"), "texts and files"),
    (("OptionalGetElement", "OptionalHasElement", "SequenceInsert", "SplitToSequence"), "sequences and optionals"),
    (
        (
            "Attention", "BitCast", "CausalConvWithState", "CumProd", "LinearAttention", "RMSNormalization", "RotaryEmbedding", "SwiGLU",
            "Swish", "TensorScatter",
        ),
        "newer than opset 21, the one inside the house",
    ),
    (("Scatter", "Upsample"), "gone before opset 21: the door lifts them to ScatterElements and Resize"),
    (("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"), "losses: a task's loss is given beside the model"),
    (("QLinearConv", "QLinearMatMul"), "integer kernels without a gradient: use QDQ"),
    (("Bernoulli",), "random, so no two runtimes agree"),
    (("Constant",), "read when the module is made, and never a call"),
)  # fmt: skip
"""Operators without a row, and why; any other is rare in the networks that hasten is for."""


class Unheld(Exception):
    """A type that the executor has no tensor for."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A node test: its model, one list of inputs and of expected outputs, and its tolerances."""

    name: str
    operator: str
    proto: onnx.ModelProto
    inputs: list[Any]
    outputs: list[Any]
    rtol: float
    atol: float


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: why it failed (empty: it did not), and whether it ran with constants too."""

    case: str
    operator: str
    error: str
    burnt: bool


@functools.cache
def cases() -> tuple[Case, ...]:
    """All node tests of single operators; those of an operator's expansion into its function body are left out."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    result = []
    for test in found:
        nodes, name = test.model.graph.node, test.name.removeprefix("test_")
        if "_expanded" in name or not nodes:
            continue
        main = next((n for n in nodes if n.op_type != "Constant"), nodes[0])
        operator = f"{main.domain}::{main.op_type}" if main.domain else main.op_type
        inputs, outputs = test.data_sets[0]
        result.append(Case(name, operator, test.model, list(inputs), list(outputs), test.rtol, test.atol))
    return tuple(result)


def model_of(case: Case, constants: tuple[int, ...] = ()) -> Model:
    """The case's model at the house's opset; one that can't be lifted or lowered to it is taken as it is, where it is older or newer than
    what the door reads. Inputs at `constants` become initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(case.proto)
    keep = []
    for number, value in enumerate(proto.graph.input):
        if number in constants:
            proto.graph.initializer.append(numpy_helper.from_array(np.asarray(case.inputs[number]), value.name))
        else:
            keep.append(value)
    del proto.graph.input[:]
    proto.graph.input.extend(keep)
    version = next(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    try:
        return from_proto(proto, check=False)
    except HastenError:
        if OLDEST_OPSET <= version <= OPSET:
            raise
        return Model(ir.from_proto(proto))


def tensor(value: Any) -> Any:
    """A case's input or output as a tensor: an array, or a TensorProto. Raises Unheld for what the executor holds in no tensor."""
    if isinstance(value, (np.ndarray, np.generic)):
        array = np.array(value)
        if array.dtype.kind in "OUSc":
            raise Unheld("texts and complex numbers")
        value = ir.Tensor(array)
    elif isinstance(value, onnx.TensorProto):
        value = ir.from_proto(value)
    else:
        raise Unheld("sequences and optionals")
    try:
        return to_tensor(value)
    except KeyError as e:
        raise Unheld(f"element type {value.dtype.name}") from e


def run(case: Case, rows: Mapping[str, Op] | None = None, constants: tuple[int, ...] = ()) -> None:
    """Build the case's model and compare its outputs in type, shape and value. Raises AssertionError where they differ."""
    expected = [tensor(v) for v in case.outputs]
    feeds = [tensor(v) for number, v in enumerate(case.inputs) if number not in constants]
    executor = build(model_of(case, constants), more=rows)
    with torch.no_grad():
        found = executor.module(*feeds)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype, f"type {a.dtype}, expected {b.dtype}"
        assert a.shape == b.shape, f"shape {list(a.shape)}, expected {list(b.shape)}"
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=max(case.rtol, 1e-5), atol=max(case.atol, 1e-6), equal_nan=True)
        else:
            assert torch.equal(a, b), f"{int((a != b).sum())} of {a.numel()} values differ"


def outcomes(names: Sequence[str] = tuple(OPERATORS), rows: Mapping[str, Op] | None = None) -> tuple[Outcome, ...]:
    """Run the cases of these operators; `rows` replace rows of the table."""
    found = []
    for case in cases():
        if case.operator not in names:
            continue
        row = {**OPERATORS, **(rows or {})}[case.operator]
        constants = tuple(
            i for i in (*row.burnt, *row.places) if i < len(case.inputs) and isinstance(case.inputs[i], (np.ndarray, np.generic))
        )
        error = _failure(case, rows, ())
        if not error and constants:
            error = _failure(case, rows, constants)
        found.append(Outcome(case.name, case.operator, error, bool(constants)))
    return tuple(found)


def _failure(case: Case, rows: Mapping[str, Op] | None, constants: tuple[int, ...]) -> str:
    """Why the case fails, in one line; empty where it does not. fx prints the code of a module that raises; that is kept off the terminal."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            run(case, rows, constants)
    except Exception as e:  # noqa: BLE001 - whatever it raises is what became of the case
        return f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"
    return ""


def reason(case: str) -> str:
    """Why a node test of that name does not run; empty where it has to."""
    return next((why for pattern, why in REST if re.search(pattern, case)), "")


def page(results: Sequence[Outcome]) -> str:
    """docs/operators.md."""
    names = sorted(OPERATORS)
    held = [r for r in results if not r.error]
    lines = [
        "# Operators of the torch executor",
        "",
        "<!-- tools/make_operators.py writes this page; a test holds it current -->",
        "",
        f"The executor (`hasten.learn`, and the runtimes `torch` and `torch-compiled`) has {len(names)} operators of ONNX at opset 21.",
        f"They are held to the node tests inside onnx {onnx.__version__}: of {len(results)} tests of these operators {len(held)} run",
        f"and pass, in type, shape and value, {sum(r.burnt for r in held)} of them a second time with axes, shapes and bounds as constants.",
        "An operator without a row is refused before",
        "anything runs, by name, node and opset.",
        "",
        "| operator | tests | pass | gradient |",
        "|---|---:|---:|---|",
    ]
    for name in names:
        mine = [r for r in results if r.operator == name]
        lines.append(f"| {name} | {len(mine)} | {sum(not r.error for r in mine)} | {'yes' if OPERATORS[name].gradient else 'no'} |")
    lines += ["", "## Tests of these operators that do not run", "", "| why | tests |", "|---|---|"]
    for _, why in REST:
        failed = [r.case for r in results if r.error and reason(r.case) == why]
        lines.append(f"| {why} | {len(failed)}: {', '.join(failed)} |")
    lines += ["", "## Operators with node tests and no row", "", "| operators | why |", "|---|---|"]
    without = sorted({c.operator for c in cases()} - set(OPERATORS))
    for group, why in UNCLAIMED:
        lines.append(f"| {', '.join(n for n in without if n in group)} | {why} |")
    known = {n for group, _ in UNCLAIMED for n in group}
    foreign = [n for n in without if "::" in n]
    lines.append(f"| {', '.join(foreign)} | other domains: no networks, or training steps |")
    lines.append(f"| {', '.join(n for n in without if n not in known and n not in foreign)} | rare in the networks that hasten is for |")
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page(outcomes())
    if "--check" in sys.argv:
        current = PAGE.exists() and PAGE.read_text() == text
        print("docs/operators.md is current" if current else "docs/operators.md is not current: python tools/make_operators.py")
        return 0 if current else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
