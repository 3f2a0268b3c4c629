"""``minquant demo``: trains, quantizes and compares with PyTorch, side by side."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minquant.commands.output import check_folder, make_console, versions, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from minquant.demos.article import Demo, TorchRun
    from minquant.demos.digits import DigitsResult

FLOWS = ("dynamic", "static", "qat")
TITLES = {
    "dynamic": "Dynamic quantization: integer weights, and a grid chosen anew for every input",
    "static": "Static quantization: grids fixed by calibration, integers from layer to layer",
    "qat": "Quantization-aware training: train with the rounding in the loop, then convert",
}
HINTS = {
    "dynamic": "",
    "static": "x86 and fbgemm lose more than the others: they leave one bit of the activations unused (0…127).",
    "qat": "torch's presets average ranges with the constant 0.01: after 100 steps they still lag behind the growing "
    "weights. minquant's own preset follows them at once, and what it trained is what it converts to.",
}
NEEDED = {"rich": "rich", "sklearn": "scikit-learn", "matplotlib": "matplotlib"}


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``demo`` to the command line."""
    parser = subparsers.add_parser(
        "demo",
        help="train, quantize and compare with PyTorch, side by side",
        description="Trains float models, quantizes them dynamically, statically and by quantization-aware training, "
        "and shows every step beside PyTorch's: a 3-3-2 regression first, then handwritten digits.",
        epilog="example: minquant demo all --json out.json --plots plots",
    )
    parser.add_argument("flow", nargs="?", choices=[*FLOWS, "all"], default="all", help="all, if left out")
    parser.add_argument("--json", metavar="PATH", help="write the figures to this file as well")
    parser.add_argument("--plots", metavar="DIR", help="write a picture for each flow into this folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"minquant demo: {', '.join(missing)} not installed; run: pip install 'minquant[demo]'",
            file=sys.stderr,
        )
        return 1
    try:
        if args.json:
            check_folder(args.json)
        if args.plots:
            Path(args.plots).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"minquant demo: {error}", file=sys.stderr)
        return 1
    started = time.perf_counter()
    console = make_console()
    flows = FLOWS if args.flow == "all" else (args.flow,)
    demos = _article(console, flows)
    for demo in demos:
        _print_demo(console, demo)
    digits = _digits(console, flows)
    _print_digits(console, digits)
    equality = _prepared_vs_converted(console, digits) if "qat" in flows else None
    if args.plots:
        _plots(console, Path(args.plots), flows, digits)
    if args.json:
        write_json(args.json, _report(demos, digits, equality))
        console.print(f"figures written to {args.json}")
    console.print(f"[dim]{time.perf_counter() - started:.0f} s in all[/dim]")
    return 0


# ---- running ---------------------------------------------------------------------------------------------------------


def _torch_side(name: str, progress: Callable[[str], None]) -> TorchRun:
    if importlib.util.find_spec("torch") is None:
        from minquant.demos import recorded

        return recorded.load(name)
    from minquant.crosscheck.article import run_torch

    return run_torch(name, progress)


def _article(console: Console, flows: tuple[str, ...]) -> list[Demo]:
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from minquant.demos.article import run_demo

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)

        def show(text: str) -> None:
            bars.update(task, description=f"the article's regressions: {text}")

        return [run_demo(name, _torch_side(name, show), show) for name in flows]


