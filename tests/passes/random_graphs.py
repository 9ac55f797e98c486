"""Random valid ONNX graphs for the passes: operators of many kinds, with what passes look for (neutral constants, chains, duplicates) put in often.

`random_graph(rng)` makes one from a `random.Random`; `graphs()` is the Hypothesis strategy, which can shrink; `tools/random_graphs.py` runs many.
Numbers stay tame (no division by what may be zero), and steps (Floor, comparisons) read only what is nowhere whole by construction: elsewhere
the last digit of a rounding pass would decide.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hasten import check, plan
from hasten.doors.onnx import from_proto
from hasten.graph import finish
from hasten.model import Model, all_nodes
from hasten.plan import Effect, Row

FLOAT, INT, BOOL, DOUBLE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE
SHAPES = (["N", 4], ["N", 3, 4], ["N", 2, 5, 5], ["N", 4, 1, 1], [2, 3], [1, 4], [3, 1, 2], ["N", 6], [4])
MANY = 400
"""Elements at most of a value, for N = 3."""

CONTINUOUS, WHOLE, MIXED = 0, 1, 2
"""What a value's numbers are: nowhere whole by construction; all whole; somewhere whole, or equal to a constant."""


@dataclasses.dataclass(frozen=True)
class Value:
    """A value of the graph: sizes, "N" for the dynamic axis."""

    name: str
    dtype: int
    shape: tuple[int | str, ...]
    kind: int = CONTINUOUS

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def fixed(self) -> list[int]:
        """Axes of known size."""
        return [i for i, d in enumerate(self.shape) if d != "N"]


