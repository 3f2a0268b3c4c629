"""What was measured, as tables, and in a few lines what it comes to."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["best_engines", "duration", "results_table", "summary", "summary_table"]

Row = dict[str, Any]

UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
FLOAT = "numpy float32"


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    size, unit = next(((size, unit) for size, unit in UNITS if seconds >= size), (1e-9, "ns"))
    number = seconds / size
    return f"{number:.{max(0, 2 - int(number >= 10) - int(number >= 100))}f} {unit}"


def best_engines(rows: Sequence[Row]) -> list[Row]:
    """Of one case's rows the fastest engine of each function, the fastest first."""
    ordered = sorted(rows, key=lambda row: row["speedup"] or 0)
    best: dict[str, Row] = {}
    for row in ordered:
        best.setdefault(row["family"], row)
    return list(best.values())


def by_case(rows: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """The first row of every case, and all of them."""
    for _, group in groupby(rows, key=lambda row: (row["op"], row["shape"], row["threads"])):
        members = list(group)
        yield members[0], members


def results_table(rows: Sequence[Row], op: str) -> Table:
    """Of one operation, a section for each case."""
    table = _table()
    for header in ("shape (M×K×N)", "threads", "GOP/s", "share", "minquant", "peer", "peer's", "speedup"):
        table.add_column(header, justify="left" if header[:5] in ("shape", "peer") else "right", no_wrap=True)
    for first, members in by_case([row for row in rows if row["op"] == op]):
        cells, said = ["×".join(map(str, first["shape"])), str(first["threads"])], None
        shown = best_engines(members)
        for row in shown:
            again, said = _ours(row) == said, _ours(row)
            peer, theirs = row["peer"] or "–", _theirs(row)
            table.add_row(*cells, *(["", "", ""] if again else said), peer, *theirs, end_section=row is shown[-1])
            cells = ["", ""]
    return table


def _ours(row: Row) -> list[str]:
    rate, share = row["gops"], row["share"]
    return [f"{rate:.{int(rate < 100)}f}", "–" if share is None else f"{share:.0%}", duration(row["seconds"])]


def _theirs(row: Row) -> list[str]:
    if row["peer"] is None:
        return ["–", "–"]
    color = "green" if row["speedup"] >= 1 else "red"
    return [duration(row["peer_seconds"]), f"[{color}]{row['speedup']:.2f}[/{color}]"]


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each operation, number of threads and group of shapes, the speedups over the fastest int8 peer of each shape,
    over NumPy's float32, and over one thread: their geometric mean and the least of them.
    """
    alone = {(row["op"], *row["shape"], row["left"]): row["seconds"] for row in reversed(rows) if row["threads"] == 1}
    found: dict[tuple[str, int, str, str], list[float]] = {}
    for first, members in by_case(rows):
        rivals = {
            "the fastest int8 peer": [row["speedup"] for row in members if row["integers"]],
            FLOAT: [row["speedup"] for row in members if row["peer"] == FLOAT],
        }
        one = alone.get((first["op"], *first["shape"], first["left"]))
        if one and first["threads"] > 1:
            rivals["minquant, one thread"] = [one / first["seconds"]]
        for against, speedups in rivals.items():
            if speedups:
                found.setdefault((first["op"], first["threads"], first["group"], against), []).append(min(speedups))
    return [
        {"op": op, "threads": threads, "shapes": group, "against": against,
         "geometric_mean": statistics.geometric_mean(speedups), "least": min(speedups)}
        for (op, threads, group, against), speedups in sorted(found.items())
    ]  # fmt: skip


def summary_table(lines: Sequence[dict[str, Any]]) -> Table:
    """`summary` in print."""
    table = _table()
    for header in ("operation", "threads", "shapes", "against", "geometric mean", "least"):
        table.add_column(header, justify="right" if header in ("threads", "geometric mean", "least") else "left")
    for line in lines:
        speedups = (f"{line[key]:.2f}" for key in ("geometric_mean", "least"))
        table.add_row(line["op"], str(line["threads"]), line["shapes"], line["against"], *speedups)
    return table


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
