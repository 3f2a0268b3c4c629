"""``minquant crosscheck``: runs the conformance suite against the installed torch, torchao, onnx and onnxruntime."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minquant.commands.output import check_folder, make_console, versions, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from minquant.crosscheck.suite import Check, Result

SHORT = {"torch.ao.quantization.": "ao.", "torch.ops.quantized.": "ops.", "torch.": ""}
INSTALL = "pip install 'minquant[torch,onnx,demo]'"
ORACLES = ("torch", "torchao", "onnx", "onnxruntime")
GOLDEN = "what they answered is recorded: `pytest tests/golden` compares minquant with it and needs none of them"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``crosscheck`` to the command line."""
    parser = subparsers.add_parser(
        "crosscheck",
        help="check every rule against the installed torch, torchao, onnx and onnxruntime",
        description="Computes the same thing on both sides, on seeded random and adversarial inputs, and counts the "
        "values that differ by more than the bound. The exit status is 0 if there is none, else 1.",
        epilog="example: minquant crosscheck --quick --only 'static Linear*x86' --json out.json",
    )
    parser.add_argument("--quick", action="store_true", help="fewer cases: seconds, not minutes")
    parser.add_argument("--only", metavar="PATTERN", help="only checks with this in their name; * stands for anything")
    parser.add_argument("--seed", metavar="N", type=_seed, default=0, help="of the inputs; 0, if left out")
    parser.add_argument("--json", metavar="PATH", help="write the table to this file as well")
    parser.add_argument("--list", action="store_true", help="list the checks and run none")
    parser.set_defaults(run=run)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from minquant.crosscheck.checks import CHECKS
    from minquant.crosscheck.suite import select

    try:
        if args.json:
            check_folder(args.json)
        checks = select(CHECKS, args.only)
    except (FileNotFoundError, ValueError) as error:
        print(f"minquant crosscheck: {error}", file=sys.stderr)
        return 1
    if args.list:
        for check in checks:
            print(f"{check.name:<48}  {check.oracle}")
        if args.json:
            write_json(args.json, {"checks": [{"name": c.name, "oracle": c.oracle, "bound": c.bound} for c in checks]})
        return 0
    if importlib.util.find_spec("rich") is None:
        return _nothing_checked(
            checks, dict.fromkeys((c.name for c in checks), f"rich is not installed: {INSTALL}"), args
        )
    ran_on = all_versions()
    unchecked = {check.name: why for check in checks if (why := _obstacle(check, ran_on))}
    if len(unchecked) == len(checks):
        return _nothing_checked(checks, unchecked, args)
    return _run(checks, unchecked, ran_on, args)


def _obstacle(check: Check, ran_on: dict[str, Any]) -> str:
    """Why a check cannot run here; empty if it can."""
    if not check.available:
        return f"{check.needs} is not installed: {INSTALL}"
    if check.engine and check.engine not in ran_on["engines"]:
        return f"this torch was built without {check.engine}"
    return ""


def _nothing_checked(checks: Sequence[Check], unchecked: dict[str, str], args: argparse.Namespace) -> int:
    """Says what stays unchecked and why; the exit status."""
    print("minquant crosscheck: nothing was checked:", file=sys.stderr)
    _print_unchecked(unchecked, lambda line: print(line, file=sys.stderr))
    if args.json:
        write_json(args.json, _report([], unchecked, all_versions(), complete=False))
    return 1


def _run(checks: Sequence[Check], unchecked: dict[str, str], ran_on: dict[str, Any], args: argparse.Namespace) -> int:
    from minquant.crosscheck.suite import reproducer

    started = time.perf_counter()
    console = make_console()
    _print_versions(console, ran_on)
    results = _results(console, [check for check in checks if check.name not in unchecked], args)
    console.print(_table(results))
    for result in results:
        if not result.ok:
            console.print(reproducer(result, args.seed, args.quick), markup=False, soft_wrap=True, style="red")
    # What torch or the processor lacks cannot be checked by anybody here; a package that is missing can be installed.
    report = _report(results, unchecked, ran_on, complete=all(check.available for check in checks))
    _print_summary(console, report, results, time.perf_counter() - started)
    if args.json:
        write_json(args.json, report)
        console.print(f"written to {args.json}")
    return 0 if report["ok"] else 1


