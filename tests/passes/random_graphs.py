"""Random valid ONNX graphs for the passes: operators of many kinds, with what passes look for (neutral constants, chains, duplicates) put in often.

Some stand in bodies, as deep as DEEPEST: branches of an If, turns of a Loop, steps of a Scan, local functions, each of the same operators.

`random_graph(rng)` makes one from a `random.Random`; `graphs()` is the Hypothesis strategy, which can shrink; `tools/random_graphs.py` runs many.
Numbers stay tame (no division by what may be zero), and steps (Floor, comparisons) read only what is nowhere whole by construction: elsewhere
the last digit of a rounding pass would decide.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hasten import check, plan
from hasten.doors.onnx import from_proto
from hasten.graph import finish
from hasten.model import Model, all_graphs, all_nodes, subgraphs
from hasten.plan import Effect
from hasten.simplify import passes, simplify

FLOAT, INT, BOOL, DOUBLE = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE
SHAPES = (["N", 4], ["N", 3, 4], ["N", 2, 5, 5], ["N", 4, 1, 1], [2, 3], [1, 4], [3, 1, 2], ["N", 6], [4])
MANY = 400
"""Elements at most of a value, for N = 3."""

DOMAIN = "random"
"""Of local functions."""

Setting = float | int | list[int]

DEEPEST = 2
"""Bodies within bodies."""

BOUNDED = ("Tanh", "Sigmoid")
"""What goes from turn to turn must not grow."""

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


@dataclasses.dataclass(frozen=True)
class Function:
    """A local function, and what a call must give. anywhere: it takes any shape, the same for all inputs."""

    proto: onnx.FunctionProto
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    attributes: Mapping[str, Setting]
    anywhere: bool


class Maker:
    """Nodes and constants of one graph while it grows; a body inside of it has a Maker of its own with the same counter."""

    def __init__(self, rng: random.Random, outer: Maker | None = None, inputs: Sequence[Value] = (), closed: bool = False):
        """closed: a function's body, which sees nothing from outside, has no initializers, and whose attributes may be parameters."""
        self.rng, self.outer, self.inputs = rng, outer, list(inputs)
        self.depth = 0 if outer is None else outer.depth + 1
        self.nodes: list[onnx.NodeProto] = []
        self.weights = None if closed else [] if outer is None or self.chance(0.3) else outer.weights
        self.values = [*(() if outer is None or closed else outer.values), *inputs]
        self.parameters: dict[str, Setting] | None = {} if closed else None if outer is None else outer.parameters
        self.functions: list[Function] = [] if outer is None else outer.functions
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
        if self.weights is None or self.chance(0.15):
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
        self.write(operator, inputs, [value], **attributes)
        if keep:
            self.values.append(value)
        return value

    def write(self, operator: str, inputs, outputs: Sequence[Value], **attributes) -> None:
        """One node; what it makes is not yet there to be picked."""
        self.nodes.append(helper.make_node(operator, inputs, [o.name for o in outputs], name=self.name(operator.lower()), **attributes))

    def refer(self, attribute: str, setting: Setting) -> None:
        """Let the last node have its attribute from a new parameter of the function, for which callers give `setting`."""
        assert self.parameters is not None
        name, kind = self.name("p"), helper.make_attribute(attribute, setting).type
        self.parameters[name] = setting
        self.nodes[-1].attribute.append(onnx.AttributeProto(name=attribute, type=kind, ref_attr_name=name))

    def pick(self, test=lambda v: True, dtype=FLOAT) -> Value | None:
        """A value, late ones more often."""
        fit = [v for v in self.values if v.dtype == dtype and test(v)]
        if not fit:
            return None
        return fit[-1] if self.chance(0.5) else self.rng.choice(fit)

    def length(self, v: Value, axis: int) -> Value:
        """The size of an axis, computed."""
        shape = self.add("Shape", [v.name], (v.rank,), dtype=INT, keep=False)
        return self.add("Gather", [shape.name, self.const(np.array(axis))], (), dtype=INT, keep=False)

    # --- bodies

    def body(self, inputs: Sequence[Value] = ()) -> Maker:
        return Maker(self.rng, self, inputs)

    def grown(self, steps: Sequence[str] = ()) -> Maker:
        """This body with a few nodes; `steps`: those of all kinds, or of few."""
        steps = steps or self.rng.choice((INSIDE, INSIDE, STEPS))
        for _ in range(self.rng.choice((1, 2, 3))):
            self.grow(BODIES if steps is not ELEMENTWISE and self.chance(0.2) else steps)
        return self

    def end(self, shape, operators: Sequence[str] = ("Identity", "Relu")) -> Value:
        """An output of the body: a value, one of its own where there is one, through one more node."""
        fit = [i for i in self.values if i.dtype == FLOAT and i.shape == tuple(shape)]
        own = [i for i in fit if self.outer is None or i not in self.outer.values]
        return self.add(self.rng.choice(operators), [self.rng.choice(own or fit).name], shape, keep=False)

    def graph(self, name: str, outputs: Sequence[Value], unsaid: bool = False) -> onnx.GraphProto:
        """What stands here as one graph. unsaid: its inputs and outputs have no shapes, scalars aside."""
        ports = [
            [helper.make_tensor_value_info(v.name, v.dtype, None if unsaid and v.rank else v.shape) for v in vs]
            for vs in (self.inputs, outputs)
        ]
        shared = self.outer is not None and self.weights is self.outer.weights
        return helper.make_graph(self.nodes, name, *ports, [] if shared else self.weights)

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
            v = v if made is None or made.rank == 0 else made

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
        if "N" in v.shape[1:]:
            return None
        if kind == "flatten" and first:
            return self.add("Flatten", [v.name], ("N", rest), kind=v.kind, axis=1)
        if kind == "computed":
            whole = self.add("Unsqueeze", [self.length(v, 0).name, self.ints(0)], (1,), dtype=INT, keep=False)
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
        self.write("Split", [v.name], made, axis=axis, num_outputs=count)
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
        v = self.pick(lambda v: v.rank > 0)
        if self.depth == DEEPEST:
            return
        how = self.rng.choice(("constant", "shape", "computed"))
        if how == "constant" or (how == "computed" and v.kind != CONTINUOUS):
            condition = self.const(np.array(self.chance(0.5)))
        elif how == "shape":
            size = self.length(v, self.rng.randrange(v.rank))
            condition = self.add("Equal", [size.name, self.const(np.array(self.rng.choice((1, 3, 4))))], (), dtype=BOOL, keep=False).name
        else:
            top = self.add("ReduceMax", [v.name], (), keepdims=0, keep=False)
            condition = self.add("Greater", [top.name, self.const(np.array(0.5137))], (), dtype=BOOL, keep=False).name
        graphs = []
        for which in ("then", "else"):
            inner = self.body().grown()
            graphs.append(inner.graph(which, [inner.end(v.shape)], self.chance(0.3)))
        self.add("If", [condition], v.shape, then_branch=graphs[0], else_branch=graphs[1])

    def loop(self) -> None:
        """One or two values that go from turn to turn, and what each turn gives beside them."""
        v = self.pick(lambda v: v.rank > 0)
        if self.depth == DEEPEST:
            return
        given = [v, *([self.pick(lambda o: o.shape == v.shape)] if self.chance(0.4) else [])]
        number, going = Value(self.name("i"), INT, (), WHOLE), Value(self.name("g"), BOOL, (), WHOLE)
        states = [Value(self.name("s"), FLOAT, v.shape, MIXED) for _ in given]
        inner = self.body((number, going, *states))
        if self.chance(0.5):
            inner.add("Cast", [number.name], (), kind=WHOLE, to=FLOAT)
        inner.grown()
        after = [inner.end(v.shape, BOUNDED)]
        after += [inner.end(v.shape, BOUNDED) if self.chance(0.5) else inner.add("Identity", [states[0].name], v.shape) for _ in given[1:]]

        how, turns, count, condition = (
            self.rng.choice(("count", "both", "condition", "length", "never")),
            self.rng.choice((1, 2, 3)),
            "",
            "",
        )
        end = inner.add("Identity", [going.name], (), dtype=BOOL, keep=False)
        if how == "length" and v.shape[0] in ("N", 1, 2, 3):
            turns, count = v.shape[0], self.length(v, 0).name
        elif how == "condition":
            condition = self.const(np.array(True))
            end = inner.add("Less", [number.name, inner.const(np.array(turns - 1))], (), dtype=BOOL, keep=False)
        elif how == "never":
            count, condition = self.rng.choice(((self.const(np.array(0)), ""), (self.const(np.array(2)), self.const(np.array(False)))))
        else:
            count, condition = self.const(np.array(turns)), self.const(np.array(True)) if how == "both" else ""
        each = []
        if how != "never" and self.size((turns, *v.shape)) <= MANY and self.chance(0.6):
            each = [inner.end(v.shape)]
        made = [Value(self.name("v"), FLOAT, shape, MIXED) for shape in [v.shape] * len(given) + [(turns, *v.shape)] * len(each)]
        body = inner.graph("turn", [end, *after, *each], self.chance(0.3))
        self.write("Loop", [count, condition, *(g.name for g in given)], made, body=body)
        self.values += made

    def scan(self) -> None:
        """Along an axis, forward or backward; a state goes along, or none."""
        v = self.pick(lambda v: v.rank >= 2)
        if self.depth == DEEPEST or v is None:
            return
        axis, begin = self.rng.randrange(v.rank), [self.pick()] if self.chance(0.7) else []
        states = [Value(self.name("s"), FLOAT, b.shape, MIXED) for b in begin]
        part = Value(self.name("s"), FLOAT, v.shape[:axis] + v.shape[axis + 1 :], v.kind)
        inner = self.body((*states, part)).grown()
        outputs = [*(inner.end(s.shape, BOUNDED) for s in states), inner.end(part.shape)]
        place = self.rng.randint(0, part.rank)
        shape = (*part.shape[:place], v.shape[axis], *part.shape[place:])
        made = [Value(self.name("v"), FLOAT, s, MIXED) for s in (*(s.shape for s in states), shape)]
        settings = {
            "scan_input_axes": [axis - v.rank if self.chance(0.3) else axis],
            "scan_output_axes": [place - part.rank - 1 if self.chance(0.3) else place],
            "scan_input_directions": [int(self.chance(0.3))],
            "scan_output_directions": [int(self.chance(0.3))],
        }
        self.write("Scan", [*(b.name for b in begin), v.name], made, body=inner.graph("step", outputs), num_scan_inputs=1, **settings)
        self.values += made

    def call(self) -> None:
        """A local function: one that is there already, if values fit, or a new one."""
        v = self.pick(lambda v: v.rank > 0)
        known = [f for f in self.functions if f.anywhere or f.inputs[0].shape == v.shape]
        if known and self.chance(0.6):
            function = self.rng.choice(known)
        elif self.depth < DEEPEST:
            function = self._function(v)
        else:
            return
        given = [v, *(self.pick(lambda o: o.shape == v.shape) for _ in function.inputs[1:])]
        made = [Value(self.name("v"), FLOAT, v.shape if function.anywhere else o.shape, MIXED) for o in function.outputs]
        self.write(function.proto.name, [g.name for g in given], made, domain=DOMAIN)
        for name, setting in function.attributes.items():
            if self.parameters is not None and self.chance(0.5):
                self.refer(name, setting)
            elif name in function.proto.attribute or self.chance(0.5):
                self.nodes[-1].attribute.append(helper.make_attribute(name, setting))
        self.values += made

    def _function(self, like: Value) -> Function:
        """A new function of one or two values of this shape; some of its attributes have defaults."""
        anywhere = self.chance(0.4)
        inputs = [Value(self.name("a"), FLOAT, like.shape, MIXED) for _ in range(self.rng.choice((1, 2)))]
        inner = Maker(self.rng, self, inputs, closed=True).grown(ELEMENTWISE if anywhere else ())
        others = [v for v in inner.values if v not in inputs and v.dtype == FLOAT]
        outputs = [inner.end(like.shape), *self.rng.sample(others, min(len(others), self.rng.choice((0, 0, 1))))]
        attributes = inner.parameters or {}
        defaults = [name for name in attributes if self.chance(0.5)]
        proto = helper.make_function(
            DOMAIN,
            self.name("f"),
            [v.name for v in inputs],
            [v.name for v in outputs],
            inner.nodes,
            [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)],
            [name for name in attributes if name not in defaults],
            [helper.make_attribute(name, attributes[name]) for name in defaults],
            value_info=[]
            if anywhere or self.chance(0.5)
            else [helper.make_tensor_value_info(v.name, v.dtype, v.shape) for v in inner.values],
        )
        self.functions.append(Function(proto, tuple(inputs), tuple(outputs), attributes, anywhere))
        return self.functions[-1]

    def parameter(self) -> None:
        """In a function: nodes whose attributes its caller gives."""
        v = self.pick()
        if self.parameters is None:
            return
        how = self.rng.choice(("LeakyRelu", "Constant", "Softmax", "Transpose"))
        for _ in range(self.rng.choice((1, 2))):
            if how == "Softmax" and v.rank > 0 and v.shape[-1] != "N":
                self.add("Softmax", [v.name], v.shape)
                self.refer("axis", self.rng.choice((-1, v.rank - 1)))
            elif how == "Transpose" and v.rank > 1:
                perm = self.rng.sample(range(v.rank), v.rank)
                self.add("Transpose", [v.name], [v.shape[p] for p in perm])
                self.refer("perm", perm)
            elif how == "Constant":
                number = self.add("Constant", [], (), keep=False)
                self.refer("value_float", self.rng.choice((0.0, 1.0, 0.75)))
                self.add(self.rng.choice(("Add", "Mul")), [v.name, number.name], v.shape)
            else:
                self.add("LeakyRelu", [v.name], v.shape)
                self.refer("alpha", self.rng.choice((0.0, 0.25)))

    def size(self, shape) -> int:
        return math.prod(3 if d == "N" else d for d in shape)


