"""``minquant rosetta X.npy``: one tensor in every dialect, and which rule makes each difference."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.commands.output import check_folder, make_console, versions, write_json

if TYPE_CHECKING:
    from rich.table import Table

    from minquant.quant.rosetta import Rosetta

NPY = b"\x93NUMPY"
MOST_INTEGERS = 64
IN_JSON = ("dialect", "base", "rule", "scale", "zero_point", "qmin", "qmax", "differing", "first", "max_steps")


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``rosetta`` to the command line."""
    parser = subparsers.add_parser(
        "rosetta",
        help="read one tensor in every dialect",
        description="Shows the scale, zero point and integers that each dialect makes of one tensor, how many integers "
        "differ from the reference dialect's, and which rule moves them.",
        epilog="example: minquant rosetta weight.npy --bits 8 --json out.json",
    )
    parser.add_argument("file", metavar="X.npy", help="an array of floating point numbers, saved by numpy.save")
    parser.add_argument("--bits", metavar="N", type=int, default=8, help="2 to 8; 8, if left out")
    parser.add_argument("--json", metavar="PATH", help="write the table to this file as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from minquant.quant.rosetta import rosetta

    try:
        if args.json:
            check_folder(args.json)
        table = rosetta(load(args.file), args.bits)
    except (OSError, TypeError, ValueError) as error:
        print(f"minquant rosetta: {error}", file=sys.stderr)
        return 1
    _print(args.file, table)
    if args.json:
        write_json(args.json, _report(args.file, table))
        print(f"written to {args.json}")
    return 0


def load(path: str) -> np.ndarray:
    """The array in an .npy file; nothing in it is ever executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no .npy file, is cut short, or holds Python objects.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{path}: there is no such file; save an array with numpy.save({path!r}, x)")
    with file.open("rb") as stream:
        if stream.read(len(NPY)) != NPY:
            raise ValueError(f"{path} is no .npy file; save an array with numpy.save, not savez or pickle")
    try:
        return np.load(file, allow_pickle=False)
    except (EOFError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _report(path: str, table: Rosetta) -> dict[str, Any]:
    rows = []
    for row in table.rows:
        kept = {key: row[key] for key in IN_JSON}
        if row["integers"].size <= MOST_INTEGERS:
            kept["integers"] = row["integers"].tolist()
        rows.append(kept)
    return {
        "file": path,
        "shape": list(table.shape),
        "bits": table.bits,
        "rows": rows,
        "left_out": table.left_out,
        "versions": versions(),
    }


# ---- printing --------------------------------------------------------------------------------------------------------


def _print(path: str, table: Rosetta) -> None:
    if importlib.util.find_spec("rich") is None:
        print(table)
        return
    console = make_console()
    shape = " × ".join(map(str, table.shape)) or "one number"
    console.print(f"[bold]{path}[/bold] ({shape}) in {table.bits} bits")
    console.print(_table(table))
    for name, why in table.left_out.items():
        console.print(f"left out: {name}: {why}", markup=False)


def _table(table: Rosetta) -> Table:
    from rich import box
    from rich.table import Table

    from minquant.quant.rosetta.table import shown_integers

    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    shown.add_column("dialect", overflow="fold", min_width=20)
    for header in ("scale", "zero\npoint", "range", "differ", "error\n(steps)"):
        shown.add_column(header, justify="right", no_wrap=True)
    shown.add_column("which rule, and how many integers it moves", overflow="fold")
    for row in table.rows:
        shown.add_row(
            row["dialect"],
            f"{row['scale']:.7g}",
            str(row["zero_point"]),
            f"{row['qmin']}…{row['qmax']}",
            f"{row['differing']:,}",
            f"{row['max_steps']:.3f}",
            "\n".join(filter(None, (row["rule"], shown_integers(row)))),
            end_section=row is [r for r in table.rows if r["base"] == row["base"]][-1],
        )
    return shown
