"""Every lesson: its notebook is what its source builds, and its exercises tell right answers from wrong ones.

Executing whole lessons is left to ``python lessons/build.py --check``, which CI runs as well.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext")

import build
import exercises

from minquant.commands import lessons as command

LESSONS = build.lesson_paths()
EXERCISES = [(path, exercise) for path in LESSONS for exercise in exercises.read_exercises(path)]
WORDS_IN_A_CELL = 150
LINES_IN_A_CELL = 40


@pytest.fixture(params=LESSONS, ids=lambda path: path.stem)
def lesson(request) -> Path:
    return request.param


def test_notebook_is_up_to_date(lesson):
    assert build.staleness(lesson) is None


def test_notebook_is_small(lesson):
    assert lesson.with_suffix(".ipynb").stat().st_size <= build.LARGEST


def test_every_notebook_has_a_source():
    notebooks = {path.stem for path in build.FOLDER.glob("*.ipynb")}
    assert notebooks == {path.stem for path in LESSONS}


def test_lesson_opens_with_title_and_question(lesson):
    entry = command.describe(lesson)
    assert entry["number"] == lesson.name[:2] and entry["title"] and entry["question"].endswith("?")


def test_cells_are_short(lesson):
    for cell in build.read_lesson(lesson).cells:
        length = len(cell.source.split() if cell.cell_type == "markdown" else cell.source.splitlines())
        limit = WORDS_IN_A_CELL if cell.cell_type == "markdown" else LINES_IN_A_CELL
        assert length <= limit, f"{length} > {limit} in the cell\n{cell.source}"


def test_code_speaks_of_no_other_machine(lesson):
    text = lesson.with_suffix(".ipynb").read_text(encoding="utf-8")
    assert not re.search(r"/(home|Users|root|work)/", text)


def test_lesson_has_two_to_four_exercises(lesson):
    assert 2 <= len(exercises.read_exercises(lesson)) <= 4


def test_wrong_answers_name_exercises(lesson):
    names = {exercise.name for exercise in exercises.read_exercises(lesson)}
    assert set(exercises.read_wrong_answers(lesson)) == names


@pytest.mark.parametrize("path, exercise", EXERCISES, ids=[exercise.grade_id for _, exercise in EXERCISES])
def test_exercise(path, exercise):
    wrong = exercises.read_wrong_answers(path)[exercise.name]
    assert exercises.faults(exercise, wrong) == []
