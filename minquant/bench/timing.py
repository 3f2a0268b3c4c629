"""Contestants in turn: noise, such as other people's work on the machine, meets all of them alike.

A round takes every contestant once, one after the other. Two of them are compared within each round, and the median of
these ratios is the answer: a slow minute slows both, and a disturbance of one round is no median.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Runner", "in_turn", "paired", "settle"]

SAMPLE = 0.002
"""Seconds that a sample takes at least: a shorter call is repeated within it."""

SHORT = 0.02
"""A call shorter than this is preceded by one untimed: the others have pushed its operands out of the caches."""

LEAST, MOST = 3, 15
"""Rounds."""

NEAR = 3
"""A rival that needs up to so many times the first one's time takes part in every round. One that is slower stays out
once it has used its share of the time: its ratio needs no third digit."""

LONG = 0.25
"""Share of the time from which a single call is a sample enough: the first one is taken."""

LOOK, IDLE, PATIENCE = 0.001, 0.2, 0.3
"""Seconds of a look at whether the process is idle, the processor's share below which it is, and seconds in all."""


@dataclass
class Runner:
    """A contestant and what was measured of it: one sample a round, None where it stayed out."""

    call: Callable[[], object]
    seconds: list[float | None] = field(default_factory=list)
    duration: float = 0.0
    spent: float = 0.0

    def first(self, long: float) -> None:
        """One call, for its duration; where that is long, it is the first round's sample."""
        started = time.perf_counter()
        self.call()
        self.duration = time.perf_counter() - started
        if self.duration > long:
            self.seconds.append(self.duration)
            self.spent = self.duration

    def sample(self) -> None:
        """Adds the seconds of one call."""
        began = time.perf_counter()
        if self.duration < SHORT:
            self.call()
        repeats = max(1, round(SAMPLE / max(self.duration, 1e-9)))
        started = time.perf_counter()
        for _ in range(repeats):
            self.call()
        ended = time.perf_counter()
        self.seconds.append((ended - started) / repeats)
        self.duration = min(self.duration, (ended - started) / repeats)
        self.spent += ended - began


def in_turn(
    calls: Mapping[str, Callable[[], object]], budget: float, always: Collection[str] = ()
) -> dict[str, Runner]:
    """Measures contestants in turn, from three to fifteen rounds, as `budget` (seconds) allows.

    Args:
        calls: by name; the first is the one that the others are compared with. What they compile or allocate when they
            are called for the first time, they have: each has been called.
        budget: when it is spent, no further round begins.
        always: those that take part in every round however slow they are.
    """
    runners = {name: Runner(call) for name, call in calls.items()}
    first = next(iter(runners.values()))
    until = time.perf_counter() + budget
    for name, runner in runners.items():
        settle()
        runner.first(math.inf if name in always else LONG * budget)
    rounds = 0
    while rounds < LEAST or (rounds < MOST and time.perf_counter() < until):
        for name, runner in runners.items():
            if len(runner.seconds) > rounds:
                continue
            if name in always or runner.duration <= NEAR * first.duration or runner.spent < budget / len(runners):
                settle()
                runner.sample()
            else:
                runner.seconds.append(None)
        rounds += 1
    return runners


def settle() -> None:
    """Waits until nobody works: a library's threads spin for a while after their work (OpenBLAS's for a tenth of a
    second), and would take the next contestant's processor from it.
    """
    until = time.perf_counter() + PATIENCE
    while time.perf_counter() < until:
        began, worked = time.perf_counter(), time.process_time()
        time.sleep(LOOK)
        if time.process_time() - worked < IDLE * (time.perf_counter() - began):
            return


def paired(ours: Runner, theirs: Runner) -> tuple[float, float, float, int]:
    """Medians over the rounds in which both took part: our seconds, theirs, theirs / ours; and how many rounds."""
    pairs = list(_both(ours, theirs))
    mine, other = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    return mine, other, statistics.median(b / a for a, b in pairs), len(pairs)


def _both(ours: Runner, theirs: Runner) -> Iterator[tuple[float, float]]:
    for a, b in zip(ours.seconds, theirs.seconds, strict=True):
        if a is not None and b is not None:
            yield a, b
