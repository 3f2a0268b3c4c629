"""Builds the notebooks: ``lessons/NN_topic.py`` (percent format) becomes an executed ``NN_topic.ipynb``.

Usage:
    python lessons/build.py [NN ...]            build all lessons, or those named
    python lessons/build.py --check [NN ...]    is each notebook up to date, and does its lesson still run?
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbclient
import nbformat
from nbformat import NotebookNode

FOLDER = Path(__file__).resolve().parent
LARGEST = 400_000
SECONDS_PER_CELL = 600
TIMED = ("10",)
"""Lessons that measure speed: they run alone, the others side by side where nothing but their outcome is wanted."""
ONE_THREAD = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MINQUANT_NUM_THREADS")}
KERNEL = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# What would differ from machine to machine or from run to run.
NOT_REPRODUCIBLE = re.compile(r" at 0x[0-9a-f]{6,}|site-packages|/tmp/")


class LessonError(Exception):
    """A lesson that breaks a rule of lessons/README.md; the message says which, where and why."""


def lesson_paths(numbers: list[str] | None = None) -> list[Path]:
    """The lessons' sources in order: all of them, or those with these numbers (``["03", "5"]``)."""
    paths = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
    if not numbers:
        return paths
    by_number = {int(path.name[:2]): path for path in paths}
    unknown = [n for n in numbers if not n.isdigit() or int(n) not in by_number]
    if unknown:
        there = ", ".join(path.name[:2] for path in paths)
        raise LessonError(f"there is no lesson {', '.join(unknown)}; there are {there}.")
    return [by_number[int(n)] for n in numbers]


# Source to notebook -----------------------------------------------------------------------------------------


def read_lesson(path: Path) -> NotebookNode:
    """The notebook that a lesson's source describes, not executed: ids, metadata and sources are final."""
    source = jupytext.reads(path.read_text(encoding="utf-8"), fmt="py:percent")
    notebook = nbformat.v4.new_notebook(metadata=KERNEL)
    seen: dict[str, int] = {}
    for cell in source.cells:
        metadata = cell_metadata(cell.metadata, path)
        make = nbformat.v4.new_markdown_cell if cell.cell_type == "markdown" else nbformat.v4.new_code_cell
        cell_id = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:12]
        seen[cell_id] = seen.get(cell_id, 0) + 1
        again = f"-{seen[cell_id]}" if seen[cell_id] > 1 else ""
        notebook.cells.append(make(cell.source, metadata=metadata, id=cell_id + again))
    return notebook


def cell_metadata(written: dict, path: Path) -> dict:
    """What a cell's header says; ``answer="x" lines=3`` and ``check="x" points=2`` in nbgrader's terms."""
    known = {"tags", "answer", "lines", "check", "points"}
    unknown = set(written) - known - {"lines_to_next_cell"}  # jupytext's note of how the source is spaced
    if unknown:
        raise LessonError(f"{path.name}: unknown cell metadata {sorted(unknown)}; known are {sorted(known)}.")
    metadata = {key: written[key] for key in ("tags", "lines") if key in written}
    if "answer" in written:
        grade_id, extra = grade_id_of(path, written["answer"]), {}
    elif "check" in written:
        grade_id, extra = grade_id_of(path, written["check"]) + "-test", {"points": written.get("points", 1)}
    else:
        return metadata
    is_check = "check" in written
    return metadata | {
        "nbgrader": {
            "schema_version": 3,
            "grade": is_check,
            "grade_id": grade_id,
            "locked": is_check,
            "solution": not is_check,
            "task": False,
            **extra,
        }
    }


