"""Lines: the voice where there is no terminal. Plain lines, each written at once; after ten silent seconds the stage says where it stands."""

from __future__ import annotations

import sys
import time

from hasten.report.numbers import seconds as spelled
from hasten.voice import Voice

EVERY = 10.0
"""Seconds of silence after which a stage says where it stands."""


class Lines(Voice):
    """Sentences, candidates and, now and then, stages, on standard output; details with `verbose`."""

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._began: dict[str, float] = {}
        self._told = time.monotonic()

    def say(self, line: str) -> None:
        self._told = time.monotonic()
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def detail(self, line: str) -> None:
        if self._verbose:
            self.say(line)

    def step(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if done >= total:
            del self._began[what]
        if now - self._told < EVERY or done >= total:
            return
        self._told = now
        left = f", about {spelled((now - began) / done * (total - done))} left" if done else ""
        self.say(f"{what}: {done} of {total}{left}")

    def candidate(
        self,
        name: str,
        seconds: float | None = None,
        speed: float | None = None,
        judged: tuple[str, float] | None = None,
        note: str = "",
    ) -> None:
        facts = [
            spelled(seconds) if seconds is not None else "",
            f"(× {speed:.2f})" if speed is not None else "",
            f"{judged[0]} {judged[1]:.4f}" if judged is not None else "",
            note,
        ]
        self.say(f"  {name:42} {' '.join(f for f in facts if f)}".rstrip())
