"""Runs the lessons' exercises as a grader would: the solution, the empty hole, the listed wrong answers.

Usage:
    python lessons/exercises.py [NN ...]        shows what every answer makes the check say
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import runpy
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from build import FOLDER, LessonError, lesson_paths, read_lesson

SOLUTION = ("### BEGIN SOLUTION", "### END SOLUTION")
HIDDEN = ("### BEGIN HIDDEN TESTS", "### END HIDDEN TESTS")
SETUP_TAG = "exercise-setup"
FEWEST_WRONG_ANSWERS = 2


@dataclass(frozen=True)
class Exercise:
    """One exercise: the cells that it needs, in order. ``lines`` is the stated length of the solution."""

    name: str
    grade_id: str
    setup: tuple[str, ...]
    answer: str
    check: str
    lines: int
    points: int

    @property
    def empty_answer(self) -> str:
        """The answer cell as a student receives it."""
        stub = "# YOUR CODE HERE\nraise NotImplementedError()"
        return replace_between(self.answer, SOLUTION, stub)

    @property
    def visible_check(self) -> str:
        """The check cell as a student receives it."""
        return replace_between(self.check, HIDDEN, "")


class WrongAnswer(NamedTuple):
    """A typical mistake: what it is, the whole answer cell with it, and words that the check must show."""

    label: str
    source: str
    shows: str


class Outcome(NamedTuple):
    """Whether the check passed, and all that it showed: printed text, then the error."""

    passed: bool
    shown: str


# Reading ----------------------------------------------------------------------------------------------------


def read_exercises(path: Path) -> list[Exercise]:
    """The exercises of a lesson. Raises LessonError where one breaks a rule of lessons/README.md."""
    setup: list[str] = []
    answers: dict[str, tuple[Any, tuple[str, ...]]] = {}
    exercises = []
    for cell in read_lesson(path).cells:
        grader = cell.metadata.get("nbgrader")
        if SETUP_TAG in cell.metadata.get("tags", []):
            setup.append(cell.source)
        elif grader and grader.solution:
            if grader.grade_id in answers:
                raise LessonError(f"{path.name}: two answer cells are called {grader.grade_id!r}.")
            answers[grader.grade_id] = (cell, tuple(setup))
        elif grader:
            grade_id = grader.grade_id.removesuffix("-test")
            if grade_id not in answers:
                raise LessonError(f"{path.name}: {grader.grade_id!r} stands before its answer, or has none.")
            answer, needed = answers.pop(grade_id)
            name = grade_id.split("-", 1)[1]
            lines = answer.metadata.get("lines", 0)
            exercise = Exercise(name, grade_id, needed, answer.source, cell.source, lines, grader.points)
            check_form(exercise, path)
            exercises.append(exercise)
    if answers:
        raise LessonError(f"{path.name}: no check cell follows the answers {sorted(answers)}.")
    return exercises


def check_form(exercise: Exercise, path: Path) -> None:
    """Raises LessonError where the exercise would not survive nbgrader, or its stated length is wrong."""
    where = f"{path.name}: exercise {exercise.name!r}"
    solution = between(exercise.answer, SOLUTION, f"{where}, its answer cell")
    hidden = between(exercise.check, HIDDEN, f"{where}, its check cell")
    code = [line for line in solution if line.strip() and not line.strip().startswith("#")]
    if len(code) != exercise.lines:
        raise LessonError(f"{where} states lines={exercise.lines}, but its solution has {len(code)}.")
    if not any(line.strip() and not line.strip().startswith("#") for line in hidden):
        raise LessonError(f"{where} hides no test.")
    if not exercise.visible_check.strip():
        raise LessonError(f"{where} shows no test: every check is hidden.")
    if not isinstance(exercise.points, int) or exercise.points < 1:
        raise LessonError(f"{where} must be worth one point or more, not {exercise.points!r}.")


def between(source: str, markers: tuple[str, str], where: str) -> list[str]:
    """The lines between two markers, each of which must stand exactly once, on a line of its own."""
    lines = source.splitlines()
    places = [[i for i, line in enumerate(lines) if line.strip() == marker] for marker in markers]
    if [len(found) for found in places] != [1, 1] or places[0] > places[1]:
        raise LessonError(f"{where} needs {markers[0]!r} and {markers[1]!r}, once each, in this order.")
    return lines[places[0][0] + 1 : places[1][0]]


def replace_between(source: str, markers: tuple[str, str], replacement: str) -> str:
    """``source`` with everything from marker to marker replaced, at the first marker's indentation."""
    pattern = rf"^([ \t]*){re.escape(markers[0])}.*?{re.escape(markers[1])}[ \t]*$"

    def indented(match: re.Match[str]) -> str:
        return "\n".join(match[1] + line for line in replacement.splitlines())

    return re.sub(pattern, indented, source, flags=re.DOTALL | re.MULTILINE)