def grade_id_of(path: Path, exercise: str) -> str:
    """``03_zero_point.py`` and ``max_k`` give ``l03-max_k``."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", exercise):
        raise LessonError(f"{path.name}: exercise name {exercise!r} may hold letters, digits and _ only.")
    return f"l{path.name[:2]}-{exercise}"


# Execution --------------------------------------------------------------------------------------------------


def execute(path: Path, settings: dict[str, str] | None = None) -> NotebookNode:
    """The lesson's notebook with fresh outputs. Raises LessonError where a cell fails or writes to stderr.

    Args:
        path: its source.
        settings: environment variables for it.
    """
    notebook = read_lesson(path)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],
        resources={"metadata": {"path": str(FOLDER)}},
    )
    with tempfile.TemporaryDirectory() as scratch:
        # A fresh profile, and this checkout's minquant, whatever the reader's own settings are.
        path_list = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {
            "IPYTHONDIR": scratch,
            "PYTHONPATH": os.pathsep.join(filter(None, path_list)),
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            **(settings or {}),
        }
        environment.pop("MPLBACKEND", None)
        try:
            client.execute(env=environment)
        except nbclient.exceptions.CellExecutionError as error:
            raise LessonError(f"{path.name}: a cell failed.\n{error}") from None
    notebook.metadata = nbformat.from_dict(KERNEL)  # the client has added the versions of its own kernel
    check_outputs(notebook, path)
    return notebook


def check_outputs(notebook: NotebookNode, path: Path) -> None:
    """Refuses stderr, and text that would change from run to run or from machine to machine."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            where = f"{path.name}: the cell that begins {cell.source.splitlines()[0]!r}"
            text = output.get("text", "") or output.get("data", {}).get("text/plain", "")
            if output.get("name") == "stderr":
                raise LessonError(f"{where} writes to stderr:\n{text}")
            private = NOT_REPRODUCIBLE.search(text) or re.search(re.escape(str(FOLDER.parent)), text)
            if private:
                raise LessonError(f"{where} prints what differs between machines or runs: {private[0]!r}.")


def write(notebook: NotebookNode, path: Path) -> int:
    """Writes the lesson's notebook whole or not at all; returns its size in bytes."""
    text = nbformat.writes(notebook, version=nbformat.NO_CONVERT) + "\n"
    size = len(text.encode())
    if size > LARGEST:
        raise LessonError(f"{path.name}: its notebook has {size:,} bytes, the limit is {LARGEST:,}; smaller plots?")
    unfinished = path.with_suffix(".ipynb.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path.with_suffix(".ipynb"))
    return size


# Is the committed notebook up to date? ----------------------------------------------------------------------


def staleness(path: Path) -> str | None:
    """Why the committed notebook is not what its source would build, or None where it is."""
    built = path.with_suffix(".ipynb")
    rebuild = f"run: python lessons/build.py {path.name[:2]}"
    if not built.exists():
        return f"{built.name} does not exist; {rebuild}"
    committed = nbformat.reads(built.read_text(encoding="utf-8"), as_version=nbformat.NO_CONVERT)
    expected = read_lesson(path)
    if committed.metadata != expected.metadata:
        return f"{built.name}: the notebook's metadata differ; {rebuild}"
    for i, (ours, theirs) in enumerate(zip(expected.cells, committed.cells, strict=False)):
        for key in ("cell_type", "id", "metadata", "source"):
            if ours[key] != theirs.get(key):
                return f"{built.name}: cell {i} differs from its source in its {key}; {rebuild}"
        if ours.cell_type == "code" and ours.source and theirs.execution_count is None:
            return f"{built.name}: cell {i} was never executed; {rebuild}"
    if len(expected.cells) != len(committed.cells):
        return f"{built.name} has {len(committed.cells)} cells, its source {len(expected.cells)}; {rebuild}"
    check_outputs(committed, path)
    return None


def main(arguments: list[str] | None = None) -> int:
    """Builds or checks; returns the number of lessons that failed."""
    parser = argparse.ArgumentParser(description="Builds the lessons' notebooks.")
    parser.add_argument("lessons", nargs="*", metavar="NN", help="numbers of the lessons; all where none is given")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a notebook is out of date")
    options = parser.parse_args(arguments)
    paths = lesson_paths(options.lessons)
    if not paths:
        raise LessonError(f"there are no lessons in {FOLDER}.")
    alone = [path for path in paths if path.name[:2] in TIMED]
    together = [path for path in paths if path not in alone]
    with ThreadPoolExecutor(os.cpu_count() if options.check else 1) as pool:
        settings = ONE_THREAD if options.check else None
        succeeded = [*pool.map(lambda path: process(path, options.check, settings), together)]
    succeeded += [process(path, options.check) for path in alone]
    return succeeded.count(False)


def process(path: Path, only_check: bool, settings: dict[str, str] | None = None) -> bool:
    """Builds or checks one lesson and says how it went; returns whether it went well."""
    start = time.perf_counter()
    try:
        stale = staleness(path) if only_check else None
        if stale:
            raise LessonError(stale)
        notebook = execute(path, settings)
        done = "up to date, and it runs" if only_check else f"{write(notebook, path):,} bytes"
        print(f"{path.name}: {done} ({time.perf_counter() - start:.1f} s)", flush=True)
    except LessonError as error:
        print(f"FAILED {error}", file=sys.stderr, flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(min(main(), 1))
