"""``minquant crosscheck``: runs the conformance suite against the installed torch and torchao."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minquant.commands.output import check_folder, make_console, versions, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from minquant.crosscheck.suite import Check, Result

SHORT = {"torch.ao.quantization.": "ao.", "torch.ops.quantized.": "ops.", "torch.": ""}
INSTALL = "pip install 'minquant[torch,demo]'"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``crosscheck`` to the command line."""
    parser = subparsers.add_parser(
        "crosscheck",
        help="check every rule against the installed torch and torchao",
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
    missing = [name for name in ("torch", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        return _nothing_checked(checks, missing, args.json)
    return _run(checks, args)


def _nothing_checked(checks: Sequence[Check], missing: list[str], path: str | None) -> int:
    """Says what stays unchecked and why; the exit status."""
    print(f"minquant crosscheck: {' and '.join(missing)} not installed, so none of these was checked:", file=sys.stderr)
    subjects: dict[str, int] = {}
    for check in checks:
        subject = check.name.partition("/")[0]
        subjects[subject] = subjects.get(subject, 0) + 1
    for subject, count in subjects.items():
        print(f"  {subject} ({count} {'check' if count == 1 else 'checks'})", file=sys.stderr)
    print(f"run: {INSTALL}", file=sys.stderr)
    if path:
        why = f"{' and '.join(missing)} not installed"
        write_json(path, _report([], {check.name: why for check in checks}, all_versions(), complete=False))
    return 1


def _run(checks: Sequence[Check], args: argparse.Namespace) -> int:
    from minquant.crosscheck.suite import reproducer

    started = time.perf_counter()
    console = make_console()
    ran_on = all_versions()
    unchecked = {check.name: why for check in checks if (why := _obstacle(check, ran_on))}
    able = [check for check in checks if check.name not in unchecked]
    _print_versions(console, ran_on)
    results = _results(console, able, args)
    console.print(_table(results))
    for result in results:
        if not result.ok:
            console.print(reproducer(result, args.seed, args.quick), markup=False, soft_wrap=True, style="red")
    # An engine that torch lacks cannot be checked by anybody here; a package that is missing can be installed.
    report = _report(results, unchecked, ran_on, complete=all(check.available for check in checks))
    _print_summary(console, report, results, time.perf_counter() - started)
    if args.json:
        write_json(args.json, report)
        console.print(f"written to {args.json}")
    return 0 if report["ok"] else 1


def _results(console: Console, checks: Sequence[Check], args: argparse.Namespace) -> list[Result]:
    import torch
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from minquant.crosscheck.quiet import one_thread, quiet
    from minquant.crosscheck.suite import run_check

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    results = []
    with quiet(torch), one_thread(torch), Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(checks))
        for check in checks:
            bar.update(task, description=check.name)
            results.append(run_check(check, args.seed, args.quick))
            bar.advance(task)
    return results


def _obstacle(check: Check, ran_on: dict[str, Any]) -> str:
    """Why a check cannot run here; empty if it can."""
    if not check.available:
        return f"{check.needs} is not installed: {INSTALL}"
    if check.engine and check.engine not in ran_on["engines"]:
        return f"this torch was built without {check.engine}"
    return ""


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
        "torch": _version("torch"),
        "torchao": _version("torchao"),
        **(_processor() if importlib.util.find_spec("torch") else {}),
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
    packages = ", ".join(f"{name} {ran_on[name]}" for name in ("minquant", "numpy", "torch", "torchao"))
    vnni = "with VNNI" if ran_on["vnni"] else "without VNNI, where fbgemm's sums may saturate"
    console.print(packages.replace("torchao None", "no torchao"))
    console.print(f"processor: {ran_on['cpu_capability']}, {vnni}; engines: {', '.join(ran_on['engines'])}")
    console.print(
        "oracles: torch's, unless they say torchao; ao. is torch.ao.quantization, ops. is torch.ops.quantized"
    )


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
    for name, why in report["unchecked"].items():
        console.print(f"not checked: {name} ({why})", markup=False)