def read_wrong_answers(path: Path) -> dict[str, list[WrongAnswer]]:
    """``WRONG_ANSWERS = {exercise: [(label, source, shows)]}`` from ``wrong_answers/NN_topic.py``."""
    file = path.parent / "wrong_answers" / path.name
    if not file.exists():
        raise LessonError(f"{path.name} has exercises, but wrong_answers/{path.name} does not exist.")
    listed = runpy.run_path(str(file))["WRONG_ANSWERS"]
    return {name: [WrongAnswer(*answer) for answer in answers] for name, answers in listed.items()}


# Running ----------------------------------------------------------------------------------------------------


def run(exercise: Exercise, answer: str, check: str | None = None) -> Outcome:
    """Runs set-up, ``answer`` and check in a fresh namespace. As in nbgrader, anything on stderr fails."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for i, source in enumerate(exercise.setup):
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(source, f"<{exercise.name}: set-up {i}>", "exec"), namespace)
    printed, on_stderr, error = io.StringIO(), io.StringIO(), ""
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(on_stderr),
        warnings.catch_warnings(record=True) as warned,
    ):
        warnings.simplefilter("always")
        try:
            run_cell(answer, f"<{exercise.name}: answer>", namespace)
            run_cell(exercise.check if check is None else check, f"<{exercise.name}: check>", namespace)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    stderr = on_stderr.getvalue() + "".join(f"{w.category.__name__}: {w.message}\n" for w in warned)
    return Outcome(not error and not stderr, (printed.getvalue() + stderr + error).strip())


def run_cell(source: str, name: str, namespace: dict[str, Any]) -> None:
    """Executes a cell. A value at its end is refused: a grader reads it as partial credit."""
    tree = ast.parse(source, name)
    last = tree.body[-1] if tree.body else None
    if not isinstance(last, ast.Expr):
        exec(compile(tree, name, "exec"), namespace)
        return
    tree.body.pop()
    exec(compile(tree, name, "exec"), namespace)
    value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    if value is not None:
        raise LessonError(f"the cell ends in the value {value!r}; end it in a statement.")


def faults(exercise: Exercise, wrong_answers: list[WrongAnswer]) -> list[str]:
    """What is wrong with an exercise, an empty list where nothing is: see lessons/README.md for the rules."""
    found = []
    for version, check in (("", exercise.check), (" without its hidden tests", exercise.visible_check)):
        solved = run(exercise, exercise.answer, check)
        if not solved.passed:
            found.append(f"the solution fails the check{version}:\n{solved.shown}")
    if run(exercise, exercise.empty_answer).passed:
        found.append("the empty hole passes the check")
    if len(wrong_answers) < FEWEST_WRONG_ANSWERS:
        found.append(f"only {len(wrong_answers)} wrong answers are listed, at least {FEWEST_WRONG_ANSWERS} are wanted")
    for wrong in wrong_answers:
        outcome = run(exercise, wrong.source)
        if outcome.passed:
            found.append(f"the wrong answer {wrong.label!r} passes the check")
        elif not wrong.shows or wrong.shows not in outcome.shown:
            found.append(f"the wrong answer {wrong.label!r} should show {wrong.shows!r}, but shows:\n{outcome.shown}")
    return found


def main(numbers: list[str]) -> int:
    """Prints each exercise's outcomes; returns the number of faults."""
    count = 0
    for path in lesson_paths(numbers):
        exercises = read_exercises(path)
        wrong = read_wrong_answers(path) if exercises else {}
        for exercise in exercises:
            answers = [("solution", exercise.answer), ("empty hole", exercise.empty_answer)]
            answers += [(f"wrong: {w.label}", w.source) for w in wrong.get(exercise.name, [])]
            for label, source in answers:
                outcome = run(exercise, source)
                print(f"{path.name[:2]} {exercise.name} [{label}] {'passes' if outcome.passed else 'fails'}")
                print("    " + outcome.shown.replace("\n", "\n    "))
            found = faults(exercise, wrong.get(exercise.name, []))
            count += len(found)
            for fault in found:
                print(f"FAULT {path.name} {exercise.name}: {fault}")
    return count


if __name__ == "__main__":
    sys.path.insert(0, str(FOLDER.parent))
    sys.exit(min(main(sys.argv[1:]), 1))
