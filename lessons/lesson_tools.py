"""What every lesson uses: integers side by side, checks that explain themselves, a quiet torch, plots alike.

A lesson runs in this folder and imports from here: ``from lesson_tools import check, compare, use_style``.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import tomllib
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from minquant.crosscheck import processor
from minquant.crosscheck.quiet import PYTHON_NOTICES, spend_native_notice

COLOURS = {"float": "#6b6b6b", "minquant": "#0072b2", "torch": "#d55e00"}
RECORDED_WITH = "torch 2.13.0"


# Side by side -----------------------------------------------------------------------------------------------


def compare(name: str, ours: Any, theirs: Any, columns: tuple[str, str] = ("minquant", "torch")) -> bool:
    """Prints ``ours`` beside ``theirs``, differing values marked ``*``, under a line that sums them up.

    The line says the shape and either ``exact`` or how many values differ and by how much at most. Tensors,
    quantized tensors and arrays will do. Returns whether all are equal: ``assert compare(...)``.
    """
    a, b = as_array(ours), as_array(theirs)
    if a.shape != b.shape:
        print(f"{name}: shapes differ, {columns[0]} {a.shape}, {columns[1]} {b.shape}")
        return False
    different = ~((a == b) | ((a != a) & (b != b)))
    count, total = int(different.sum()), a.size
    if count:
        largest = np.max(np.abs(a[different].astype(np.float64) - b[different].astype(np.float64)))
        verdict = f"{count} of {total} differ ({count / total:.1%}), largest difference {largest:g}"
    else:
        verdict = f"exact, all {total} equal"
    print(f"{name} {a.shape}: {verdict}")
    left, right = ([columns[0], *rows(a, different)], [columns[1], *rows(b, different)])
    width = max(map(len, left)) + 4
    for ours_row, theirs_row in zip(left, right, strict=True):
        print(f"    {ours_row:<{width}}{theirs_row}")
    return not count


def as_array(values: Any) -> np.ndarray:
    """The integers of a quantized tensor (minquant's or torch's), the values of anything else."""
    if hasattr(values, "int_repr") and getattr(values, "is_quantized", True):
        values = values.int_repr()
    if hasattr(values, "detach"):
        values = values.detach()
    return values.numpy() if hasattr(values, "numpy") else np.asarray(values)


def rows(values: np.ndarray, marked: np.ndarray, most_rows: int = 4, most_columns: int = 8) -> list[str]:
    """The first rows and columns as aligned text, ``…`` where there is more."""
    table = np.atleast_1d(values).reshape(-1, values.shape[-1] if values.ndim else 1)
    marks = np.atleast_1d(marked).reshape(table.shape)
    mark = (" ", "*") if marked.any() else ("", "")
    written = [
        [as_text(v) + mark[bool(m)] for v, m in zip(row[:most_columns], row_marks, strict=False)]
        for row, row_marks in zip(table[:most_rows], marks, strict=False)
    ]
    width = max((len(text) for row in written for text in row), default=0)
    more = " …" if table.shape[1] > most_columns else ""
    lines = [" ".join(f"{text:>{width}}" for text in row) + more for row in written]
    return [*lines, "…"] if len(table) > most_rows else lines


def as_text(value: Any) -> str:
    """A number as a lesson prints it: integers whole, floats to six significant digits."""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


# Exercises --------------------------------------------------------------------------------------------------


def check(
    case: str,
    yours: Any,
    specification: Any,
    means: Sequence[tuple[Any, str]] = (),
    within: float = 0.0,
    quiet: bool = False,
) -> None:
    """Prints ``✓ case`` where ``yours`` is what the specification gives, else raises AssertionError.

    Args:
        case: The call with its input as the reader would write it, ``"quantize([0.5, 1.5])"``.
        yours: What the reader's function returned: a number, array, string, or a tuple or list of them.
        specification: What the naive specification returns.
        means: ``(value, explanation)`` pairs: where ``yours`` equals ``value``, the error explains it.
        within: The largest difference allowed, by a bound that the lesson derives. 0: exactly equal.
        quiet: Don't print, for the many cases of a loop.
    """
    if same(yours, specification, within):
        if not quiet:
            print(f"✓ {case}")
        return
    lines = [case, f"    specification  {shown(specification)}", f"    yours          {shown(yours)}"]
    if yours is None:
        lines.append("    Nothing was returned: is the hole still empty, or a return missing?")
    for value, explanation in means:
        if same(yours, value, within):
            lines.append(f"    {explanation}")
    raise AssertionError("\n".join(lines))


def same(a: Any, b: Any, within: float) -> bool:
    """Equal shape and values, up to ``within``; nan equals nan."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y, within) for x, y in zip(a, b, strict=True))
    if a is None or b is None or isinstance(a, str) or isinstance(b, str):
        return type(a) is type(b) and a == b
    try:
        a, b = as_array(a), as_array(b)
        if a.shape != b.shape:
            return False
        if not within:
            return bool(np.all((a == b) | ((a != a) & (b != b))))
        return bool(np.allclose(a, b, rtol=0, atol=within, equal_nan=True))
    except (TypeError, ValueError):
        return False


