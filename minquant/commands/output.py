"""What every command does with its report: where it is printed, and the file that ``--json PATH`` asks for."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 110
"""Columns where the output is no terminal."""


def make_console() -> Console:
    """The terminal, as wide as it is, or a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)


def versions() -> dict[str, Any]:
    """What every report says that it ran on."""
    return {
        "minquant": importlib.metadata.version("minquant"),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def check_folder(path: str | os.PathLike[str]) -> None:
    """Refuses, before the work begins, a path that could not be written to after it.

    Raises:
        FileNotFoundError: its folder does not exist.
    """
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"--json {path}: there is no folder {folder}; create it first")


def write_json(path: str | os.PathLike[str], report: Any) -> None:
    """Writes ``report`` as JSON, whole or not at all; ValueError on NaN and infinity, which JSON lacks."""
    target = Path(path)
    unfinished = target.with_name(target.name + ".tmp")
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, target)
