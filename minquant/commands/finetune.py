"""``minquant finetune``: trains a language model, in float, with rounding, with adapters or from a teacher."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minquant.commands.output import check_folder, make_console, versions, write_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from minquant.train.config import Config
    from minquant.train.recipes import Run
    from minquant.train.table import Table

RECIPES = ("full", "qat", "qat-lora", "qad")
NEEDED = {"rich": "rich", "safetensors": "safetensors", "matplotlib": "matplotlib"}
EXAMPLE = """\
examples:
  minquant finetune full --config full.toml
  minquant finetune qat --config qat.toml --json out.json --plots plots
  minquant finetune qat --config qat.toml --resume
  torchrun --nproc-per-node 2 -m minquant finetune qat --config qat.toml
  minquant finetune table --json out.json --plots plots

qat.toml, beside what full.toml left in runs/full (every key: minquant/train/config.py):
  out = "runs/qat"
  start = "runs/full/model.safetensors"

  [training]
  steps = 300
  lr = 2e-3

  [quantization]
  weight_dtype = "int4"
  group_size = 32
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``finetune`` to the command line."""
    parser = subparsers.add_parser(
        "finetune",
        help="train a language model with its rounding in the loop",
        description="Trains a small Llama: full (float), qat (rounded in the forward pass), qat-lora (adapters alone), "
        "qad (from a float teacher). Leaves checkpoints and the model in the folder that the config names. table: "
        "trains and quantizes everything from nothing, and tells what QAT gives back (about half an hour).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", choices=[*RECIPES, "table"], help="what to do")
    parser.add_argument("--config", metavar="FILE", help="the run, as TOML; the defaults if left out")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    parser.add_argument("--json", metavar="PATH", help="write the figures to this file as well")
    parser.add_argument("--plots", metavar="DIR", help="write the loss curve, or the table as a picture, here")
    parser.add_argument("--quick", action="store_true", help="table: one seed and few steps, to see it run")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        print(
            f"minquant finetune: {', '.join(missing)} not installed; run: pip install 'minquant[demo]'", file=sys.stderr
        )
        return 1
    try:
        _check_arguments(args)
        return _table(args) if args.recipe == "table" else _recipe(args)
    except (ValueError, OSError, ImportError, FloatingPointError, RuntimeError) as error:
        print(f"minquant finetune: {error}", file=sys.stderr)
        return 1


def _check_arguments(args: argparse.Namespace) -> None:
    if args.recipe == "table" and (args.config or args.resume):
        raise ValueError("table takes neither --config nor --resume: it makes everything from nothing")
    if args.recipe != "table" and args.quick:
        raise ValueError("--quick is for table; a recipe's steps are in its config, [training] steps = …")
    if args.json:
        check_folder(args.json)
    if args.plots:
        Path(args.plots).mkdir(parents=True, exist_ok=True)


def _bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)


# ---- a recipe --------------------------------------------------------------------------------------------------------


def _recipe(args: argparse.Namespace) -> int:
    from minquant.train.config import Config, read_config
    from minquant.train.parallel import Processes

    config = read_config(args.config) if args.config else Config()
    started = time.perf_counter()
    with Processes() if "WORLD_SIZE" in os.environ else nullcontext() as processes:
        result = _watched(args, config, processes)
        if processes is None or processes.rank == 0:
            _tell(args, config, result, time.perf_counter() - started)
    return 0


def _watched(args: argparse.Namespace, config: Config, processes: Any) -> Run:
    """The run, under a progress bar that the first process shows."""
    from minquant.train.recipes import finetune

    with _bars(make_console()) as bars:
        bars.disable = bool(processes and processes.rank)
        task = bars.add_task(args.recipe, total=config.training.steps)

        def show(step: int, loss: float) -> None:
            bars.update(task, completed=step + 1, description=f"{args.recipe}: loss {loss:.4f}")

        return finetune(args.recipe, config, resume=args.resume, after_step=show, processes=processes)


def _tell(args: argparse.Namespace, config: Config, result: Run, seconds: float) -> None:
    console = make_console()
    _print_rows(console, result.rows)
    console.print(f"model and checkpoints in {config.out}")
    if args.plots:
        from minquant.train.plots import loss_curve

        console.print(f"picture written to {loss_curve(result.losses, Path(args.plots) / 'loss.png')}")
    report = {"recipe": args.recipe, "rows": result.rows, "recovery": [], "losses": result.losses}
    _finish(args, console, report, seconds)


def _finish(args: argparse.Namespace, console: Console, report: dict[str, Any], seconds: float) -> None:
    if args.json:
        write_json(args.json, {**report, "seconds": seconds, "versions": versions()})
        console.print(f"figures written to {args.json}")
    console.print(f"[dim]{seconds:.0f} s in all[/dim]")


def _print_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table as Lines

    lines = Lines(box=box.SIMPLE_HEAD)
    names = (
        "scheme",
        "group size",
        "stage",
        "seed",
        "nats/token",
        "word ppl",
        "byte ppl",
        "bits/byte",
        "acc",
        "acc_norm",
    )
    for name in names:
        lines.add_column(name, justify="left" if name in ("scheme", "stage") else "right")
    for row in rows:
        lines.add_row(
            row["scheme"], str(row["group_size"] or "–"), row["stage"], str(row["seed"]), f"{row['nll']:.4f}",
            f"{row['word_ppl']:.4g}", f"{row['byte_ppl']:.3f}", f"{row['bits_per_byte']:.4f}", f"{row['acc']:.1%}",
            f"{row['acc_norm']:.1%}",
        )  # fmt: skip
    console.print(lines)


# ---- the table -------------------------------------------------------------------------------------------------------


def _table(args: argparse.Namespace) -> int:
    from minquant.train.table import QUICK, Plan, make_table

    plan = QUICK if args.quick else Plan()
    started = time.perf_counter()
    console = make_console()
    with _bars(console) as bars:
        task = bars.add_task("starting", total=plan.steps)

        def show(what: str, step: int, loss: float) -> None:
            bars.update(task, advance=1, description=f"{what}: loss {loss:.4f}")

        table = make_table(plan, show)
    _print_rows(console, table.rows)
    _print_recovery(console, table)
    if args.plots:
        from minquant.train.plots import recovery_by_scheme

        console.print(f"picture written to {recovery_by_scheme(table, Path(args.plots) / 'recovery.png')}")
    seconds = time.perf_counter() - started
    _finish(
        args, console, {"rows": table.rows, "recovery": table.recovery, "float_seconds": table.float_seconds}, seconds
    )
    missed = [entry["name"] for entry in table.recovery if False in (entry["reached"], entry["acc_norm_reached"])]
    if missed and not args.quick:
        print(f"minquant finetune table: a figure was missed: {'; '.join(missed)}", file=sys.stderr)
    return int(bool(missed) and not args.quick)


def _print_recovery(console: Console, table: Table) -> None:
    from rich import box
    from rich.table import Table as Lines

    lines = Lines(box=box.SIMPLE_HEAD)
    for name in ("activations × weights", "nats lost", "given back", "figure", "acc_norm lost", "given back", "figure"):
        first = name.startswith("activations")
        lines.add_column(name, justify="left" if first else "right", no_wrap=first)
    for entry in table.recovery:
        lines.add_row(entry["name"], *_shown(entry, "", "{:.4f}"), *_shown(entry, "acc_norm_", "{:.1%}"))
    console.print("given back by QAT: 1 − (qat − control) / (ptq − float), mean ± standard deviation over the seeds;")
    console.print("lost by ptq: ± standard error; the figure is left open (–) where the loss is below five of them")
    console.print(lines)


def _shown(entry: dict[str, Any], prefix: str, cost: str) -> tuple[str, str, str]:
    """What rounding costs, what of it is given back, and the verdict."""
    mean, std, reached = (entry[prefix + key] for key in ("mean", "std", "reached"))
    amount = f"{cost.format(entry[prefix + 'cost'])} ± {cost.format(entry[prefix + 'standard_error'])}"
    back = "–" if mean is None else f"{mean:.0%}" + ("" if std is None else f" ± {std:.0%}")
    verdict = {True: "[green]✓[/green]", False: "[red]missed[/red]", None: "–"}[reached]
    return amount, back, f"≥ {entry[prefix + 'figure']:.0%} {verdict}"
