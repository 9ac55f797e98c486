"""Between tensors and Python values: element types, the numbers that a burnt-in input holds, arrays of onnx_ir as tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

DTYPES: dict[int, Any] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    4: torch.uint16,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    12: torch.uint32,
    13: torch.uint64,
    16: torch.bfloat16,
    21: torch.uint8,
    22: torch.int8,
}
"""ONNX's element types as torch's. A code of 4 bits is held in a whole byte."""

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.BFLOAT16)
"""The element types that a gradient flows through."""


def ints(value: Any) -> tuple[int, ...]:
    """Whole numbers from a burnt-in tuple or number, or from a tensor that was computed (which is slower and breaks a compiled graph)."""
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def number(value: Any) -> Any:
    """The one number that a burnt-in value or a tensor holds."""
    if isinstance(value, torch.Tensor):
        return value.item() if value.ndim == 0 else value.reshape(()).item()
    return value[0] if isinstance(value, (tuple, list)) else value


def floats(value: Any) -> tuple[float, ...]:
    """As `ints`, for scales."""
    return ints(value)


def tensor_of(value: Any, dtype: Any, beside: Any = None) -> Any:
    """A tensor from a number or a tuple of numbers, for an operator that needs one, on the device of the tensor `beside`."""
    return torch.tensor(value, dtype=dtype, device=None if beside is None else beside.device)


def to_tensor(tensor: ir.TensorProtocol) -> Any:
    """The tensor's own copy of an onnx_ir tensor. Raises KeyError for an element type that torch can't hold."""
    dtype = DTYPES[tensor.dtype.value]
    array = np.asarray(tensor.numpy())
    if tensor.dtype == ir.DataType.BFLOAT16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if tensor.dtype in (ir.DataType.INT4, ir.DataType.UINT4):
        array = array.astype(np.int8 if tensor.dtype == ir.DataType.INT4 else np.uint8)
    return torch.from_numpy(np.array(array, order="C")).to(dtype)


def to_array(tensor: Any, dtype: ir.DataType) -> Any:
    """A read-only numpy array of that ONNX type."""
    found = tensor.detach().cpu()
    array = found.float().numpy() if found.dtype == torch.bfloat16 else found.numpy()
    array = np.array(array, dtype=dtype.numpy(), order="C")
    array.flags.writeable = False
    return array
