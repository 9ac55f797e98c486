"""c_export: a quantized model as portable C99 for microcontrollers: NAME.h, NAME.c and NAME_test.c, whole numbers alone, no memory allocated.

The plan is that of the native engine in fixed point (`lower(model, "fixed")`), and so are its results, bit for bit. Weights lie as they are
(channels, h, w, inputs), constant, so that a linker puts them into flash; activations share one static arena (`c_memory`); a kernel looks where
its window ends instead of reading a halo of zeros. The kernels are in c_kernels.c: a model gets those that it needs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.errors import BadInput, Unsupported
from hasten.graph import Array
from hasten.lower import c_memory, evaluate, ops
from hasten.lower.c_memory import Layout, NoLayout, size_of
from hasten.lower.plan import INPUT, OUTPUT, Plan, Tensor

if TYPE_CHECKING:
    from hasten.model import Model

SAMPLES = 3
"""Inputs in the test, with the outputs that are expected of them."""

WIDTH = 120
"""Characters of a line of numbers."""

SMALL = 32767
"""Sizes up to this are kept in 16 bits."""


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """One call of a kernel: the node it stands for, what it computes, bytes of its constants in flash, bytes of the arena in use meanwhile."""

    name: str
    what: str
    flash: int
    ram: int


@dataclasses.dataclass(frozen=True)
class Footprint:
    """Bytes of an exported model. flash: all constants (the machine code of the kernels is not in it). arena: activations, inputs among them;
    outputs: the buffers of the caller's. ram: both. The stack is a few hundred bytes more."""

    layers: tuple[LayerCost, ...]
    flash: int
    arena: int
    outputs: int

    @property
    def ram(self) -> int:
        return self.arena + self.outputs


@dataclasses.dataclass(frozen=True)
class Exported:
    """The files by name, and what they take."""

    files: Mapping[str, str]
    footprint: Footprint


def plan_for_c(model: Model) -> Plan:
    """The plan in fixed point. Raises Unsupported, naming the node that has no C code or saying how to quantize."""
    from hasten.lower.lowering import lower_graph

    plan, skips = lower_graph(model, "fixed")
    if plan is None:
        if not any(node.op_type == "QuantizeLinear" for node in model.ir.graph):
            raise Unsupported(
                "C code is made of a model with 8-bit weights and activations, and this one has none; "
                "quantize it first: hasten quantize-static MODEL -o int8.onnx --data DATA"
            )
        more = f" (and {len(skips) - 1} more)" if len(skips) > 1 else ""
        where = f"{skips[0].node}: " if skips[0].node else ""
        raise Unsupported(f"it has no C code: {where}{skips[0].why.replace('the native engine', 'fixed-point C')}{more}")
    return plan


def export(model: Model, name: str, feeds: Mapping[str, Array] | None = None) -> Exported:
    """The C code of a model quantized to uint8 activations and int8 weights (QDQ).

    name: what every identifier begins with, see `identifier`. feeds: samples for the test by the inputs' names, the first SAMPLES are taken; seeded
    codes without. Raises Unsupported as `plan_for_c`, BadInput for a name that is none.
    """
    if name != identifier(name):
        raise BadInput(f"{name!r} can't begin C identifiers; use letters, digits and underscores, such as {identifier(name)}")
    plan = plan_for_c(model)
    codes = _samples(plan, feeds)
    expected = evaluate.whole_numbers(plan, codes)
    try:
        found = c_memory.layout(plan)
    except NoLayout as e:
        raise Unsupported(f"it has no C code: {e}") from e
    writer = _Writer(plan, found, name)
    body = writer.body()
    cost = writer.footprint()
    files = {
        f"{name}.h": writer.header(cost),
        f"{name}.c": body,
        f"{name}_test.c": writer.test(codes, expected, real=feeds is not None),
    }
    return Exported(files, cost)


def footprint(model: Model) -> Footprint:
    """What the C code of a model would take. Raises Unsupported as `export`."""
    plan = plan_for_c(model)
    try:
        writer = _Writer(plan, c_memory.layout(plan), "model")
    except NoLayout as e:
        raise Unsupported(f"it has no C code: {e}") from e
    writer.body()
    return writer.footprint()