class Maker:
    """Nodes and constants of one graph while it grows; a branch of an If has a Maker of its own with the same counter."""

    def __init__(self, rng: random.Random, outer: Maker | None = None):
        self.rng, self.outer = rng, outer
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = [] if outer is None else outer.weights
        self.values: list[Value] = [] if outer is None else list(outer.values)
        self.counter = [0] if outer is None else outer.counter
        self.numbers = np.random.default_rng(rng.randrange(1 << 30)) if outer is None else outer.numbers

    # --- pieces

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def name(self, stem: str) -> str:
        self.counter[0] += 1
        return f"{stem}{self.counter[0]}"

    def const(self, array) -> str:
        array = np.asarray(array)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        name = self.name("c")
        if self.chance(0.15):
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
        else:
            self.weights.append(numpy_helper.from_array(array, name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(np.array(values, np.int64))

    def normal(self, *shape: int) -> np.ndarray:
        return self.numbers.standard_normal(shape).round(3) + 0.0001

    def add(self, operator: str, inputs, shape, dtype=FLOAT, kind=MIXED, keep=True, **attributes) -> Value:
        value = Value(self.name("v"), dtype, tuple(shape), kind)
        self.nodes.append(helper.make_node(operator, inputs, [value.name], name=self.name(operator.lower()), **attributes))
        if keep:
            self.values.append(value)
        return value

    def pick(self, test=lambda v: True, dtype=FLOAT) -> Value | None:
        """A value, late ones more often."""
        fit = [v for v in self.values if v.dtype == dtype and test(v)]
        if not fit:
            return None
        return fit[-1] if self.chance(0.5) else self.rng.choice(fit)

    # --- one more node, or a few

    def grow(self, steps=None) -> None:
        getattr(self, self.rng.choice(steps or STEPS))()

    def unary(self) -> None:
        v = self.pick()
        op = self.rng.choice(
            "Relu Relu Abs Neg Neg Sigmoid Tanh Identity Sin Floor Ceil Round Sign Sign HardSigmoid LeakyRelu Softplus Dropout".split()
        )
        twice = 1 + self.chance(0.35)
        for _ in range(twice):
            if op in ("Floor", "Ceil", "Round", "Sign") and v.kind == MIXED:
                op = "Abs"
            kind = WHOLE if op in ("Floor", "Ceil", "Round", "Sign") else v.kind if op in ("Neg", "Identity", "Dropout", "Abs") else MIXED
            if op in ("Sigmoid", "Tanh", "Sin") and v.kind == CONTINUOUS:
                kind = CONTINUOUS
            v = self.add(op, [v.name], v.shape, kind=kind)

    def constant_binary(self) -> None:
        v = self.pick()
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            op = self.rng.choice("Add Sub Mul Div Pow".split())
            left = op in ("Sub", "Add", "Mul") and self.chance(0.4)
            shape = [d if d != "N" and self.chance(0.6) else 1 for d in v.shape][self.rng.choice((0, 0, min(1, v.rank))) :]
            result = list(v.shape)
            if self.chance(0.12) and 1 in v.shape:
                # Neutral or not, this constant widens the value.
                shape = [3 if d == 1 else 1 for d in v.shape]
                result = [3 if d == 1 else d for d in v.shape]
            elif self.chance(0.08):
                shape, result = [1] * (v.rank + 1), [1, *v.shape]
            elif self.chance(0.4):
                shape = []
            if self.size(result) > MANY:
                return
            neutral = self.chance(0.45) or op == "Pow"
            array = np.full(shape, 0.0 if op in ("Add", "Sub") else 1.0)
            if not neutral:
                array = self.numbers.uniform(0.4, 2.5, shape).round(3) * self.rng.choice((1, 1, -1))
            number = self.const(np.asarray(array))
            inputs = [number, v.name] if left else [v.name, number]
            v = self.add(op, inputs, result, kind=v.kind if neutral else CONTINUOUS if v.kind == CONTINUOUS else MIXED)

    def binary(self) -> None:
        v = self.pick()
        other = self.pick(
            lambda o: (
                o.shape == v.shape
                or (o.rank <= v.rank and all(d == 1 or d == e for d, e in zip(o.shape[::-1], v.shape[::-1], strict=False)))
            )
        )
        op = self.rng.choice("Add Mul Max Min Sub".split())
        self.add(op, [v.name, other.name], v.shape)
        if self.chance(0.4):
            self.add(op, [other.name, v.name] if op != "Sub" else [v.name, other.name], v.shape)

    def variadic(self) -> None:
        v = self.pick()
        op = self.rng.choice("Sum Max Min Mean".split())
        others = [o.name for o in self.values if o.dtype == FLOAT and o.shape == v.shape]
        self.add(op, [v.name, *others[: self.rng.choice((0, 0, 1, 2))]], v.shape, kind=MIXED)

    def linear(self) -> None:
        v = self.pick(lambda v: v.rank >= 2 and v.shape[-1] != "N")
        if v is None:
            return
        k, gemm = v.shape[-1], v.rank == 2 and self.chance(0.5)
        m = self.rng.choice((2, 3, 4))
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            if gemm:
                trans = self.chance(0.5)
                weight = self.const(self.normal(m, k) / 2 if trans else self.normal(k, m) / 2)
                bias = [self.const(self.normal(m))] if self.chance(0.6) else []
                beta = self.rng.choice((1.0, 1.0, 0.5))
                out = self.add("Gemm", [v.name, weight, *bias], (*v.shape[:-1], m), transB=int(trans), beta=beta)
            else:
                out = self.add("MatMul", [v.name, self.const(self.normal(k, m) / 2)], (*v.shape[:-1], m))
                if self.chance(0.6):
                    out = self.add("Add", [out.name, self.const(self.normal(*self.rng.choice(((m,), (1, m), ()))))], out.shape)
            if self.chance(0.3):
                v, k = out, m

    def conv(self) -> None:
        v = self.pick(lambda v: v.rank == 4 and all(d != "N" for d in v.shape[1:]))
        if v is None:
            return
        kernel = self.rng.choice((1, 1, 3))
        for _ in range(self.rng.choice((1, 1, 2))):
            pad = self.chance(0.5)
            if v.shape[2] + 2 * pad < kernel or v.shape[3] + 2 * pad < kernel:
                return
            group = v.shape[1] if self.chance(0.2) else 1
            out = 2 * group if group > 1 else self.rng.choice((2, 3))
            weight = self.const(self.normal(out, v.shape[1] // group, kernel, kernel) / 2)
            bias = [self.const(self.normal(out))] if self.chance(0.5) else []
            size = [d + 2 * pad - kernel + 1 for d in v.shape[2:]]
            if self.size((*v.shape[:1], out, *size)) > MANY:
                return
            made = self.add("Conv", [v.name, weight, *bias], (v.shape[0], out, *size), pads=[int(pad)] * 4, group=group)
            if self.chance(0.3):
                self._batch_norm(made)
            if self.chance(0.3):
                v = made

    def gelu(self) -> None:
        """In pieces, as older exporters write it."""
        v = self.pick(lambda v: v.rank > 0)
        if v is None:
            return
        divided = self.add("Div", [v.name, self.const(np.array(2**0.5))], v.shape, keep=False)
        raised = self.add(
            "Add", [self.add("Erf", [divided.name], v.shape, keep=False).name, self.const(np.array(1.0))], v.shape, keep=False
        )
        product = self.add("Mul", [v.name, raised.name], v.shape, keep=self.chance(0.2))
        self.add("Mul", [product.name, self.const(np.array(0.5))], v.shape)

    def norm(self) -> None:
        v = self.pick(lambda v: v.rank >= 2 and v.shape[1] != "N" and v.shape[-1] != "N")
        if v is None:
            return
        k = v.shape[-1]
        if self.chance(0.5):
            self._batch_norm(v)
        elif self.chance(0.3):
            self._rms_norm(v)
        else:
            scale, bias = self.const(self.numbers.uniform(0.5, 2, k)), self.const(self.numbers.uniform(0.5, 2, k))
            self.add("LayerNormalization", [v.name, scale, bias], v.shape, axis=-1, epsilon=0.1)

    def _rms_norm(self, v: Value) -> None:
        """In pieces; now and then over another axis, without a scale, or with readers of what is in between."""
        axis, rows = (v.rank - 1, [*v.shape[:-1], 1]) if self.chance(0.8) else (1, [v.shape[0], 1, *v.shape[2:]])
        squares = self.add("Mul", [v.name, v.name], v.shape, keep=self.chance(0.2))
        mean = self.add("ReduceMean", [squares.name, self.ints(axis)], rows, keep=False)
        root = self.add("Sqrt", [self.add("Add", [mean.name, self.const(np.array(0.1))], rows, keep=False).name], rows, keep=False)
        inverse = self.add("Reciprocal", [root.name], rows, keep=self.chance(0.2))
        normed = self.add("Mul", [v.name, inverse.name], v.shape, keep=self.chance(0.4))
        if self.chance(0.8):
            self.add("Mul", [self.const(self.numbers.uniform(0.5, 2, v.shape[-1])), normed.name], v.shape)

    def _batch_norm(self, v: Value) -> None:
        c = v.shape[1]
        stats = [self.numbers.uniform(0.5, 2, c), self.normal(c), self.normal(c), self.numbers.uniform(0.5, 2, c)]
        self.add("BatchNormalization", [v.name, *map(self.const, stats)], v.shape)

    def softmax(self) -> None:
        v = self.pick(lambda v: v.rank > 0 and v.shape[-1] != "N")
        if v is not None:
            self.add("Softmax", [v.name], v.shape, axis=-1)

    def reduce(self) -> None:
        v = self.pick(lambda v: bool(v.fixed))
        if v is None:
            return
        ones = [i for i in v.fixed if v.shape[i] == 1]
        axes = ones if ones and self.chance(0.6) else self.rng.sample(v.fixed, self.rng.randint(1, len(v.fixed)))
        keep = self.chance(0.5)
        shape = [1 if i in axes else d for i, d in enumerate(v.shape) if keep or i not in axes]
        op = self.rng.choice("ReduceMean ReduceSum ReduceMax ReduceMin".split())
        given = [a - v.rank if self.chance(0.3) else a for a in axes]
        self.add(op, [v.name, self.ints(*given)], shape, keepdims=int(keep))

    def reshape(self) -> None:
        v = self.pick(lambda v: v.rank > 0)
        for _ in range(self.rng.choice((1, 2, 2))):
            made = self._reshaped(v)
            v = v if made is None else made

    def _reshaped(self, v: Value) -> Value | None:
        ones = [i for i, d in enumerate(v.shape) if d == 1]
        kind = self.rng.choice(("same", "zeros", "flat", "computed", "computed", "squeeze", "unsqueeze", "flatten", "back"))
        first = v.shape[:1] == ("N",)
        rest = math.prod(d for d in v.shape if d != "N")
        if kind == "squeeze" and ones:
            shape = [d for i, d in enumerate(v.shape) if i not in ones]
            return self.add("Squeeze", [v.name, self.ints(*ones)], shape, kind=v.kind)
        if kind == "unsqueeze" and v.rank < 5:
            axis = self.rng.randint(0, v.rank)
            shape = [*v.shape[:axis], 1, *v.shape[axis:]]
            return self.add("Unsqueeze", [v.name, self.ints(axis if self.chance(0.6) else axis - v.rank - 1)], shape, kind=v.kind)
        if "N" in v.shape and not first:
            return None
        if kind == "flatten" and first:
            return self.add("Flatten", [v.name], ("N", rest), kind=v.kind, axis=1)
        if kind == "computed":
            shape = self.add("Shape", [v.name], (v.rank,), dtype=INT, kind=WHOLE, keep=False)
            picked = self.add("Gather", [shape.name, self.const(np.array(0))], (), dtype=INT, keep=False)
            whole = self.add("Unsqueeze", [picked.name, self.ints(0)], (1,), dtype=INT, keep=False)
            last = rest if first else rest // v.shape[0]
            target = self.add("Concat", [whole.name, self.ints(self.rng.choice((-1, last)))], (2,), dtype=INT, keep=False, axis=0)
            return self.add("Reshape", [v.name, target.name], (v.shape[0], last), kind=v.kind)
        if kind == "flat":
            return self.add(
                "Reshape",
                [
                    v.name,
                    self.ints(0 if v.rank > 0 and self.chance(0.5) else -1 if first else v.shape[0], rest if first else rest // v.shape[0]),
                ],
                (v.shape[0], rest if first else rest // v.shape[0]),
                kind=v.kind,
            )
        if kind == "back" and rest % 2 == 0:
            return self.add(
                "Reshape",
                [v.name, self.ints(*([-1] if first else []), 2, rest // 2)],
                (*(["N"] if first else []), 2, rest // 2),
                kind=v.kind,
            )
        target = [0 if (kind == "zeros" or d == "N") and self.chance(0.6) else -1 if d == "N" else d for d in v.shape]
        return self.add("Reshape", [v.name, self.ints(*target)], v.shape, kind=v.kind)

    def transpose(self) -> None:
        v = self.pick(lambda v: v.rank >= 2)
        if v is None:
            return
        for _ in range(self.rng.choice((1, 2))):
            perm = list(range(v.rank))
            if self.chance(0.75):
                self.rng.shuffle(perm)
            v = self.add("Transpose", [v.name], [v.shape[p] for p in perm], kind=v.kind, perm=perm)
        if self.chance(0.4):
            back = [int(i) for i in np.argsort(perm)]
            self.add("Transpose", [v.name], [v.shape[p] for p in back], kind=v.kind, perm=back)

    def slices(self) -> None:
        v = self.pick(lambda v: v.rank > 0)
        for _ in range(self.rng.choice((1, 2))):
            axis = self.rng.randrange(v.rank)
            size = v.shape[axis]
            start, end, step, result = 0, (1 << 63) - 1, 1, size
            how = self.rng.choice(("whole", "part", "back", "shape"))
            if size != "N" and how == "part" and size > 1:
                start, end = sorted(self.rng.sample(range(size + 1), 2))
                result = end - start
                start, end = (start - size if self.chance(0.3) else start), (end - size if self.chance(0.3) and end < size else end)
            elif size != "N" and how == "back":
                start, end, step = -1, -(1 << 63) + 1, -1
            elif size != "N" and how == "whole":
                end = self.rng.choice((size, size + 3, end))
            stop = self.ints(end)
            if how == "shape":
                shape = self.add("Shape", [v.name], (v.rank,), dtype=INT, keep=False)
                stop = self.add("Gather", [shape.name, self.ints(axis)], (1,), dtype=INT, keep=False).name
            given = axis - v.rank if self.chance(0.3) else axis
            inputs = [v.name, self.ints(start), stop, self.ints(given)]
            if step != 1 or self.chance(0.5):
                inputs.append(self.ints(step))
            v = self.add("Slice", inputs, [result if i == axis else d for i, d in enumerate(v.shape)], kind=v.kind)

    def pad(self) -> None:
        v = self.pick(lambda v: v.rank > 0)
        pads = np.zeros((2, v.rank), np.int64)
        if self.chance(0.5):
            for i in v.fixed:
                pads[:, i] = self.rng.choice(((0, 0), (1, 1), (0, 1)))
        shape = [d if d == "N" else d + int(pads[:, i].sum()) for i, d in enumerate(v.shape)]
        if self.size(shape) <= MANY:
            self.add("Pad", [v.name, self.const(pads.ravel())], shape, kind=MIXED if pads.any() else v.kind)

    def concat(self) -> None:
        v = self.pick(lambda v: bool(v.fixed))
        if v is None:
            return
        axis, count = self.rng.choice(v.fixed), self.rng.choice((1, 2))
        others = [o.name for o in self.values if o.shape == v.shape and o.dtype == FLOAT][: count - 1]
        if self.size(v.shape) * (1 + len(others)) <= MANY:
            shape = [d * (1 + len(others)) if i == axis else d for i, d in enumerate(v.shape)]
            self.add("Concat", [v.name, *others], shape, axis=axis, kind=MIXED if others else v.kind)

    def split(self) -> None:
        v = self.pick(lambda v: bool(v.fixed))
        if v is None:
            return
        axis = self.rng.choice(v.fixed)
        count = 2 if v.shape[axis] % 2 == 0 and self.chance(0.6) else 1
        shape = tuple(d // count if i == axis else d for i, d in enumerate(v.shape))
        made = [Value(self.name("v"), FLOAT, shape, v.kind) for _ in range(count)]
        self.nodes.append(
            helper.make_node("Split", [v.name], [m.name for m in made], name=self.name("split"), axis=axis, num_outputs=count)
        )
        self.values += made

    def expand(self) -> None:
        v = self.pick(lambda v: v.rank > 0)
        if self.chance(0.3):
            shape = self.add("Shape", [v.name], (v.rank,), dtype=INT, keep=False)
            self.add("Expand", [v.name, shape.name], v.shape, kind=v.kind)
            return
        wider = [2 if d == 1 and self.chance(0.4) else d for d in v.shape]
        target = [1 if d == "N" or (d == e and self.chance(0.3)) else d for d, e in zip(wider, v.shape, strict=True)]
        if self.chance(0.2) and target[0] == 1:
            target = target[1:]
        if self.size(wider) <= MANY and (len(target) == v.rank or wider[0] == v.shape[0]):
            self.add("Expand", [v.name, self.ints(*target)], wider, kind=v.kind)

    def tile(self) -> None:
        v = self.pick(lambda v: v.rank > 0)
        repeats = [2 if d != "N" and self.chance(0.25) else 1 for d in v.shape]
        shape = [d if d == "N" else d * r for d, r in zip(v.shape, repeats, strict=True)]
        if self.size(shape) <= MANY:
            self.add("Tile", [v.name, self.ints(*repeats)], shape, kind=v.kind)

    def cast(self) -> None:
        v = self.pick()
        how = self.rng.choice(("float", "double", "back", "bool"))
        if how == "float":
            self.add("Cast", [v.name], v.shape, kind=v.kind, to=FLOAT)
        elif how == "double":
            wide = self.add("Cast", [v.name], v.shape, dtype=DOUBLE, keep=False, to=DOUBLE)
            self.add("Cast", [wide.name], v.shape, kind=v.kind, to=FLOAT)
        elif how == "bool" and v.kind != MIXED:
            small = self.add("Cast", [v.name], v.shape, dtype=BOOL, keep=False, to=BOOL)
            self.add("Cast", [small.name], v.shape, kind=WHOLE, to=FLOAT)
        elif v.kind != MIXED:
            number = self.add("Cast", [v.name], v.shape, dtype=INT, kind=WHOLE, to=INT)
            if self.chance(0.5):
                number = self.add("Cast", [number.name], v.shape, dtype=TensorProto.INT32, keep=False, to=TensorProto.INT32)
            self.add("Cast", [number.name], v.shape, kind=WHOLE, to=FLOAT)

    def whole_numbers(self) -> None:
        v = self.pick(dtype=INT)
        if v is None:
            return
        op = self.rng.choice("Add Mul Sub Neg Abs".split())
        if op in ("Neg", "Abs"):
            self.add(op, [v.name], v.shape, dtype=INT, kind=WHOLE)
        else:
            self.add(op, [v.name, self.const(np.array(self.rng.choice((0, 1, 2))))], v.shape, dtype=INT, kind=WHOLE)

    def where(self) -> None:
        v = self.pick(lambda v: v.rank > 0)
        others = [o for o in self.values if o.shape == v.shape and o.dtype == FLOAT]
        other = self.rng.choice(others)
        if v.kind != CONTINUOUS or self.chance(0.6):
            shape = [1 if d == "N" else d for d in v.shape]
            mask = self.numbers.random(shape) < self.rng.choice((0.0, 0.5, 1.1))
            condition = self.const(mask)
        else:
            above = self.add(self.rng.choice(("Greater", "Less")), [v.name, self.const(np.array(0.0137))], v.shape, dtype=BOOL)
            for _ in range(self.rng.choice((0, 1, 2))):
                above = self.add("Not", [above.name], v.shape, dtype=BOOL)
            if self.chance(0.4):
                above = self.add(
                    self.rng.choice(("And", "Or", "Xor")), [above.name, self.const(np.array(self.chance(0.5)))], v.shape, dtype=BOOL
                )
            condition = above.name
        self.add("Where", [condition, v.name, other.name], v.shape)

    def clip(self) -> None:
        v = self.pick()
        for _ in range(self.rng.choice((1, 2))):
            bounds = [self.const(np.array(b, np.float32)) for b in self.rng.choice(((0.0, 6.0), (-1.0, 1.0), (0.25, 0.5)))]
            v = self.add("Clip", [v.name, *bounds], v.shape)

    def pool(self) -> None:
        v = self.pick(lambda v: v.rank == 4 and all(d != "N" and d >= 2 for d in v.shape[2:]) and v.shape[1] != "N")
        if v is None:
            return
        kernel = self.rng.choice((1, 2))
        shape = (*v.shape[:2], *(d - kernel + 1 for d in v.shape[2:]))
        self.add(self.rng.choice(("MaxPool", "AveragePool")), [v.name], shape, kernel_shape=[kernel] * 2, strides=[1, 1])

    def branch(self) -> None:
        if self.outer is not None and self.outer.outer is not None:
            return
        v = self.pick(lambda v: v.rank > 0)
        how = self.rng.choice(("constant", "shape", "computed"))
        if how == "constant" or (how == "computed" and v.kind != CONTINUOUS):
            condition = self.const(np.array(self.chance(0.5)))
        elif how == "shape":
            shape = self.add("Shape", [v.name], (v.rank,), dtype=INT, keep=False)
            size = self.add("Gather", [shape.name, self.const(np.array(self.rng.randrange(v.rank)))], (), dtype=INT, keep=False)
            condition = self.add("Equal", [size.name, self.const(np.array(self.rng.choice((1, 3, 4))))], (), dtype=BOOL, keep=False).name
        else:
            top = self.add("ReduceMax", [v.name], (), keepdims=0, keep=False)
            condition = self.add("Greater", [top.name, self.const(np.array(0.5137))], (), dtype=BOOL, keep=False).name
        graphs = []
        for which in ("then", "else"):
            inner = Maker(self.rng, self)
            for _ in range(self.rng.choice((1, 2, 3))):
                inner.grow(
                    ("unary", "constant_binary", "binary", "reshape", "transpose", "where", *(("branch",) if self.chance(0.2) else ()))
                )
            end = [i for i in inner.values if i.dtype == FLOAT and i.shape == v.shape]
            late = [i for i in end if i not in self.values]
            last = self.rng.choice(late or end)
            outs = [inner.add("Identity" if self.chance(0.5) else "Relu", [last.name], v.shape, keep=False)]
            infos = [helper.make_tensor_value_info(o.name, FLOAT, v.shape) for o in outs]
            graphs.append(helper.make_graph(inner.nodes, which, [], infos))
        self.add("If", [condition], v.shape, then_branch=graphs[0], else_branch=graphs[1])

    def size(self, shape) -> int:
        return math.prod(3 if d == "N" else d for d in shape)


STEPS = (
    "unary unary constant_binary constant_binary constant_binary binary binary variadic linear linear conv conv conv norm gelu softmax reduce reduce "
    "reshape reshape transpose transpose slices slices pad concat split expand tile cast whole_numbers where clip pool branch".split()
)


def random_graph(rng: random.Random) -> onnx.ModelProto:
    """A valid model of 5 to about 20 nodes, opset 21, IR 10, batch N dynamic where an input has one."""
    maker = Maker(rng)
    inputs = [Value(f"x{i}", FLOAT, tuple(rng.choice(SHAPES[:4] if i == 0 else SHAPES))) for i in range(rng.choice((1, 1, 2, 3)))]
    maker.values += inputs
    target = rng.randint(5, 13)
    while len(maker.nodes) < target:
        maker.grow()
    made = [v for v in maker.values if v not in inputs]
    read = {name for node in maker.nodes for name in node.input}
    leaves = [v for v in made if v.name not in read]
    outputs = [made[-1], *rng.sample(leaves, min(len(leaves), 4)), *rng.sample(made, min(len(made), rng.choice((0, 0, 1))))]
    if rng.random() < 0.1:
        outputs.append(rng.choice(inputs))
    infos = [helper.make_tensor_value_info(v.name, v.dtype, v.shape) for v in dict.fromkeys(outputs)]
    graph = helper.make_graph(
        maker.nodes, "random", [helper.make_tensor_value_info(v.name, v.dtype, v.shape) for v in inputs], infos, maker.weights
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def graphs() -> st.SearchStrategy[onnx.ModelProto]:
    """The same as a Hypothesis strategy: each choice is drawn, so a failing graph shrinks."""
    return st.randoms(use_true_random=False).map(random_graph)


# --- what every pass must do with every graph

PASSES = tuple(row for row in plan.TECHNIQUES if row.folder == "passes" and row.name != "to_float16")
ALLOWED = {Effect.EQUIVALENT: check.BITS, Effect.ROUNDING: check.FLOAT32}


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Settings of a pass that does what every pass does at its end: it removes what nothing reads."""


def check_passes(proto: onnx.ModelProto, passes: Sequence[Row] = PASSES) -> Counter[str]:
    """Put the graph through each pass alone and through all in a row; which of them changed it. Raises AssertionError, naming the pass.

    Each result is valid, has the same inputs and outputs in their order, computes the same within what the effect allows, and a second run changes
    nothing.
    """
    model = from_proto(proto)
    cut = finish(model, model.edit(), Nothing(), "nothing", 0, [])
    before = fingerprint(cut)
    feeds = [check.random_feeds(model, size, seed=size) for size in check.SIZES]
    oracle = check.oracle(model)
    try:
        expected = [oracle.run(None, feed) for feed in feeds]
    except Exception:  # noqa: BLE001 - of each thousand, one has an If for which onnxruntime frees a value too early
        return Counter({"not run by the oracle": 1})
    fired: Counter[str] = Counter()
    chain = model
    for row in passes:
        made = row.apply(model, row.settings(), None)
        if (after := fingerprint(made)) == before:
            continue
        fired[row.name] += 1
        _check_result(row.name, ALLOWED[row.effect], model, made, feeds, expected)
        again = row.apply(made, row.settings(), None)
        assert fingerprint(again) == after, f"{row.name}: a second run changes the graph"
    for row in passes:
        chain = row.apply(chain, row.settings(), None)
    if fingerprint(chain) != before:
        _check_result("all in a row", check.FLOAT32, model, chain, feeds, expected)
    fired["nodes before"] = sum(1 for _ in all_nodes(model.ir.graph))
    fired["nodes after"] = sum(1 for _ in all_nodes(chain.ir.graph))
    return fired


def _check_result(name: str, within: check.Tolerance, model: Model, made: Model, feeds, expected) -> None:
    assert (made.inputs, [o.name for o in made.outputs]) == (model.inputs, [o.name for o in model.outputs]), (
        f"{name}: inputs or outputs changed"
    )
    try:
        check.legal(made)
        onnx.checker.check_model(made.to_bytes(), full_check=True)
        session = check.oracle(made)
        found = [session.run(None, feed) for feed in feeds]
    except Exception as e:
        raise AssertionError(f"{name}: what it makes is not valid: {type(e).__name__}: {e}") from e
    for one, other in zip(expected, found, strict=True):
        for port, a, b in zip(model.outputs, one, other, strict=True):
            agree(f"{name}: output {port.name}", a, b, within)


def agree(what: str, expected: np.ndarray, found: np.ndarray, within: check.Tolerance) -> None:
    """As `check.same`, but an output smaller than 1 is measured against 1: random graphs subtract a value from itself."""
    assert (expected.shape, expected.dtype) == (found.shape, found.dtype), (
        f"{what} is {found.dtype}{found.shape}, expected {expected.dtype}{expected.shape}"
    )
    if expected.dtype.kind != "f" or within is check.BITS:
        assert np.array_equal(expected, found, equal_nan=expected.dtype.kind == "f"), f"{what} differs by up to {_gap(expected, found):g}"
        return
    assert np.array_equal(np.isfinite(expected), np.isfinite(found)), f"{what}: NaN or infinite in other places"
    scale = max(1.0, float(np.max(np.abs(expected), initial=0.0, where=np.isfinite(expected))))
    assert _gap(expected, found) <= within.relative * scale, f"{what} differs by {_gap(expected, found):g} at a scale of {scale:g}"


def _gap(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    return float(np.max(np.abs(a - b), initial=0.0, where=finite))


def fingerprint(model: Model) -> bytes:
    """The graph without history and without the shapes noted for values inside."""
    proto = ir.to_proto(model.ir)

    def strip(graph: onnx.GraphProto) -> None:
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    strip(attribute.g)

    strip(proto.graph)
    del proto.metadata_props[:]
    return proto.SerializeToString(deterministic=True)