STEPS = (
    "unary unary constant_binary constant_binary constant_binary binary binary variadic linear linear conv conv conv norm gelu softmax reduce reduce "
    "reshape reshape transpose transpose slices slices pad concat split expand tile cast whole_numbers where clip pool branch "
    "loop scan call call".split()
)
INSIDE = ("unary", "constant_binary", "binary", "reshape", "transpose", "where", "parameter")
"""Steps that keep a shape often, so a body has something of its own to give."""

BODIES = ("branch", "loop", "scan", "call")
ELEMENTWISE = ("unary", "binary", "variadic", "gelu", "clip")
"""Steps of a function that takes any shape."""


def random_graph(rng: random.Random) -> onnx.ModelProto:
    """A valid model of 5 to about 20 nodes, opset 21, IR 10, batch N dynamic where an input has one."""
    inputs = [Value(f"x{i}", FLOAT, tuple(rng.choice(SHAPES[:4] if i == 0 else SHAPES))) for i in range(rng.choice((1, 1, 2, 3)))]
    maker = Maker(rng, inputs=inputs)
    target = rng.randint(5, 13)
    while len(maker.nodes) < target or all(v in inputs for v in maker.values):
        maker.grow()
    made = [v for v in maker.values if v not in inputs]
    read = {name for node in maker.nodes for name in node.input}
    leaves = [v for v in made if v.name not in read]
    outputs = [made[-1], *rng.sample(leaves, min(len(leaves), 4)), *rng.sample(made, min(len(made), rng.choice((0, 0, 1))))]
    if rng.random() < 0.1:
        outputs.append(rng.choice(inputs))
    graph = maker.graph("random", list(dict.fromkeys(outputs)))
    opsets = [helper.make_opsetid("", 21), *([helper.make_opsetid(DOMAIN, 1)] if maker.functions else [])]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=[f.proto for f in maker.functions])


