"""OPERATORS: what the executor can run, operator → function. A literal table; a row of another domain is called `domain::operator`.

Each function takes tensors (None for an input left out) and gives a tensor, or a tuple of tensors where `many` says so. Attributes are
keyword arguments by their ONNX names. Inputs at `burnt` positions arrive as Python values where they are constant (a number or a tuple).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from hasten.learn import elementwise as e
from hasten.learn import movement as m
from hasten.learn import quantized as q
from hasten.learn import recurrent, shapes
from hasten.learn import spatial as s


@dataclasses.dataclass(frozen=True)
class Op:
    """A row.

    run: the function; a class is a module with a state of its own (train or eval mode), made once a node with the attributes.
    burnt: positions whose constants (rank 0 or 1) arrive as Python values. places: the same, for a single number only.
    fixed: positions whose weights are not trained. state: positions of weights that are state, kept by `Executor.buffers`.
    idle: positions where a constant of zeros does nothing and is left out (a bias that an exporter made up).
    many: the function takes `outputs`, how many are wanted, and gives a tuple.
    typed: the keyword that gets the element type of the first output, where the node has no such attribute.
    shapes: the same operator on shapes in Python (`shapes.py`), used where what comes in is one.
    gradient: whether a gradient flows through it. since: the least opset that has it.
    """

    run: Callable[..., Any]
    burnt: tuple[int, ...] = ()
    places: tuple[int, ...] = ()
    fixed: tuple[int, ...] = ()
    state: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()
    many: bool = False
    typed: str | None = None
    shapes: Callable[..., Any] | None = None
    gradient: bool = True
    since: int = 1

    @property
    def is_module(self) -> bool:
        return isinstance(self.run, type)


OPERATORS: dict[str, Op] = {
    # value by value
    "Abs": Op(torch.abs),
    "Acos": Op(torch.acos),
    "Acosh": Op(torch.acosh),
    "Add": Op(torch.add, shapes=shapes.add),
    "And": Op(torch.logical_and, gradient=False),
    "Asin": Op(torch.asin),
    "Asinh": Op(torch.asinh),
    "Atan": Op(torch.atan),
    "Atanh": Op(torch.atanh),
    "BitShift": Op(e.shift, gradient=False),
    "BitwiseAnd": Op(torch.bitwise_and, gradient=False),
    "BitwiseNot": Op(torch.bitwise_not, gradient=False),
    "BitwiseOr": Op(torch.bitwise_or, gradient=False),
    "BitwiseXor": Op(torch.bitwise_xor, gradient=False),
    "Cast": Op(e.cast, shapes=shapes.cast),
    "CastLike": Op(e.cast_like, typed="to"),
    "Ceil": Op(torch.ceil),
    "Celu": Op(e.celu),
    "Clip": Op(e.clip, burnt=(1, 2)),
    "Cos": Op(torch.cos),
    "Cosh": Op(torch.cosh),
    "CumSum": Op(e.cumulative_sum, burnt=(1,)),
    "Div": Op(e.divide, shapes=shapes.div),
    "Elu": Op(e.elu),
    "Equal": Op(torch.eq, shapes=shapes.equal, gradient=False),
    "Erf": Op(torch.erf),
    "Exp": Op(torch.exp),
    "Floor": Op(torch.floor),
    "Gelu": Op(e.gelu, since=20),
    "Greater": Op(torch.gt, shapes=shapes.greater, gradient=False),
    "GreaterOrEqual": Op(torch.ge, gradient=False),
    "HardSigmoid": Op(e.hard_sigmoid),
    "HardSwish": Op(F.hardswish),
    "Hardmax": Op(e.hardmax, gradient=False),
    "Identity": Op(e.identity, shapes=shapes.identity),
    "IsInf": Op(e.is_inf, gradient=False),
    "IsNaN": Op(torch.isnan, gradient=False),
    "LeakyRelu": Op(e.leaky_relu),
    "Less": Op(torch.lt, shapes=shapes.less, gradient=False),
    "LessOrEqual": Op(torch.le, gradient=False),
    "Log": Op(torch.log),
    "LogSoftmax": Op(e.log_softmax),
    "Max": Op(e.maximum, shapes=shapes.maximum),
    "Mean": Op(e.average),
    "Min": Op(e.minimum, shapes=shapes.minimum),
    "Mish": Op(F.mish),
    "Mod": Op(e.modulo, shapes=shapes.mod),
    "Mul": Op(torch.mul, shapes=shapes.mul),
    "Neg": Op(torch.neg, shapes=shapes.neg),
    "Not": Op(torch.logical_not, gradient=False),
    "Or": Op(torch.logical_or, gradient=False),
    "PRelu": Op(e.prelu),
    "Pow": Op(e.power, places=(1,)),
    "Reciprocal": Op(torch.reciprocal),
    "Relu": Op(torch.relu),
    "Round": Op(torch.round),
    "Selu": Op(e.selu),
    "Shrink": Op(e.shrink),
    "Sigmoid": Op(torch.sigmoid),
    "Sign": Op(torch.sign),
    "Sin": Op(torch.sin),
    "Sinh": Op(torch.sinh),
    "Softmax": Op(e.softmax),
    "Softplus": Op(F.softplus),
    "Softsign": Op(F.softsign),
    "Sqrt": Op(torch.sqrt),
    "Sub": Op(torch.sub, shapes=shapes.sub),
    "Sum": Op(e.total),
    "Tan": Op(torch.tan),
    "Tanh": Op(torch.tanh),
    "ThresholdedRelu": Op(e.thresholded_relu),
    "Where": Op(torch.where, shapes=shapes.where),
    "Xor": Op(torch.logical_xor, gradient=False),
    # reductions
    "ArgMax": Op(e.argmax, gradient=False),
    "ArgMin": Op(e.argmin, gradient=False),
    "ReduceL1": Op(e.reduce_l1, burnt=(1,)),
    "ReduceL2": Op(e.reduce_l2, burnt=(1,)),
    "ReduceLogSum": Op(e.reduce_log_sum, burnt=(1,)),
    "ReduceLogSumExp": Op(e.reduce_log_sum_exp, burnt=(1,)),
    "ReduceMax": Op(e.reduce_max, burnt=(1,)),
    "ReduceMean": Op(e.reduce_mean, burnt=(1,)),
    "ReduceMin": Op(e.reduce_min, burnt=(1,)),
    "ReduceProd": Op(e.reduce_prod, burnt=(1,), shapes=shapes.product),
    "ReduceSum": Op(e.reduce_sum, burnt=(1,)),
    "ReduceSumSquare": Op(e.reduce_sum_square, burnt=(1,)),
    # moving, cutting, joining, making
    "Compress": Op(m.compress),
    "Concat": Op(m.concat, shapes=shapes.concat),
    "ConstantOfShape": Op(m.constant_of_shape, burnt=(0,), shapes=shapes.constant_of_shape, gradient=False),
    "DepthToSpace": Op(m.depth_to_space),
    "Expand": Op(m.expand, burnt=(1,)),
    "EyeLike": Op(m.eye_like, gradient=False),
    "Flatten": Op(m.flatten),
    "Gather": Op(m.gather, places=(1,), shapes=shapes.gather),
    "GatherElements": Op(m.gather_elements),
    "GatherND": Op(m.gather_nd),
    "NonZero": Op(m.non_zero, gradient=False),
    "OneHot": Op(m.one_hot, burnt=(1,)),
    "Pad": Op(m.pad, burnt=(1, 2, 3)),
    "Range": Op(m.arange, burnt=(0, 1, 2), typed="dtype", gradient=False),
    "Reshape": Op(m.reshape, burnt=(1,), shapes=shapes.reshape),
    "ReverseSequence": Op(m.reverse_sequence),
    "ScatterElements": Op(m.scatter_elements),
    "ScatterND": Op(m.scatter_nd),
    "Shape": Op(m.shape, shapes=shapes.shape, gradient=False),
    "Size": Op(m.size, shapes=shapes.size, gradient=False),
    "Slice": Op(m.cut, burnt=(1, 2, 3, 4), shapes=shapes.cut),
    "SpaceToDepth": Op(m.space_to_depth),
    "Split": Op(m.split, burnt=(1,), many=True),
    "Squeeze": Op(m.squeeze, burnt=(1,), shapes=shapes.squeeze),
    "Tile": Op(m.tile, burnt=(1,)),
    "TopK": Op(m.top_k, burnt=(1,), many=True),
    "Transpose": Op(m.transpose),
    "Trilu": Op(m.triangle, burnt=(1,)),
    "Unsqueeze": Op(m.unsqueeze, burnt=(1,), shapes=shapes.unsqueeze),
    # products, windows, normalization
    "AveragePool": Op(s.average_pool),
    "BatchNormalization": Op(s.BatchNorm, state=(3, 4), many=True),
    "Conv": Op(s.conv, idle=(2,)),
    "ConvTranspose": Op(s.conv_transpose, idle=(2,)),
    "Det": Op(torch.linalg.det),
    "Dropout": Op(s.Dropout, burnt=(1, 2), many=True),
    "Einsum": Op(s.einsum),
    "Gemm": Op(s.gemm),
    "GlobalAveragePool": Op(s.global_average_pool),
    "GlobalMaxPool": Op(s.global_max_pool),
    "GridSample": Op(s.grid_sample),
    "GroupNormalization": Op(s.group_norm, since=18),
    "InstanceNormalization": Op(s.instance_norm),
    "LRN": Op(s.local_response_norm),
    "LayerNormalization": Op(s.layer_norm, many=True, since=17),
    "LpNormalization": Op(s.lp_norm),
    "LpPool": Op(s.lp_pool),
    "MatMul": Op(torch.matmul),
    "MaxPool": Op(s.max_pool, many=True),
    "MeanVarianceNormalization": Op(s.mean_variance_norm),
    "Resize": Op(s.resize, burnt=(1, 2, 3)),
    # recurrent
    "GRU": Op(recurrent.gru, many=True),
    "LSTM": Op(recurrent.lstm, many=True),
    "RNN": Op(recurrent.rnn, many=True),
    # quantized
    "ConvInteger": Op(q.conv_integer, gradient=False),
    "DequantizeLinear": Op(q.dequantize, fixed=(1,)),
    "DynamicQuantizeLinear": Op(q.dynamic_quantize, many=True, gradient=False),
    "MatMulInteger": Op(q.matmul_integer, gradient=False),
    "QuantizeLinear": Op(q.quantize, fixed=(1,), typed="output_dtype", gradient=False),
}
