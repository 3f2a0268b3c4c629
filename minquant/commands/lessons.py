"""``minquant lessons``: lists the lessons, and opens them in JupyterLab."""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from minquant.commands.output import check_folder, write_json

FOLDER = Path(__file__).resolve().parents[2] / "lessons"
_TITLE = re.compile(r"^# # (\d\d) (.+)$", re.MULTILINE)
_QUESTION = re.compile(r"^# \*([^*].*)\*$", re.MULTILINE)


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``lessons`` to the command line."""
    parser = subparsers.add_parser(
        "lessons",
        help="list the lessons; open them in JupyterLab",
        description="Lists the lessons, or opens them in JupyterLab.",
        epilog="example: minquant lessons open 03",
    )
    parser.add_argument("action", nargs="?", choices=["list", "open"], default="list", help="list, if left out")
    parser.add_argument("number", nargs="?", metavar="NN", help="the lesson to open; the folder, if left out")
    parser.add_argument("--json", metavar="PATH", help="write the list to this file as well")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit status."""
    try:
        if args.json:
            check_folder(args.json)
        found = lessons()
        if args.action == "open":
            return open_in_jupyterlab(found, args.number)
        if args.number:
            raise ValueError(f"`list` takes no number; did you mean: minquant lessons open {args.number}")
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:
        print(f"minquant lessons: {error}", file=sys.stderr)
        return 1
    for lesson in found:
        print(f"{lesson['number']}  {lesson['title']}\n    {lesson['question']}")
    print("\nOpen one with: minquant lessons open NN")
    if args.json:
        write_json(args.json, {"lessons": found})
    return 0


def lessons() -> list[dict[str, str]]:
    """The lessons in order, as ``describe`` gives them. FileNotFoundError where the folder isn't at hand."""
    sources = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    if not sources:
        raise FileNotFoundError(
            f"the lessons are not at {FOLDER}: they come with minquant's repository, not with an installed "
            "package. Clone the repository and run in it: pip install -e '.[lessons]'"
        )
    return [describe(source) for source in sources]


def describe(source: Path) -> dict[str, str]:
    """Number, title, question and notebook, from the first cell's lines ``# 03 Title`` and ``*Why?*``."""
    first_cell = source.read_text(encoding="utf-8").split("\n# %%", 1)[0]
    title, question = _TITLE.search(first_cell), _QUESTION.search(first_cell)
    if not title or not question:
        raise ValueError(
            f"{source.name} must open with a cell that holds the line '# {source.name[:2]} Title' "
            "and its question on a line in italics, '*Why?*'"
        )
    notebook = source.with_suffix(".ipynb").name
    return {"number": title[1], "title": title[2], "question": question[1], "notebook": notebook}


def open_in_jupyterlab(found: list[dict[str, str]], number: str | None) -> int:
    """Starts JupyterLab in the lessons' folder, on one lesson where a number is given."""
    by_number = {int(lesson["number"]): lesson["notebook"] for lesson in found}
    if number is not None and (not number.isdecimal() or int(number) not in by_number):
        there = ", ".join(lesson["number"] for lesson in found)
        raise ValueError(f"there is no lesson {number!r}; there are {there}")
    if importlib.util.find_spec("jupyterlab") is None:
        raise ModuleNotFoundError("JupyterLab is not installed; run: pip install -e '.[lessons]'")
    command = [sys.executable, "-m", "jupyterlab"]
    if number is not None:
        command.append(by_number[int(number)])
    return subprocess.call(command, cwd=FOLDER)