def _results(console: Console, checks: Sequence[Check], args: argparse.Namespace) -> list[Result]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from minquant.crosscheck.suite import run_check

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    results = []
    with _torch_ready(), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(checks))
        for check in checks:
            bar.update(task, description=check.name)
            results.append(run_check(check, args.seed, args.quick))
            bar.advance(task)
    return results


@contextlib.contextmanager
def _torch_ready() -> Iterator[None]:
    """Torch quiet and on one thread, where it is installed."""
    if importlib.util.find_spec("torch") is None:
        yield
        return
    import torch

    from minquant.crosscheck.quiet import one_thread, quiet

    with quiet(torch), one_thread(torch):
        yield


def _report(
    results: Sequence[Result], unchecked: dict[str, str], ran_on: dict[str, Any], complete: bool
) -> dict[str, Any]:
    return {
        "ok": bool(results) and all(result.ok for result in results) and complete,
        "versions": ran_on,
        "checks": [result.as_json() for result in results],
        "unchecked": unchecked,
    }


def all_versions() -> dict[str, Any]:
    """What this runs on: packages, and the processor as torch sees it; None for what is not installed."""
    return {
        **versions(),
        **{name: _version(name) for name in ORACLES},
        **(_processor() if importlib.util.find_spec("torch") else {"engines": [], "vnni": None}),
    }


def _version(package: str) -> str | None:
    return importlib.metadata.version(package) if importlib.util.find_spec(package) else None


def _processor() -> dict[str, Any]:
    import torch

    return {
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "vnni": torch.cpu._is_vnni_supported(),
        "engines": sorted(name for name in torch.backends.quantized.supported_engines if name != "none"),
    }


# ---- printing --------------------------------------------------------------------------------------------------------


def _print_versions(console: Console, ran_on: dict[str, Any]) -> None:
    packages = {name: ran_on[name] for name in ("minquant", "numpy", *ORACLES)}
    console.print(", ".join(f"{name} {found}" if found else f"no {name}" for name, found in packages.items()))
    if ran_on["torch"]:
        vnni = "with VNNI" if ran_on["vnni"] else "without VNNI: torch's engines speak minquant's dialects …_avx2"
        console.print(f"processor: {ran_on['cpu_capability']}, {vnni}; engines: {', '.join(ran_on['engines'])}")
    console.print("oracles: torch's, unless they name another; ao. is torch.ao.quantization, ops. torch.ops.quantized")


def _table(results: Sequence[Result]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("check", overflow="fold", max_width=39)  # all but the longest names on one line
    table.add_column("oracle", overflow="fold", max_width=25)
    for header in ("cases", "elements", "differ", "largest", "bound"):
        table.add_column(header, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        check = result.check
        verdict = "[green]ok[/green]" if result.ok else "[red]FAILED[/red]"
        counts = (f"{n:,}" for n in (result.cases, result.elements, result.mismatches))
        sizes = (f"{x:.1e}" if x else "0" for x in (result.max_abs_diff, check.bound))
        table.add_row(check.name, _short(check.oracle), *counts, *sizes, verdict)
    return table


def _short(oracle: str) -> str:
    for long, short in SHORT.items():
        if oracle.startswith(long):
            return short + oracle.removeprefix(long)
    return oracle


def _print_summary(console: Console, report: dict[str, Any], results: Sequence[Result], seconds: float) -> None:
    elements, mismatches = (sum(getattr(r, name) for r in results) for name in ("elements", "mismatches"))
    failed = sum(not result.ok for result in results)
    console.print(
        f"[bold]{len(results)} checks, {elements:,} elements, {mismatches:,} beyond their bound"
        f"{f', {failed} checks failed' if failed else ''}[/bold] ({seconds:.0f} s)"
    )
    _print_unchecked(report["unchecked"], lambda line: console.print(line, markup=False))


def _print_unchecked(unchecked: dict[str, str], out: Callable[[str], None]) -> None:
    """By reason, and for each the subjects with the number of their checks; then what stands in for them."""
    for why in dict.fromkeys(unchecked.values()):
        subjects = Counter(name.partition("/")[0] for name, reason in unchecked.items() if reason == why)
        out(f"not checked, since {why}:")
        for subject, count in subjects.items():
            out(f"  {subject} ({count} {'check' if count == 1 else 'checks'})")
    if unchecked:
        out(GOLDEN)
