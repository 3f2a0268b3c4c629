"""The command ``minquant``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minquant.commands import bench, compare, crosscheck, demo, finetune, lessons, rosetta

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Args:
        argv: the arguments, without the program's name; those of the process if left out.
    """
    parser = argparse.ArgumentParser(
        prog="minquant",
        description="Neural-network quantization from scratch: what a quantized model really computes.",
        epilog="examples:\n  minquant demo all --json out.json --plots plots\n  minquant lessons open 01\n"
        "  minquant crosscheck --quick\n  minquant compare net.py:make_float net.py:make_quantized inputs.npy",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in (demo, lessons, finetune, crosscheck, compare, rosetta, bench):
        command.add_parser(subparsers)
    args = parser.parse_args(argv)
    if not hasattr(args, "run"):
        parser.print_help()
        return 0
    try:
        return args.run(args)
    except KeyboardInterrupt:
        print("minquant: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