def identifier(text: str) -> str:
    """What C identifiers can begin with, made of any text: lenet-5.onnx → lenet_5. Nothing ends up as a keyword, for _run and so on follow it."""
    found = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:40].rstrip("_")
    return found if found[:1].isalpha() else f"model_{found}".rstrip("_")


def save(exported: Exported, place: Path, force: bool = False) -> None:
    """Write the files into a folder, which is made: all of them or, interrupted or failed, none. Raises BadInput where one is there, unless
    `force`, and OSError."""
    if place.exists() and not place.is_dir():
        raise BadInput(f"{place} is a file; C code is written into a folder")
    there = [name for name in exported.files if (place / name).exists()]
    if there and not force:
        raise BadInput(f"{place / there[0]} exists; give another folder or --name, or --force to write it anew")
    place.parent.mkdir(parents=True, exist_ok=True)
    written = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        for name, text in exported.files.items():
            (written / name).write_text(text)
        if place.exists():
            for name in exported.files:
                os.replace(written / name, place / name)
        else:
            written.chmod(0o777 & ~_umask())
            os.rename(written, place)
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def _samples(plan: Plan, feeds: Mapping[str, Array] | None) -> list[Array]:
    if feeds is not None:
        return [codes[:SAMPLES] for codes in evaluate.input_codes(plan, feeds)]
    rng = np.random.default_rng(0)
    shapes = {op.x.port[1]: (op.y.h, op.y.w, op.y.c) for op in plan.ops if isinstance(op, ops.Quantize) and op.x.port is not None}
    return [rng.integers(0, 256, (SAMPLES, *shapes[i]), dtype=np.uint8) for i in range(len(plan.inputs))]