def shown(value: Any) -> str:
    """A value on one line: arrays as lists."""
    if isinstance(value, tuple):
        return "(" + ", ".join(shown(v) for v in value) + ")"
    if isinstance(value, list):
        return "[" + ", ".join(shown(v) for v in value) + "]"
    if value is None or isinstance(value, str):
        return repr(value)
    array = as_array(value)
    return shown(array.tolist()) if array.ndim else as_text(array.item())


# torch ------------------------------------------------------------------------------------------------------


def quiet_torch() -> ModuleType | None:
    """torch, with torchao loaded where it is installed and known notices silenced, or None without torch."""
    for category, message in PYTHON_NOTICES:
        warnings.filterwarnings("ignore", message=message, category=category)
    try:
        torch = importlib.import_module("torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    # torchao logs each binary that it has for other machines, and a deprecation of its own making.
    levels = {name: logging.getLogger(name).level for name in ("torchao", "torch.utils._pytree")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.ERROR)
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("torchao")
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    torch.set_num_threads(1)
    spend_native_notice(torch)
    return torch


def dialect_of(engine: str) -> str:
    """What torch's engine speaks on this processor: without VNNI its sums may saturate, and minquant has a name for it.

    Without torch, the dialect of the engine's own name.
    """
    return engine if quiet_torch() is None else processor.dialect_of(engine)


def torch_or_recorded(compute: Callable[[ModuleType], Any], recorded: Any) -> Any:
    """``compute(torch)`` where torch is installed, else ``recorded``, and says so.

    With torch installed the recorded values are tested: integers must be equal, floats agree to the six
    significant digits to which they are written down.
    """
    torch = quiet_torch()
    if torch is None:
        print(f"(torch is not installed: its values were recorded with {RECORDED_WITH})")
        return recorded
    fresh = compute(torch)
    a, b = as_array(fresh), as_array(recorded)
    digits = 0 if np.issubdtype(a.dtype, np.integer) else 1e-5
    if a.shape != b.shape or not np.allclose(a, b, rtol=digits, atol=0):
        raise ValueError(f"the recorded values are not what torch gives: recorded {shown(b)}, now {shown(a)}")
    return fresh


def show_versions() -> None:
    """Prints the versions that this lesson runs with."""
    with open(Path(__file__).resolve().parent.parent / "pyproject.toml", "rb") as file:
        found = {"minquant": tomllib.load(file)["project"]["version"]}
    for package in ("numpy", "torch", "torchao"):
        try:
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            found[package] = "not installed"
    print(" · ".join(f"{package} {number}" for package, number in found.items()))


# Plots ------------------------------------------------------------------------------------------------------


def use_style() -> None:
    """One look for every plot; draw float, minquant and torch in ``COLOURS["float"]`` and so on."""
    import matplotlib
    from cycler import cycler

    matplotlib.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "axes.titlesize": 12,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e3e3e3",
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "axes.prop_cycle": cycler(color=[COLOURS["minquant"], COLOURS["torch"], "#009e73", "#cc79a7"]),
        }
    )