def graphs() -> st.SearchStrategy[onnx.ModelProto]:
    """The same as a Hypothesis strategy: each choice is drawn, so a failing graph shrinks."""
    return st.randoms(use_true_random=False).map(random_graph)


# --- what every pass must do with every graph

PASSES = tuple(row for row in plan.TECHNIQUES if row.folder == "passes" and row.name != "to_float16")
FREED = ("Missing Input: ", "Trying to get a TensorSeq, but got: (null)")
"""What onnxruntime says of an If in a valid model where it has freed a value that a branch reads."""
ALLOWED = {Effect.EQUIVALENT: check.BITS, Effect.ROUNDING: check.FLOAT32}


@dataclasses.dataclass(frozen=True)
class Nothing:
    """Settings of a pass that does what every pass does at its end: it removes what nothing reads."""


def check_passes(proto: onnx.ModelProto, whole: bool = False) -> Counter[str]:
    """Put the graph through each pass alone and through all in a row, with `whole` through `simplify` too; which of them changed it. Raises
    AssertionError, naming the pass.

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
    # A step of a Scan writes into its place in the whole, and onnxruntime's kernels round otherwise where memory is not aligned.
    scans = any(node.op_type == "Scan" for body in all_graphs(model.ir) for node in body)
    fired: Counter[str] = Counter()
    chain = model
    for row in PASSES:
        made = row.apply(model, row.settings(), None)
        if (after := fingerprint(made)) == before:
            continue
        fired[row.name] += 1
        fired["run by the reference"] += _check_result(
            row.name, check.FLOAT32 if scans else ALLOWED[row.effect], model, made, feeds, expected
        )
        again = row.apply(made, row.settings(), None)
        assert fingerprint(again) == after, f"{row.name}: a second run changes the graph"
    for row in PASSES:
        chain = row.apply(chain, row.settings(), None)
    if fingerprint(chain) != before:
        fired["run by the reference"] += _check_result("all in a row", check.FLOAT32, model, chain, feeds, expected)
    if whole:
        fired["simplify"] += 1
        simple = simplify(model, passes(), checked=False).model
        fired["run by the reference"] += _check_result("simplify", check.FLOAT32, model, simple, feeds, expected)
        again = simplify(simple, passes(), checked=False).model
        assert fingerprint(again) == fingerprint(simple), "simplify: a second run changes the graph"
    fired["nodes before"] = sum(1 for _ in all_nodes(model.ir.graph))
    fired["nodes after"] = sum(1 for _ in all_nodes(chain.ir.graph))
    return fired


def _check_result(name: str, within: check.Tolerance, model: Model, made: Model, feeds, expected) -> bool:
    """Whether onnx's reference had to compute it, because onnxruntime frees a value too early: it rounds otherwise, within FLOAT32."""
    freed = False
    assert (made.inputs, [o.name for o in made.outputs]) == (model.inputs, [o.name for o in model.outputs]), (
        f"{name}: inputs or outputs changed"
    )
    try:
        check.legal(made)
        check_names(made)
        onnx.checker.check_model(made.to_bytes(), full_check=True)
        session = check.oracle(made)
        try:
            found = [session.run(None, feed) for feed in feeds]
        except Exception as e:
            if not any(text in str(e) for text in FREED):
                raise
            freed, within = True, check.FLOAT32
            found = [ReferenceEvaluator(onnx.load_from_string(made.to_bytes())).run(None, feed) for feed in feeds]
    except Exception as e:
        raise AssertionError(f"{name}: what it makes is not valid: {type(e).__name__}: {e}") from e
    for one, other in zip(expected, found, strict=True):
        for port, a, b in zip(model.outputs, one, other, strict=True):
            agree(f"{name}: output {port.name}", a, b, within)
    return freed


def check_names(model: Model) -> None:
    """ONNX lets no value in a graph have the name of one that is around it; its checker looks at those alone that nodes make."""

    def look(graph: ir.Graph, around: set[str | None]) -> None:
        own = [v.name for v in (*graph.inputs, *graph.initializers.values(), *(o for node in graph for o in node.outputs if o.name))]
        own = list(dict.fromkeys(own)) if graph is model.ir.graph else own  # an initializer may be an input there
        assert len(set(own)) == len(own), f"two values of one graph have one name: {sorted(n for n in own if own.count(n) > 1)}"
        assert not around & set(own), f"values have names of others around them: {around & set(own)}"
        for node in graph:
            for inner in subgraphs(node):
                look(inner, around | set(own))

    for body in (model.ir.graph, *(f.graph for f in model.ir.functions.values())):
        look(body, set())


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

    def strip(graph: onnx.GraphProto | onnx.FunctionProto) -> None:
        del graph.value_info[:]
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    strip(attribute.g)

    for graph in (proto.graph, *proto.functions):
        strip(graph)
    del proto.metadata_props[:]
    return proto.SerializeToString(deterministic=True)
