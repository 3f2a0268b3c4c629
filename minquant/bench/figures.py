"""How fast minquant should be, and whether it was: one line for each figure, computed from the rows of a run."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from minquant.bench.operation import Case, Shape
from minquant.bench.table import Row, plain_table

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["FIGURES", "Figure", "figures_table", "reached"]

EACH, MEAN = "each", "geometric mean"
PACKED, UNPACKED, AVX2 = "int8_matmul packed", "int8_matmul", "int8_matmul MINQUANT_ISA=avx2"
DYNAMIC, STATIC = ("dynamic Linear",), ("static Linear", "static Conv2d")
FAKE_QUANTIZE = (
    "fake_quantize per tensor",
    "fake_quantize per channel",
    "FakeQuantize",
    "LearnableFakeQuantize per tensor",
    "LearnableFakeQuantize per channel",
)
GPU = "GPU dynamic Linear"
INT8 = ("torch quantized::linear", "torch._int_mm", "onnxruntime")
CUBE = (1024, 1024, 1024)
FEW = tuple((m, 4096, 4096) for m in (1, 4, 16))


def is_large(shape: Shape) -> bool:
    """From the work of 256³ on, but for the few rows that have a line of their own."""
    return math.prod(shape) >= 256**3 and shape not in FEW


def is_odd(shape: Shape) -> bool:
    """No whole tiles."""
    return all(size % 2 for size in shape)


def is_huge(shape: Shape) -> bool:
    """From 4096³ on."""
    return math.prod(shape) >= 4096**3


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        work: what is done.
        against: what it is compared with, in words.
        asked: at least so much.
        over: whether that is asked of each case, or of the geometric mean of all.
        ops: names of the operations.
        rivals: how the names of the peers begin, of whom the fastest counts in each case.
        shapes: which of the operations' shapes.
        variant: which of minquant's variants; None: all.
        measure: what of a row is compared with `asked`: "speedup", "share" (of the limit) or "scaling" (one thread's
            seconds over this row's).
        threads: the only number of threads that it is about; None: all.
    """

    work: str
    against: str
    asked: float
    over: str
    ops: tuple[str, ...]
    rivals: tuple[str, ...] = ("",)
    shapes: Callable[[Shape], bool] = bool
    variant: str | None = None
    measure: str = "speedup"
    threads: int | None = None

    def is_about(self, op: str, shape: Shape, threads: int) -> bool:
        """Whether a case counts."""
        return op in self.ops and self.shapes(shape) and self.threads in (None, threads)

    def counts(self, row: Row) -> bool:
        """Whether a row counts, of a case that does."""
        is_rival = self.measure != "speedup" or (row["peer"] or "-").startswith(self.rivals)
        return is_rival and self.variant in (None, row["variant"])


def _layers(work: str, against: str, asked: float, ops: tuple[str, ...], rivals: tuple[str, ...]) -> list[Figure]:
    """A line for each dialect."""
    return [
        Figure(f"{work}, {variant}", against, asked, MEAN, ops, rivals, variant=variant)
        for variant in ("reference", "fbgemm")
    ]


FIGURES = (
    Figure("packed weights, 256³ and larger", "fastest int8 peer", 1.0, EACH, (PACKED,), INT8, is_large),
    Figure("packed weights, 256³ and larger", "fastest int8 peer", 1.05, MEAN, (PACKED,), INT8, is_large),
    Figure("packing inside the call", "torch._int_mm", 1.0, MEAN, (UNPACKED,), ("torch._int_mm",)),
    Figure(
        "1024³ on one core", "the measured peak", 0.94, EACH, (PACKED,), (), CUBE.__eq__, "uint8", "share", threads=1
    ),
    Figure("M = 1, 4, 16 × 4096²", "fastest int8 peer", 1.1, EACH, (PACKED,), INT8, FEW.__contains__),
    Figure("M = 1, 4, 16 × 4096²", "NumPy, float32", 8.0, EACH, (PACKED,), ("numpy",), FEW.__contains__),
    Figure("odd shapes", "fastest int8 peer", 1.0, MEAN, (PACKED,), INT8, is_odd),
    *_layers("dynamic Linear", "torch's best engine, onnxruntime", 1.1, DYNAMIC, ("torch quantized", "onnxruntime")),
    *_layers("static Linear and Conv2d", "torch's best engine", 1.05, STATIC, ("torch quantized",)),
    Figure("int4, groups of 32, M = 1", "NumPy, float32", 8.0, EACH, ("int4 Linear",), ("numpy",)),
    Figure(
        "int4, groups of 32, M = 1", "torchao's or torch's int4", 1.0, EACH, ("int4 Linear",), ("torchao", "torch _")
    ),
    Figure("fake-quantize, 2²⁰ elements", "torch's", 1.5, EACH, FAKE_QUANTIZE, ("torch",)),
    Figure("one step of training", "torch.ao prepare_qat", 1.5, MEAN, ("QAT step", "QAT step, CNN"), ("torch.ao",)),
    Figure("two threads, 1024³", "one thread", 1.8, EACH, (PACKED,), (), CUBE.__eq__, "uint8", "scaling", threads=2),
    Figure("MINQUANT_ISA=avx2, 1024³", "NumPy, float32", 1.3, EACH, (AVX2,), ("numpy",)),
    Figure("dynamic Linear on a GPU", "torchao's, int8", 1.0, EACH, (GPU,), ("torchao",), variant="per token"),
    Figure(
        "dynamic Linear on a GPU, from 4096³", "bfloat16", 1.5, EACH, (GPU,), ("torch bfloat16",), is_huge, "per token"
    ),
)
"""In the order in which they were set down. Of several lines of a case that a figure is about, the least counts."""


