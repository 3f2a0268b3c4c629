"""``minquant bench``: minquant's kernels beside the libraries', in turn, against the processor's limits."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minquant.commands.output import check_folder, make_console, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from minquant.bench.operation import Case, Operation, Peer

ALONE = 0.8
INSTALL = "pip install 'minquant[torch,onnx,demo]'"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``bench`` to the command line."""
    parser = subparsers.add_parser(
        "bench",
        help="time products, layers and training beside torch's, NumPy's, torchao's and onnxruntime's",
        description="Has minquant and every library that is installed do the same work on the same data, in turn, "
        "after each result has been checked, measures the processor's limits in the same turns, and says which of "
        "the figures that minquant sets itself it reached.",
        epilog="example: minquant bench --only 'packed 1024x*' --threads 1 --json out.json --plots plots\n"
        "         minquant bench --only Linear\n\n"
        "share = minquant's part of what the processor's limits allow, speedup = the peer's time / minquant's: both\n"
        "are medians of ratios within a round. A peer that would need half of the time for a single call is left out.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", metavar="PATTERN", help="only cases with this in their name; * stands for anything")
    parser.add_argument("--threads", metavar="1,2", type=_threads, help="numbers of threads; 1 and 2, if left out")
    parser.add_argument("--seconds-per-case", metavar="S", type=_seconds, default=1.5, help="1.5, if left out")
    parser.add_argument("--isa", action="store_true", help="say which instruction is used and which there are; no more")
    parser.add_argument("--json", metavar="PATH", help="write the figures to this file as well")
    parser.add_argument("--plots", metavar="DIR", help="draw the roofline into this folder")
    parser.set_defaults(run=run)


def _threads(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"expected positive whole numbers with commas between, got {text!r}")
    return list(dict.fromkeys(map(int, parts)))


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text!r}")
    return seconds


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    try:
        if args.json:
            check_folder(args.json)
        if args.isa:
            return _isa(args)
        _check_packages(args)
        if args.plots:
            Path(args.plots).mkdir(parents=True, exist_ok=True)
        return _bench(args)
    except (OSError, ValueError, ModuleNotFoundError) as error:
        print(f"minquant bench: {error}", file=sys.stderr)
        return 1


def _check_packages(args: argparse.Namespace) -> None:
    needed = ["rich", *(["matplotlib"] if args.plots else [])]
    absent = [module for module in needed if importlib.util.find_spec(module) is None]
    if absent:
        raise ModuleNotFoundError(f"{' and '.join(absent)} not installed; run: {INSTALL}")


def _isa(args: argparse.Namespace) -> int:
    from minquant.bench.machine import instructions, processor

    found = instructions()
    print(f"{found['isa']} is used; {processor()} has {', '.join(found['available'])}")
    if args.json:
        write_json(args.json, {"machine": {"processor": processor(), **found}, "results": []})
    return 0


def _chosen_threads(wish: Sequence[int] | None) -> list[int]:
    """What ``--threads`` says; one and two, if it says nothing and there are two cores.

    Raises:
        ValueError: more than there are cores.
    """
    from minquant.bench.machine import cores

    there = cores()
    if wish and max(wish) > there:
        raise ValueError(f"--threads {','.join(map(str, wish))}: this process can run {there} at once; ask for no more")
    return list(wish) if wish else list(range(1, min(2, there) + 1))


def _bench(args: argparse.Namespace) -> int:
    from minquant.bench.figures import reached
    from minquant.bench.machine import describe, instructions
    from minquant.bench.operation import present, select
    from minquant.bench.operations.int8_matmul import saturating
    from minquant.bench.run import Bench

    started = time.perf_counter()
    threads = _chosen_threads(args.threads)
    instructions()  # refuses a MINQUANT_ISA that there is not
    operations, obstacles = _operations()
    cases = select(operations, args.only, threads)
    if args.plots:
        from minquant.bench.roofline import check_drawable

        check_drawable(cases)
    console = make_console()
    peers, missing = present(_peers(cases))
    with console.status("measuring the processor's limits"):
        machine = describe(threads)
    _print_machine(console, machine)
    bench = Bench(peers, args.seconds_per_case)
    rows = _run(console, bench.run, cases)
    inexact = saturating(peers)
    report = {
        "machine": machine,
        "results": rows,
        "figures": reached(rows, select(operations, None, threads), inexact),
        "missing": obstacles | missing,
        "left_out": bench.left_out,
        "saturating": inexact,
    }
    _print(console, report, operations)
    if args.json:
        write_json(args.json, report)
        console.print(f"written to {args.json}")
    if args.plots:
        from minquant.bench.roofline import roofline

        console.print(f"drawn in {roofline(machine, rows, Path(args.plots) / 'roofline.png')}")
    console.print(f"[dim]{time.perf_counter() - started:.0f} s in all[/dim]")
    return 0


