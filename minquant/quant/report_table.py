"""A report as text: a table of at most 110 columns, and its notes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

__all__ = ["table"]

TITLES = {
    "float": "float model",
    "prepared": "prepared model, as convert will make it",
    "prepared for training": "model prepared for training, as convert will make it",
    "prepared in place": "model prepared for training, as quantize_ will make it",
    "weight only": "model with quantized weights, computing with real values",
    "static inputs": "model with quantized weights and inputs, real values in between",
    "dynamic": "dynamically quantized model",
    "static": "statically quantized model",
}
HEADER = ("layer", "kind", "weight", "activation", "parameters", "activations/row")
TEXT_COLUMNS = 4
CAN_BE_NARROWED = (0, 2, 3)
WIDTH = 110
NARROWEST = 10


def table(flow: str, rows: list[dict[str, Any]], totals: dict[str, int]) -> str:
    """The rows of a report, their notes and their totals."""
    lines = [HEADER, *map(_cells, rows), ("total", "", "", "", *_arrows(totals))]
    widths = _widths(lines)
    rule = "  ".join("-" * width for width in widths)
    header, *layers, total = (_line(cells, widths) for cells in lines)
    return "\n".join([_title(flow, totals), header, rule, *layers, *_notes(rows), rule, total])


def _title(flow: str, totals: dict[str, int]) -> str:
    before, after = totals["bytes_before"], totals["bytes_after"]
    smaller = f"; parameters {before / after:.2f} times smaller" if after != before else ""
    return f"{TITLES[flow]}{smaller} (sizes in bytes)"


def _notes(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each note once, after the layers that it is about."""
    about: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            about.setdefault(row["note"], []).append(row["layer"])
    for note, layers in about.items():
        yield textwrap.fill(f"* {', '.join(layers)}: {note}", WIDTH, subsequent_indent="  ")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    weight, activation = (
        row[key].replace("symmetric", "sym").replace(" per ", "/") for key in ("weight", "activation")
    )
    return row["layer"], row["kind"], weight, activation, *_arrows(row)


def _arrows(row: dict[str, Any]) -> tuple[str, str]:
    parameters = f"{row['bytes_before']:,} → {row['bytes_after']:,}" if row["bytes_before"] else ""
    before, after = row["activation_bytes_before"], row["activation_bytes_after"]
    return parameters, f"{before:,} → {after:,}" if before else ""


def _widths(lines: list[tuple[str, ...]]) -> list[int]:
    """The widest cell of each column; where that is too much, the widest columns of text are narrowed."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > WIDTH:
        widest = max(CAN_BE_NARROWED, key=lambda i: widths[i])
        if widths[widest] <= NARROWEST:
            break
        widths[widest] -= 1
    return widths


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    """One row of the table; a cell that is too wide goes on in the next line."""
    folded = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, folded))
    lines = zip(*(f + [""] * (height - len(f)) for f in folded), strict=True)
    return "\n".join(
        "  ".join(
            f"{cell:<{w}}" if i < TEXT_COLUMNS else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