def reached(rows: Sequence[Row], cases: Sequence[Case], saturating: Sequence[str] = ()) -> list[dict[str, Any]]:
    """What became of each figure of which something was measured.

    Where some rivals' sums saturate, which gains them half of the time on a processor without VNNI, there is a second
    line for the others.

    Args:
        rows: of a run.
        cases: all that there are, measured or not.
        saturating: names of peers whose products are not exact on this processor.

    Returns:
        For each figure and number of threads: what was `asked` and `reached`, in how many `cases` there was a rival
        (one that is too slow for a case is left out of it) and how many are `due`, the `least` of them and where, and
        whether the figure is `met`: None unless every case was run.
    """
    exact = [row for row in rows if row["peer"] not in saturating]
    lines = []
    for figure, threads in itertools.product(FIGURES, sorted({row["threads"] for row in rows})):
        about = [c for c in cases if c.threads == threads and figure.is_about(c.operation.name, c.shape, threads)]
        values, of_exact = _values(figure, rows, threads), _values(figure, exact, threads)
        ran = {(row["op"], tuple(row["shape"])) for row in rows if row["threads"] == threads}
        is_whole = all((case.operation.name, case.shape) in ran for case in about)
        lines += [_line(figure, threads, values, len(about), is_whole)] if values else []
        if of_exact and of_exact != values and figure.rivals == INT8:
            only_exact = replace(figure, against=f"{figure.against} that is exact")
            lines.append(_line(only_exact, threads, of_exact, len(about), is_whole))
    return lines


def _values(figure: Figure, rows: Sequence[Row], threads: int) -> dict[str, float]:
    """One number a case, by its name: that of the fastest rival."""
    alone, together = _seconds(rows, 1), _seconds(rows, threads)
    found: dict[str, float] = {}
    for row in rows:
        if (
            row["threads"] == threads
            and figure.is_about(row["op"], tuple(row["shape"]), threads)
            and figure.counts(row)
        ):
            name = "×".join(map(str, row["shape"]))
            name = name if len(figure.ops) == 1 else f"{row['op']} {name}"
            key = (row["op"], *row["shape"], row["variant"])
            scaling = alone[key] / together[key] if key in alone else None
            number = scaling if figure.measure == "scaling" else row[figure.measure]
            found |= {} if number is None else {name: min(number, found.get(name, math.inf))}
    return found


def _seconds(rows: Sequence[Row], threads: int) -> dict[tuple[Any, ...], float]:
    """Of each case and variant: the median of the most rounds, which is not that beside a peer that sat some out."""
    by_rounds = sorted((row for row in rows if row["threads"] == threads), key=lambda row: row["rounds"])
    return {(row["op"], *row["shape"], row["variant"]): row["seconds"] for row in by_rounds}


def _line(figure: Figure, threads: int, values: dict[str, float], due: int, is_whole: bool) -> dict[str, Any]:
    worst = min(values, key=lambda name: values[name])
    number = values[worst] if figure.over == EACH else statistics.geometric_mean(values.values())
    return {
        "work": figure.work,
        "against": figure.against,
        "threads": threads,
        "asked": figure.asked,
        "over": figure.over,
        "reached": number,
        "met": number >= figure.asked if is_whole else None,
        "cases": len(values),
        "due": due,
        "least": values[worst],
        "least_of": worst,
    }


def figures_table(lines: Sequence[dict[str, Any]]) -> Table:
    """`reached` in print."""
    table = plain_table()
    for header in ("figure", "against", "threads", "over", "asked", "reached", "", "cases", "least"):
        table.add_column(header, justify="right" if header in ("threads", "asked", "reached") else "left")
    verdict = {True: "[green]met[/green]", False: "[red]not met[/red]", None: "in part"}
    for line in lines:
        cases = str(line["due"]) if line["cases"] == line["due"] else f"{line['cases']} of {line['due']}"
        least = "" if line["cases"] == 1 else f"{line['least']:.2f}: {line['least_of']}"
        numbers = (f"{line['asked']:g}", f"{line['reached']:.3f}", verdict[line["met"]], cases, least)
        where = line["work"], line["against"], str(line["threads"]), line["over"].removeprefix("geometric ")
        table.add_row(*where, *numbers)
    return table
