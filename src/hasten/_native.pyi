"""The native engine, compiled from native/binding.cpp; absent where hasten was installed without a C++ compiler.

What the engine refuses is raised as ValueError (no plan, or against the format's rules; an argument out of range), NotImplementedError (a kernel
that this build or this processor lacks) or MemoryError.
"""

from collections.abc import Mapping, Sequence
from os import PathLike

import numpy as np
from numpy.typing import NDArray

Port = tuple[str, str, tuple[int, ...]]
"""Name, dtype as numpy names it, shape; -1 stands for the batch. (Known to the type checker only.)"""

class Model:
    """A plan, loaded: its kernels chosen for this processor, its memory taken. Calls from several threads wait for each other."""

    @staticmethod
    def load(path: str | PathLike[str], threads: int = 1, max_batch: int = 1) -> Model:
        """From a file, which is mapped and must stay as it is."""
    @staticmethod
    def from_bytes(data: bytes, threads: int = 1, max_batch: int = 1) -> Model: ...
    @property
    def inputs(self) -> tuple[Port, ...]: ...
    @property
    def outputs(self) -> tuple[Port, ...]: ...
    @property
    def threads(self) -> int:
        """Threads that are used: a model too small to share gets one."""
    @property
    def max_batch(self) -> int:
        """The largest batch that it takes; 1 where the batch is fixed in the model."""
    @property
    def steps(self) -> int:
        """Kernels that run one after the other."""
    @property
    def weights(self) -> int:
        """Bytes of constants."""
    @property
    def arena(self) -> int:
        """Bytes of working memory."""
    @property
    def isa(self) -> str:
        """The level that the kernels were chosen for: avx512vnni, avx2vnni, avx2 or scalar."""
    def run(self, feeds: Mapping[str, NDArray[np.generic]], /) -> dict[str, NDArray[np.generic]]:
        """Arrays by name, in and out. An input of another dtype or shape is a ValueError, one that is not contiguous is copied; outputs are new."""
    def run_list(self, arrays: Sequence[NDArray[np.generic]], /) -> list[NDArray[np.generic]]:
        """The same with a list or tuple in the order of `inputs`, to a list in the order of `outputs`."""
    def profile(self, feeds: dict[str, NDArray[np.generic]], calls: int = 1) -> list[tuple[str, float, float]]:
        """(kernel, products of one sample, seconds of all calls) of each step; all threads work on one step after the other."""

def abi() -> int:
    """The version of the C interface."""

def isa() -> str:
    """The level that this processor gets; HASTEN_ISA forces a lower one."""

def peak(types: str) -> float:
    """Operations (a product and a sum are two) on "u8s8", "f32" or "bf16" that one core does in a second when nothing has to be loaded."""
