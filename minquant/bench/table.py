"""What was measured, as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from minquant.bench.operation import Operation

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Row", "best_engines", "by_case", "duration", "plain_table", "results_table"]

Row = dict[str, Any]

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), (1e-9, "ns"))
    number = seconds / size
    return f"{number:.{max(0, 2 - int(number >= 10) - int(number >= 100))}f} {unit}"


def best_engines(rows: Sequence[Row]) -> list[Row]:
    """Of one case's rows the fastest engine of each function for each variant, the fastest first."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    best: dict[tuple[str, str], Row] = {}
    for row in sorted(rows, key=lambda row: (variants.index(row["variant"]), row["speedup"] or 0)):
        best.setdefault((row["variant"], row["family"]), row)
    return list(best.values())


def by_case(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """The first row of every case, and all of them."""
    for _, group in groupby(rows, key=lambda row: (row["op"], row["shape"], row["threads"])):
        members = list(group)
        yield members[0], members


def results_table(rows: Sequence[Row], operation: Operation) -> Table:
    """Of one operation, a section for each case."""
    table = plain_table()
    table.add_column(operation.axes, no_wrap=True)
    for header in (
        "threads",
        *(("GOP/s", "share") if operation.work else ()),
        "minquant",
        "in",
        "peer",
        "peer's",
        "speedup",
    ):
        table.add_column(header, justify="left" if header in ("in", "peer") else "right", no_wrap=True)
    for first, members in by_case([row for row in rows if row["op"] == operation.name]):
        cells, said = ["×".join(map(str, first["shape"])), str(first["threads"])], None
        shown = best_engines(members)
        for row in shown:
            ours = _ours(row)
            ours = [""] * len(ours) if row["variant"] == said else ours
            table.add_row(*cells, *ours, row["peer"] or "–", *_theirs(row), end_section=row is shown[-1])
            cells, said = ["", ""], row["variant"]
    return table


def _ours(row: Row) -> list[str]:
    rate, share, ours = row["gops"], row["share"], [duration(row["seconds"]), row["variant"]]
    return ours if rate is None else [f"{rate:.{int(rate < 100)}f}", "–" if share is None else f"{share:.0%}", *ours]


def _theirs(row: Row) -> list[str]:
    if row["peer"] is None:
        return ["–", "–"]
    color = "green" if row["speedup"] >= 1 else "red"
    return [duration(row["peer_seconds"]), f"[{color}]{row['speedup']:.2f}[/{color}]"]


def plain_table() -> Table:
    """Without lines but below its head."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