class _Writer:
    """Writes one model's C; constants come into being while `body` walks over the steps."""

    def __init__(self, plan: Plan, found: Layout, name: str) -> None:
        self.plan, self.found, self.name, self.upper = plan, found, name, name.upper()
        self.constants: list[str] = []
        self.known: dict[tuple[str, bytes], str] = {}
        self.pieces: list[str] = []
        self.flash = 0
        self.costs: list[LayerCost] = []
        tensors = [t for _, op in found.steps for t in (op.y, *op.reads)]
        self.size = 2 if all(max(t.h, t.w, t.c, t.row, t.pixel) <= SMALL for t in tensors) else 4

    # The .c file

    def body(self) -> str:
        calls = []
        for number, (name, op) in enumerate(self.found.steps):
            before, told = self.flash, _told(op)
            call = self._call(op, number)
            calls.append(f"    /* {number} {_comment(name)}: {told} */\n    {call}\n")
            self.costs.append(LayerCost(_comment(name), told, self.flash - before, self._in_use(number)))
        inputs = "".join(
            f"\nuint8_t *{self._input(i)}(void)\n{{\n    return arena + {self.found.offsets[t]};\n}}\n"
            for i, (t, _) in enumerate(self.found.inputs)
        )
        return "\n".join(
            [
                f"/* {self.name}: made by hasten. See {self.name}.h for how to call it. */",
                f'#include "{self.name}.h"\n',
                f"/* Fits every size below. */\ntypedef int{8 * self.size}_t size;\n",
                _pieces(self.pieces),
                "/* Constants: w weights, b bias, f and n: results are sums * f / 2^n. */\n",
                "\n".join(self.constants),
                "/* Activations. What is not needed any more is written over. */",
                f"static uint8_t arena[{max(self.found.arena, 1)}];",
                f"{inputs}\n{self._signature()}\n{{",
                "\n".join(calls).rstrip("\n"),
                "}\n",
            ]
        )

    def _call(self, op: Any, number: int) -> str:
        x, y = (self._at(op.x) if op.reads else ""), self._at(op.y)
        match op:
            case ops.Layer():
                w = op.weights.reshape(len(op.weights), -1) if isinstance(op, ops.Depthwise) else op.weights.transpose(0, 2, 3, 1)
                factor, shift = op.ends(np.arange(len(op.bias)))[1:]
                constants = [
                    self._window(op, number, op.slide, op.x_zero, op.to),
                    x,
                    self._array(f"w{number}", "int8_t", w),
                    self._array(f"b{number}", "int32_t", op.bias),
                    self._array(f"f{number}", "int32_t", factor),
                    self._array(f"n{number}", "uint8_t", shift),
                ]
                kernel = "depthwise" if isinstance(op, ops.Depthwise) else "conv" if op.to is not None else "conv_values"
                if isinstance(op, ops.Conv) and op.add is not None:
                    kernel = "conv_add"
                    constants += [self._addition(op.add, number), self._at(op.add.other)]
                return self._piece(kernel, *constants, y)
            case ops.Add():
                places = self._image(op.x), self._image(op.y)
                return self._piece("add", *places, self._addition(op.sum, number), x, self._at(op.sum.other), y)
            case ops.Pool():
                window = self._window(op, number, op.slide, op.of.zero, op.to)
                if not op.average:
                    return self._piece("max_pool", window, x, y)
                return self._piece("average_pool", window, x, *map(str, op.multiplier), y)
            case ops.Map(constant=code) if code >= 0:
                return self._piece("fill", self._image(op.y), str(code), y)
            case ops.Map():
                places = self._image(op.x), self._image(op.y)
                if op.table is None:
                    return self._piece("copy", *places, x, y)
                return self._piece("map", *places, self._array(f"t{number}", "uint8_t", op.table), x, y)
        raise AssertionError(f"C has no {type(op).__name__}")

    def _piece(self, kernel: str, *arguments: str) -> str:
        if kernel not in self.pieces:
            self.pieces.append(kernel)
        return f"{kernel}({', '.join(arguments)});"

    def _at(self, t: Tensor) -> str:
        """A C expression for the first number of a tensor."""
        if t.root.port is not None and t.root.port[0] == OUTPUT:
            place = self._parameter(t.root.port)
        else:
            number = next((i for i, (held, _) in enumerate(self.found.inputs) if held is t.root), None)
            if number is None:
                return f"arena + {self.found.offsets[t.root] + t.origin}"
            place = self._parameter((INPUT, number))
        return f"{place} + {t.origin}" if t.origin else place

    def _parameter(self, port: tuple[int, int]) -> str:
        ports = self.found.inputs if port[0] == INPUT else self.found.outputs
        return ("input" if port[0] == INPUT else "output") + (str(port[1] + 1) if len(ports) > 1 else "")

    def _input(self, number: int) -> str:
        return f"{self.name}_{self._parameter((INPUT, number))}"

    def _image(self, t: Tensor) -> str:
        text = _image(t)
        return "&" + self._constant("i", "image", text, 5 * self.size)

    def _window(self, op: Any, number: int, how: Any, x_zero: int, to: ops.Quantization | None) -> str:
        (top, _), (left, _) = how.pads
        zero, lo, hi = (to.zero, to.lo, to.hi) if to is not None else (0, 0, 0)
        numbers = (*how.kernel, *how.strides, *how.dilations, top, left)
        text = f"{{{_image(op.x)}, {_image(op.y)}, {', '.join(map(str, numbers))}, {x_zero}, {zero}, {lo}, {hi}}}"
        return "&" + self._constant("k", "window", text, 18 * self.size + 4 * 2)

    def _addition(self, add: ops.Sum, number: int) -> str:
        fa, fb, fc, shift = add.fixed
        if add.second:  # the layer is b, not a: sums of whole numbers don't mind
            fa, fb = fb, fa
        text = f"{{{_image(add.other)}, {fa}, {fb}, {fc}, {shift}, {add.to.lo}, {add.to.hi}}}"
        return "&" + self._constant("a", "addition", text, -(-5 * self.size // 4) * 4 + 12 + 4)

    def _constant(self, letter: str, kind: str, text: str, size: int) -> str:
        key = (kind, text.encode())
        if key not in self.known:
            self.known[key] = f"{letter}{sum(k == kind for k, _ in self.known)}"
            self.flash += size
            self.constants.append(f"static const {kind} {self.known[key]} = {text};\n")
        return self.known[key]

    def _array(self, name: str, kind: str, values: Array) -> str:
        """The name of an array of constants; equal ones are one."""
        data = np.ascontiguousarray(values)
        key = (kind, data.tobytes())
        if key not in self.known:
            self.known[key] = name
            self.flash += data.nbytes
            self.constants.append(f"static const {kind} {name}[{data.size}] = {{\n{_numbers(data, kind)}\n}};\n")
        return self.known[key]

    def _in_use(self, number: int) -> int:
        """Bytes of the arena that hold something at a step, those that lie over each other once."""
        spans = sorted((at, at + size_of(t)) for t, at in self.found.offsets.items() if self._lives[t][0] <= number <= self._lives[t][1])
        total, end = 0, 0
        for begin, finish in spans:
            total += max(0, finish - max(begin, end))
            end = max(end, finish)
        return total

    @functools.cached_property
    def _lives(self) -> dict[Tensor, tuple[int, int]]:
        lives = {t: (-1, -1) for t, _ in self.found.inputs}
        for i, (_, op) in enumerate(self.found.steps):
            for t in (op.y.root, *(t.root for t in op.reads)):
                lives[t] = (lives.get(t, (i, i))[0], i)
        return lives

    def footprint(self) -> Footprint:
        return Footprint(tuple(self.costs), self.flash, self.found.arena, sum(size_of(t) for t, _ in self.found.outputs))

    # The .h file

    def _signature(self) -> str:
        inputs = [f"const uint8_t *{self._parameter((INPUT, i))}" for i in range(len(self.found.inputs))]
        outputs = [
            f"{'int32_t' if of is None else 'uint8_t'} *{self._parameter((OUTPUT, i))}" for i, (_, of) in enumerate(self.found.outputs)
        ]
        return f"void {self.name}_run({', '.join(inputs + outputs)})"

    def header(self, cost: Footprint) -> str:
        lines = [
            f"/* {self.name}: made by hasten. C99, whole numbers alone, no memory allocated; not for two threads at a time.",
            "",
            f"   {self._signature()};",
            "   computes one sample. Images lie as (height, width, channels), a byte for each number of the input:",
            "       code = round(value / SCALE) + ZERO, between 0 and 255; halves to even.",
            f"   The input may lie anywhere, also in {self._input(0)}(), which is in the arena and costs no memory of its own; what is there is",
            f"   written over by {self.name}_run, so write it before each call. SIZE: numbers.",
            "",
            f"   Flash: {cost.flash} bytes of constants; the machine code is not in this number.",
            f"   RAM: {cost.ram} bytes, {cost.arena} of them the arena, {cost.outputs} the caller's output; the stack is not in this number.",
            "",
            *(f"   {line}" for line in table(cost)),
            "*/",
            f"#ifndef {self.upper}_H\n#define {self.upper}_H\n",
            "#include <stdint.h>\n",
        ]
        for i, (t, of) in enumerate(self.found.inputs):
            lines += [f"/* Input {_comment(self.plan.inputs[i].name)}. */"]
            lines += self._macros(self._parameter((INPUT, i)).upper(), t, of, 1.0)
        for i, (t, meaning) in enumerate(self.found.outputs):
            told = "uint8_t codes: value = SCALE * (code - ZERO)" if meaning is not None else "int32_t numbers: value = number * 2^EXPONENT"
            lines += [f"/* Output {_comment(self.plan.outputs[i].name)}, {told}. */"]
            lines += self._macros(self._parameter((OUTPUT, i)).upper(), t, meaning, self.found.units[i])
        lines += [f"#define {self.upper}_FLASH {cost.flash}", f"#define {self.upper}_RAM {cost.ram}\n"]
        lines += ["#ifdef __cplusplus", 'extern "C" {', "#endif\n"]
        lines += [f"uint8_t *{self._input(i)}(void);" for i in range(len(self.found.inputs))]
        lines += [f"{self._signature()};\n", "#ifdef __cplusplus", "}", "#endif\n", "#endif\n"]
        return "\n".join(lines)

    def _macros(self, port: str, t: Tensor, of: ops.Quantization | None, unit: float) -> list[str]:
        sizes = {"HEIGHT": t.h, "WIDTH": t.w, "CHANNELS": t.c, "SIZE": t.h * t.w * t.c}
        lines = [f"#define {self.upper}_{port}_{what} {size}" for what, size in sizes.items()]
        if of is None:
            return [*lines, f"#define {self.upper}_{port}_EXPONENT ({int(math.log2(unit))})\n"]
        return [*lines, f"#define {self.upper}_{port}_SCALE {_float(of.scale)}", f"#define {self.upper}_{port}_ZERO {of.zero}\n"]

    # The test

    def test(self, codes: Sequence[Array], expected: Sequence[Array], real: bool) -> str:
        count = len(codes[0])
        origin = "samples of the data" if real else "seeded codes"
        lines = [
            f"/* {self.name}_test: {count} {origin}, and what {self.name}_run must make of them, to the bit. Ends with 0 if it does, else with 1. */",
            "#include <stdio.h>\n",
            f'#include "{self.name}.h"\n',
        ]
        inputs = [self._parameter((INPUT, i)) for i in range(len(codes))]
        outputs = [self._parameter((OUTPUT, i)) for i in range(len(expected))]
        for given, array in zip(inputs, codes, strict=True):
            lines.append(_matrix(f"{given}s", "uint8_t", array.reshape(count, -1)))
        for made, array, (_, of) in zip(outputs, expected, self.found.outputs, strict=True):
            kind = "int32_t" if of is None else "uint8_t"
            size = array[0].size
            lines += [_matrix(f"expected_{made}s", kind, array.reshape(count, -1)), f"static {kind} {made}[{size}];\n"]
        elsewhere = ", ".join([*(f"{given}s[i]" for given in inputs), *outputs])
        inside = ", ".join([*(f"{self.name}_{given}()" for given in inputs), *outputs])
        lines += ["static int differs(int i)", "{", "    int found = 0;"]
        for made, array in zip(outputs, expected, strict=True):
            lines.append(f"    for (int32_t n = 0; n < {array[0].size}; n++) found |= {made}[n] != expected_{made}s[i][n];")
        lines += ["    return found;", "}\n", "int main(void)", "{", "    int wrong = 0;", f"    for (int i = 0; i < {count}; i++) {{"]
        lines += [f"        {self.name}_run({elsewhere});", "        int found = differs(i);"]
        for given, array in zip(inputs, codes, strict=True):
            lines.append(f"        for (int32_t n = 0; n < {array[0].size}; n++) {self.name}_{given}()[n] = {given}s[i][n];")
        lines += [f"        {self.name}_run({inside});", "        found |= differs(i);"]
        lines += [
            '        printf("sample %d: %s\\n", i, found ? "differs" : "ok");',
            "        wrong |= found;",
            "    }",
            "    return wrong;",
            "}\n",
        ]
        return "\n".join(lines)


def table(cost: Footprint) -> list[str]:
    """Flash and RAM of each layer, in columns; the last line is all of them."""
    rows = [("layer", "computes", "flash", "RAM in use")]
    rows += [(f"{i} {layer.name}", layer.what, str(layer.flash), str(layer.ram)) for i, layer in enumerate(cost.layers)]
    rows += [("all", "", str(cost.flash), f"{cost.arena} + {cost.outputs} output")]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows]


def told(made: Exported, place: Path) -> list[str]:
    """Flash, RAM and machine code in words, and how to run the test."""
    cost, name = made.footprint, next(iter(made.files))[: -len(".h")]
    lines = [f"flash: {cost.flash} bytes of constants; RAM: {cost.ram} bytes ({cost.arena} arena, {cost.outputs} output)"]
    code = machine_code(made)
    lines.append(
        f"machine code: {code} bytes beside it as this host's compiler makes it with -Os; the target's differs"
        if code is not None
        else "machine code comes on top; there is no compiler here to tell how much"
    )
    lines.append("time: not measured; this host says nothing about the target")
    lines.append(f"test it: cc -std=c99 {place / name}.c {place / name}_test.c -o {name}_test && ./{name}_test")
    return lines


def machine_code(made: Exported) -> int | None:
    """Bytes of .text that this host's C compiler makes of the code with -Os; None where there is none."""
    compiler, sizer = shutil.which("cc") or shutil.which("gcc"), shutil.which("size")
    if compiler is None or sizer is None:
        return None
    with tempfile.TemporaryDirectory(prefix="hasten-") as private:
        for name, text in made.files.items():
            (Path(private) / name).write_text(text)
        source = next(name for name in made.files if name.endswith(".c"))
        compiled = subprocess.run(
            [compiler, "-std=c99", "-Os", "-c", source, "-o", "made.o"], cwd=private, capture_output=True, check=False
        )
        if compiled.returncode:
            return None
        shown = subprocess.run([sizer, "-A", "made.o"], cwd=private, capture_output=True, text=True, check=False).stdout
    found = [int(size) for size in re.findall(r"^\.text\S*\s+(\d+)", shown, re.MULTILINE)]
    return sum(found) if found else None


def _told(op: Any) -> str:
    """What a call computes: its kind and shapes."""
    y = _shape(op.y)
    match op:
        case ops.Layer():
            kernel = " x ".join(map(str, op.slide.kernel))
            kind = "depthwise" if isinstance(op, ops.Depthwise) else "conv"
            if (op.x.h, op.x.w) == op.slide.kernel and (op.y.h, op.y.w) == (1, 1) and not any(p for pad in op.slide.pads for p in pad):
                kind, kernel = "gemm", ""
            plus = ", plus another" if isinstance(op, ops.Conv) and op.add is not None else ""
            return f"{kind} {kernel + ' ' if kernel else ''}of {_shape(op.x)} to {y}{plus}"
        case ops.Add():
            return f"add {y}"
        case ops.Pool():
            return f"{'average' if op.average else 'maximum'} {' x '.join(map(str, op.slide.kernel))} of {_shape(op.x)} to {y}"
        case ops.Map(constant=code) if code >= 0:
            return f"fill {y}"
    return f"{'copy' if op.table is None else 'map'} {y}"


def _shape(t: Tensor) -> str:
    return " x ".join(map(str, (t.h, t.w, t.c))) if t.h * t.w > 1 else str(t.c)


def _image(t: Tensor) -> str:
    return f"{{{t.h}, {t.w}, {t.c}, {t.row}, {t.pixel}}}"


def _comment(text: str) -> str:
    """A name of the graph's as it may stand in a comment."""
    return re.sub(r"[^A-Za-z0-9_./:\[\]-]", "_", text)[:80] or "_"


def _float(value: float) -> str:
    text = str(np.float32(value))
    return f"{text}f" if any(c in text for c in ".e") else f"{text}.0f"


def _numbers(values: Array, kind: str) -> str:
    """Numbers in lines. −2^31 has no literal."""
    lines, line = [], "   "
    for value in values.reshape(-1).tolist():
        text = f" {value}," if kind != "int32_t" or value > -(2**31) else " INT32_MIN,"
        if len(line) + len(text) > WIDTH:
            lines.append(line)
            line = "   "
        line += text
    return "\n".join([*lines, line.rstrip(",")])


def _matrix(name: str, kind: str, rows: Array) -> str:
    inside = ",\n".join(f"    {{\n{_numbers(row, kind)}\n    }}" for row in rows)
    return f"static const {kind} {name}[{rows.shape[0]}][{rows.shape[1]}] = {{\n{inside}\n}};\n"


@functools.cache
def _library() -> dict[str, tuple[tuple[str, ...], str]]:
    """The pieces of c_kernels.c: name → (pieces it needs, text), in their order."""
    text = resources.files("hasten.lower").joinpath("c_kernels.c").read_text()
    parts = re.split(r"^/\* piece (\w+):([\w ]*)\*/\n", text, flags=re.MULTILINE)[1:]
    return {
        name: (tuple(needs.split()), body.strip("\n") + "\n")
        for name, needs, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
    }


def _pieces(wanted: Sequence[str]) -> str:
    """The text of these pieces and of what they need, in the library's order."""
    found: set[str] = set()
    todo = list(wanted)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += _library()[name][0]
    return "\n".join(text for name, (_, text) in _library().items() if name in found)