def _digits(console: Console, flows: tuple[str, ...]) -> DigitsResult:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from minquant.demos import digits

    columns = (TextColumn("handwritten digits: {task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=1)

        def show(done: int, total: int, text: str) -> None:
            bars.update(task, completed=done, total=total, description=text)

        return digits.run(flows=flows, progress=show)


def _prepared_vs_converted(console: Console, digits: DigitsResult) -> dict[str, int]:
    from minquant.demos.chains import prepared_vs_converted

    chains = prepared_vs_converted()
    total = {key: chains[key] + digits.prepared_vs_converted[key] for key in ("values", "mismatches")}
    console.print(
        f"Trained model against converted model, in eval: [bold]{total['mismatches']}[/bold] of {total['values']:,} "
        "output values differ (random Linear/ReLU/Flatten chains and the digits, at 8, 4 and 2 bits)\n"
    )
    return total


def _plots(console: Console, folder: Path, flows: tuple[str, ...], digits: DigitsResult) -> None:
    from minquant.demos import plots

    draw = {"dynamic": plots.grid_over_weights, "static": plots.error_by_layer, "qat": plots.accuracy_by_bits}
    for flow in flows:
        console.print(f"picture written to {draw[flow](digits, folder / f'{flow}.png')}")


def _report(demos: list[Demo], digits: DigitsResult, equality: dict[str, int] | None) -> dict[str, Any]:
    return {
        "demos": {demo.name: demo.result for demo in demos},
        "digits": digits.rows,
        "prepared_vs_converted": equality,
        "versions": {
            **versions(),
            "torch": demos[0].torch_version,
            "torch_values": "live" if demos[0].live else "recorded",
        },
    }


# ---- printing --------------------------------------------------------------------------------------------------------


def _print_demo(console: Console, demo: Demo) -> None:
    console.rule(f"[bold]{TITLES[demo.name]}", align="left")
    console.print("test loss, before → after quantization; weights and outputs beside torch's")
    console.print(_losses_table(demo))
    console.print("x86 in full, both sides quantizing the same trained weights")
    console.print(_arrays_table(demo))
    console.print(f"As published: {demo.note}")
    if HINTS[demo.name]:
        console.print(HINTS[demo.name])
    console.print()


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD)


def _torch_title(demo: Demo) -> str:
    return f"torch {demo.torch_version.split('+')[0]}" + ("" if demo.live else ", recorded")


def _losses_table(demo: Demo) -> Table:
    table = _table()
    for header in ("", "minquant", _torch_title(demo), "weights", "outputs"):
        table.add_column(header)
    rows = [("as published", demo.result["published"]), *_engine_rows(demo)]
    for label, r in rows:
        table.add_row(
            label,
            _arrow(r["float_loss"], r["quantized_loss"]),
            _arrow(r["torch_float_loss"], r["torch_quantized_loss"]),
            _verdict(r["weight_int_equal"]),
            _verdict(r["output_int_equal"]),
        )
    return table


def _engine_rows(demo: Demo) -> list[tuple[str, dict[str, Any]]]:
    rows = []
    for engine, r in demo.result["engines"].items():
        rows.append((engine if demo.name == "dynamic" else f"mended, {engine}", r))
        if "fused_quantized_loss" in r:
            fused = {
                "quantized_loss": r["fused_quantized_loss"],
                "torch_quantized_loss": r["torch_fused_quantized_loss"],
                "weight_int_equal": None,
                "output_int_equal": r["fused_output_int_equal"],
            }
            rows.append(("  with fused ReLU", {**r, **fused}))
    return rows


def _arrow(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{before:.4f} → {after:.4f}"


def _verdict(equal: bool | None) -> str:
    return {None: "–", True: "[green]equal[/green]", False: "[red]differ[/red]"}[equal]


def _arrays_table(demo: Demo) -> Table:
    table = _table()
    for header in ("", "minquant", _torch_title(demo), ""):
        table.add_column(header)
    for key, (ours, theirs) in demo.arrays["x86"].items():
        equal = bool(np.array_equal(ours, theirs))
        verdict = _verdict(equal) if equal else f"[red]{(ours != theirs).sum()} of {ours.size} differ[/red]"
        table.add_row(key, _shown(ours), _shown(theirs), verdict)
    return table


def _shown(array: np.ndarray) -> str:
    if array.size > 12:
        return f"{array.size:,} values, {array.min():.6g} … {array.max():.6g}"
    return np.array2string(array, separator=" ", formatter={"float_kind": lambda v: f"{v:.7g}"})


def _print_digits(console: Console, digits: DigitsResult) -> None:
    console.rule("[bold]Handwritten digits, 64-64-64-64-10", align="left")
    console.print(f"test accuracy in %, mean ± standard deviation of {digits.rows[0]['seeds']} seeds")
    table = _table()
    for header in ("flow", "weight bits", "activation bits", "accuracy"):
        table.add_column(header, justify="right" if header != "flow" else "left")
    for row in digits.rows:
        accuracy = f"{row['mean']:.1f} ± {row['std']:.1f}"
        table.add_row(row["flow"], str(row["weight_bits"]), str(row["act_bits"]), accuracy)
    console.print(table)
    if any(row["flow"] == "control" for row in digits.rows):
        console.print("control: the float model, given the same further epochs as QAT")
    console.print()
