"""``minquant compare A B INPUTS``: two models layer by layer, and why the first layer that differs does."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

from minquant.commands.output import check_folder, versions, write_json
from minquant.commands.rosetta import load

__all__ = ["add_parser", "make_model", "run"]

EQUAL, DIFFERENT, TROUBLE = 0, 1, 2


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``compare`` to the command line."""
    parser = subparsers.add_parser(
        "compare",
        help="find the first layer in which two models differ, and why",
        description="Runs two models layer by layer, on their own inputs and on the same ones, and names the first "
        "layer that differs and the cause. The models are minquant's or torch's: float, prepared, or quantized.",
        epilog="example:\n  minquant compare net.py:make_float net.py:make_quantized inputs.npy --json out.json\n\n"
        "Each function is called without arguments and returns a model; its file is run, so compare only what you "
        "trust.\nexit status: 0 if no layer differs, 1 if one does, 2 if the models could not be compared (as diff "
        "has it)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", metavar="FILE.py:FUNCTION", help="makes the reference, the float model for example")
    parser.add_argument("second", metavar="FILE.py:FUNCTION", help="makes the model that is in question")
    parser.add_argument("inputs", metavar="INPUTS.npy", help="a batch of inputs, saved by numpy.save")
    parser.add_argument("--json", metavar="PATH", help="write the table to this file as well")
    parser.add_argument("--plots", metavar="DIR", help="draw the share of differing values by layer into this folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    from minquant.crosscheck import compare

    try:
        if args.json:
            check_folder(args.json)
        if args.plots:
            Path(args.plots).mkdir(parents=True, exist_ok=True)
        inputs = load(args.inputs)
        comparison = compare(make_model(args.first), make_model(args.second), inputs)
        print(comparison)
        if args.json:
            write_json(args.json, comparison.as_json() | {"versions": versions()})
            print(f"written to {args.json}")
        if args.plots:
            comparison.plot(Path(args.plots) / "compare.png")
            print(f"drawn in {Path(args.plots) / 'compare.png'}")
    except (OSError, TypeError, ValueError, ImportError) as error:
        print(f"minquant compare: {error}", file=sys.stderr)
        return TROUBLE
    return EQUAL if comparison.first_divergent is None else DIFFERENT


def make_model(where: str) -> Any:
    """Runs ``FILE.py:FUNCTION`` and returns the model that it makes.

    Raises:
        ValueError: not of this form, no such function, or one that fails; the message says which.
        FileNotFoundError: no such file.
        TypeError: the function returns no model.
    """
    path, colon, name = where.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f"expected FILE.py:FUNCTION, for example net.py:make_quantized; got {where!r}")
    if not Path(path).is_file():
        raise FileNotFoundError(f"{where}: there is no file {path}")
    function = getattr(_run_file(path), name, None)
    if not callable(function):
        raise ValueError(f"{where}: {path} defines no function {name}")
    try:
        model = function()
    except Exception as error:
        raise ValueError(f"{where}: {name}() failed: {type(error).__name__}: {error}") from error
    if not hasattr(model, "named_modules"):
        raise TypeError(f"{where}: {name}() must return a minquant or torch model, got {type(model).__name__}")
    return model


def _run_file(path: str) -> Any:
    """The file as a module; its own folder is searched for what it imports, as Python does for a script."""
    folder = str(Path(path).resolve().parent)
    spec: Any = importlib.util.spec_from_file_location(f"compared_{Path(path).stem}", path)
    if spec is None:
        raise ValueError(f"{path}: expected a Python file, FILE.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    return module
