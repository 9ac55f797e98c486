"""The rule of each operator on floats: RULES is the whole list."""

from __future__ import annotations

from hasten.lower import axes, float_layers, float_numbers
from hasten.lower import float_ops as ops
from hasten.lower.walk import Rules

RULES: Rules = {
    "Conv": float_layers.conv,
    "ConvTranspose": float_layers.conv_transpose,
    "Resize": float_layers.resize,
    "Gemm": float_layers.gemm,
    "MatMul": float_layers.gemm,
    "BatchNormalization": float_layers.batch_norm,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"), float_layers.pool),
    **dict.fromkeys(float_numbers.REPEAT, float_numbers.elementwise),
    **dict.fromkeys(("Relu", "Clip", "LeakyRelu", "Elu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish"), float_numbers.activation),
    **dict.fromkeys(("Tanh", "Erf", "Abs", "Neg", "Exp", "Sqrt"), float_numbers.activation),
    **dict.fromkeys(ops.REDUCTIONS, float_numbers.reduce),
    "Softmax": float_numbers.softmax,
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), float_layers.norm),
    **dict.fromkeys(("com.microsoft::SkipLayerNormalization", "com.microsoft::SkipSimplifiedLayerNormalization"), float_layers.norm),
    "com.microsoft::MultiHeadAttention": float_layers.attention,
    "Gather": float_layers.gather,
    "Split": axes.split,
    "Pow": float_numbers.power,
    "Reciprocal": float_numbers.reciprocal,
    "Cast": axes.cast,
    "Shape": axes.sizes,
    "Expand": axes.expand,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout"), axes.reshape),
    "Transpose": axes.transpose,
    "Pad": axes.pad,
    "Concat": axes.concat,
    "Slice": axes.slices,
}
