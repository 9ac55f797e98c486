"""What a call of the native engine costs beside its kernels: a Relu on 16 numbers, by an engine that does nothing else.

make native && python tools/time_binding.py
"""

import sys
import timeit
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "build" / "native" / "echo"))
import _native

CALLS, ROUNDS = 200_000, 7


class Session:
    """As thin as a runtime's session can be."""

    def __init__(self, model: _native.Model) -> None:
        self._model = model

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return self._model.run(feeds)


def main() -> None:
    plan = "input x 1 -1 16\noutput y 1 -1 16\n"
    brief, long = (_native.Model.from_bytes(f"{plan}weights {size}\n".encode()) for size in (0, 1 << 20))
    x = np.random.default_rng(0).standard_normal((1, 16)).astype(np.float32)
    names = {"brief": brief, "long": long, "session": Session(brief), "x": x, "feeds": {"x": x}, "arrays": [x], "np": np}
    for what, call in (
        ("run", "brief.run(feeds)"),
        ("run, Python's lock released", "long.run(feeds)"),
        ("run_list", "brief.run_list(arrays)"),
        ("Session.run", "session.run(feeds)"),
        ("Session.run, its dict made", "session.run({'x': x})"),
        ("numpy.empty, for comparison", "np.empty((1, 16), np.float32)"),
    ):
        best = min(timeit.repeat(call, number=CALLS, repeat=ROUNDS, globals=names)) / CALLS
        print(f"{what:30}{best * 1e9:6.0f} ns")


if __name__ == "__main__":
    main()
