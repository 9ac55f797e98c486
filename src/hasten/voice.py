"""Voice: what a long job tells while it works. The one that listens is set around the job; the code deep inside asks for `voice()`.

Without one, nothing is said. `report/lines.py` prints plain lines, `report/live.py` keeps a table and a bar on a terminal.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator


class Voice:
    """The silent voice, and what every other one has."""

    def say(self, line: str) -> None:
        """A sentence that everybody should read."""

    def detail(self, line: str) -> None:
        """A sentence for those who asked for more (-v)."""

    def step(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of a stage are done; the last call of a stage has them equal."""

    def candidate(
        self,
        name: str,
        seconds: float | None = None,
        speed: float | None = None,
        judged: tuple[str, float] | None = None,
        note: str = "",
    ) -> None:
        """What is now known of a candidate: seconds a call, times faster than the baseline, the metric's name and value, a remark."""


class Told(Voice):
    """Sentences go to a function; the rest is not said. For those who call hasten from Python."""

    def __init__(self, function: Callable[[str], None]) -> None:
        self._function = function

    def say(self, line: str) -> None:
        self._function(line)


_current: contextvars.ContextVar[Voice | None] = contextvars.ContextVar("hasten.voice", default=None)
_SILENT = Voice()


def voice() -> Voice:
    """The voice that listens now."""
    return _current.get() or _SILENT


@contextlib.contextmanager
def speaking(to: Voice) -> Iterator[Voice]:
    """Within this block `voice()` is `to`."""
    before = _current.set(to)
    try:
        yield to
    finally:
        _current.reset(before)
