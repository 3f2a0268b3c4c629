"""What can be measured: an operation, its cases, minquant's way to do it and the libraries' ways.

An operation is a value of `Operation` in a module of `minquant.bench.operations`, which lists them all. The rest of
the package knows none of them by name, but for `minquant.bench.figures`, which says how fast each should be.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minquant.bench.job import Job

__all__ = ["Case", "Operation", "Peer", "Shape", "Work", "present", "select"]

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """What a case comes to: multiplications and additions, and bytes that must be read or written once."""

    operations: int
    moved: int


@dataclass(frozen=True)
class Peer:
    """A library's way to do it.

    Args:
        name: its package and function.
        family: `name` without the engine.
        needs: modules that must be installed.
        prepare: ``prepare(data, threads)``, of what the operation's `draw` returned. A library is imported here.
        variant: the one of minquant's variants that it is compared with; None: every one.
        integers: whether it computes on integers.
        engine: torch's engine that it needs, if any.
    """

    name: str
    family: str
    needs: tuple[str, ...]
    prepare: Callable[[Any, int], Job]
    variant: str | None = None
    integers: bool = True
    engine: str = ""


def nothing() -> str:
    """No obstacle."""
    return ""


@dataclass(frozen=True, eq=False)
class Operation:
    """Something that minquant does and others do too.

    Args:
        name: what ``--only`` is compared with, together with the shape.
        axes: what the numbers of a shape are.
        shapes: by group. A shape comes after those from which its duration can be told (`minquant.bench.run`).
        draw: ``draw(shape)``: the data that everybody works on.
        variants: minquant's ways to do it, by name: a dtype or a dialect.
        ours: ``ours(data, variant)``.
        peers: the libraries' ways.
        work: ``work(shape)``, if there is a limit to compare with.
        threads: the only numbers of threads that make sense, if not all do; a GPU's kernels have (1,).
        obstacle: says why it cannot be measured here; "" if it can.
    """

    name: str
    axes: str
    shapes: Mapping[str, tuple[Shape, ...]]
    draw: Callable[[Shape], Any]
    variants: tuple[str, ...]
    ours: Callable[[Any, str], Job]
    peers: tuple[Peer, ...]
    work: Callable[[Shape], Work] | None = None
    threads: tuple[int, ...] | None = None
    obstacle: Callable[[], str] = nothing


@dataclass(frozen=True)
class Case:
    """One operation on one shape with so many threads."""

    operation: Operation
    group: str
    shape: Shape
    threads: int

    @property
    def name(self) -> str:
        """What ``--only`` is compared with."""
        return f"{self.operation.name} {'x'.join(map(str, self.shape))}"

    @property
    def work(self) -> Work | None:
        """What it comes to, if there is a limit to compare with."""
        return self.operation.work(self.shape) if self.operation.work else None


def select(operations: Sequence[Operation], pattern: str | None, threads: Sequence[int]) -> list[Case]:
    """The cases whose name holds the pattern, in which ``*`` and ``?`` stand for anything.

    Raises:
        ValueError: there is none.
    """
    every = [case for operation in operations for case in _cases(operation, threads)]
    chosen = [case for case in every if fnmatch.fnmatchcase(case.name, f"*{pattern or ''}*")]
    if not chosen:
        names = dict.fromkeys(case.operation.name for case in every)
        raise ValueError(
            f"--only {pattern}: no case has such a name; a name is an operation and a shape, as in "
            f"'{every[0].name}'; the operations are {', '.join(map(repr, names))}"
        )
    return chosen


def _cases(operation: Operation, threads: Sequence[int]) -> list[Case]:
    counts = operation.threads or threads
    shapes = [(group, shape) for group, members in operation.shapes.items() for shape in members]
    return [Case(operation, group, shape, count) for (group, shape), count in itertools.product(shapes, counts)]


def present(peers: Sequence[Peer]) -> tuple[list[Peer], dict[str, str]]:
    """Those that are installed; and of the others, why not."""
    missing = {peer.name: why for peer in peers if (why := _obstacle(peer))}
    return [peer for peer in peers if peer.name not in missing], missing


def _obstacle(peer: Peer) -> str:
    absent = [module for module in peer.needs if importlib.util.find_spec(module) is None]
    if absent:
        return f"{' and '.join(absent)} not installed"
    if peer.engine:
        import torch

        if peer.engine not in torch.backends.quantized.supported_engines:
            return f"this torch was built without {peer.engine}"
    return ""