def _operations() -> tuple[list[Operation], dict[str, str]]:
    """Those that can be measured here; and of the others, why not."""
    from minquant.bench.operations import every_operation

    obstacles = {operation: why for operation in every_operation() if (why := operation.obstacle())}
    there = [operation for operation in every_operation() if operation not in obstacles]
    return there, {operation.name: why for operation, why in obstacles.items()}


def _peers(cases: Sequence[Case]) -> list[Peer]:
    """Everybody who takes part, once."""
    return list(dict.fromkeys(peer for case in cases for peer in case.operation.peers))


def _run(console: Console, run_case: Any, cases: Sequence[Case]) -> list[dict[str, Any]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    rows = []
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(cases))
        for case in cases:
            bar.update(task, description=f"{case.name}, threads: {case.threads}")
            rows.extend(run_case(case))
            bar.advance(task)
    return rows


# ---- printing --------------------------------------------------------------------------------------------------------


def _print_machine(console: Console, machine: dict[str, Any]) -> None:
    console.print(f"{machine['processor']}, {machine['cores']} cores; instruction: {machine['isa']}")
    for threads, limits in machine["by_threads"].items():
        peak = limits["peak_int8_gops"]
        peak = f"{peak:,.0f} GOP/s in registers" if peak else "no dot-product instruction"
        console.print(f"limits, threads: {threads}: {peak}; {limits['bandwidth_gb_s']:,.1f} GB/s from memory")
    for threads in _crowded(machine):
        console.print(
            f"{threads} threads have not {threads} cores for themselves: other work runs there, or they are halves of "
            f"one; times with {threads} threads say little",
            style="yellow",
            soft_wrap=True,
        )
    packages = (f"{name} {found or '–'}" for name, found in machine["versions"].items())
    console.print(", ".join(packages), soft_wrap=True)


def _crowded(machine: dict[str, Any]) -> list[str]:
    """Numbers of threads that together reach less than `ALONE` of what each would alone, in registers."""
    peaks = {threads: limits["peak_int8_gops"] or 0 for threads, limits in machine["by_threads"].items()}
    return [threads for threads, peak in peaks.items() if peak < ALONE * int(threads) * peaks["1"]]


def _print(console: Console, report: dict[str, Any], operations: Sequence[Operation]) -> None:
    from minquant.bench.figures import figures_table
    from minquant.bench.table import results_table

    measured = {row["op"] for row in report["results"]}
    for operation in operations:
        if operation.name in measured:
            console.print(f"\n[bold]{operation.name}[/bold]; of functions with several engines, the fastest")
            console.print(results_table(report["results"], operation))
    if report["figures"]:
        console.print("\n[bold]figures[/bold]: the least that is asked, and what was reached")
        console.print(figures_table(report["figures"]))
    for name, why in report["missing"].items():
        console.print(f"missing: {name}: {why}", markup=False, soft_wrap=True)
    _print_left_out(console, report["left_out"])
    if report["saturating"]:
        console.print(
            f"on this processor these add products in pairs in int16 and would be wrong with weights beyond ±64: "
            f"{'; '.join(report['saturating'])}",
            markup=False,
            soft_wrap=True,
        )


def _print_left_out(console: Console, left_out: Sequence[dict[str, Any]]) -> None:
    """Of every peer, how many cases, and the first with its reason."""
    cases = Counter(entry["peer"] for entry in left_out)
    for peer, count in cases.items():
        first = next(entry for entry in left_out if entry["peer"] == peer)
        shape = "×".join(map(str, first["shape"]))
        console.print(
            f"left out: {peer} in {count} case{'s' if count > 1 else ''}, the first of them {shape}: {first['why']}",
            markup=False,
            soft_wrap=True,
        )
