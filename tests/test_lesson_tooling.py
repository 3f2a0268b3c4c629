"""The lessons' tools, tried on the example of lessons/README.md and on spoilt versions of it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

jupytext = pytest.importorskip("jupytext")
nbformat = pytest.importorskip("nbformat")

import build
import exercises
import lesson_tools
from build import LessonError

README = (build.FOLDER / "README.md").read_text(encoding="utf-8")
HEAD, EXERCISE, WRONG = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture
def lesson(tmp_path) -> Path:
    """The README's example as a lesson."""
    (tmp_path / "wrong_answers").mkdir()
    (tmp_path / "wrong_answers" / "03_example.py").write_text(WRONG, encoding="utf-8")
    path = tmp_path / "03_example.py"
    path.write_text(HEAD + "\n\n" + EXERCISE, encoding="utf-8")
    return path


def spoil(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def faults(path: Path) -> list[str]:
    (exercise,) = exercises.read_exercises(path)
    return exercises.faults(exercise, exercises.read_wrong_answers(path)["matmul"])


# Exercises --------------------------------------------------------------------------------------------------


def test_the_example_has_no_faults(lesson):
    assert faults(lesson) == []


def test_what_a_student_receives(lesson):
    (exercise,) = exercises.read_exercises(lesson)
    assert exercise.empty_answer.splitlines()[2:] == [
        "    # YOUR CODE HERE",
        "    raise NotImplementedError()",
    ]
    assert "HIDDEN" not in exercise.visible_check and "519" not in exercise.visible_check
    assert "specification" in exercise.visible_check
    assert exercise.grade_id == "l03-matmul" and exercise.points == 1 and len(exercise.setup) == 2


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("np.int32) @ b.astype(np.int32)", "np.int32) @ b", None),
        ("return a.astype(np.int32) @ b.astype(np.int32)", "return a @ b", "the solution fails the check"),
        (
            "    ### BEGIN SOLUTION\n",
            "    return a.astype(np.int32) @ b.astype(np.int32)\n    ### BEGIN SOLUTION\n",
            "the empty hole passes",
        ),
        ("a = np.full((1, 519), 255", "a = np.full((1, 519), 1", "'float32 accumulator' passes the check"),
        ("2 is 32258 modulo 256", "2 is too small", "should show '2 is 32258 modulo 256', but shows"),
        ("### END HIDDEN TESTS", "### END HIDDEN TESTS\n1 + 1", "ends in the value 2"),
        (
            "a = np.array([[127",
            "import sys\nprint(1, file=sys.stderr)\na = np.array([[127",
            "solution fails the check",
        ),
        (
            "a = np.array([[127",
            "np.float32(1) / np.float32(0)\na = np.array([[127",
            "RuntimeWarning: divide by zero",
        ),
        ("matmul(a, b), matmul_spec", "matmul(a, d), matmul_spec", "the solution fails the check"),
    ],
)
def test_faults_are_found(lesson, old, new, message):
    spoil(lesson, old, new)
    found = "\n".join(faults(lesson))
    assert (message in found) if message else not found


def test_visible_part_must_stand_alone(lesson):
    text = lesson.read_text(encoding="utf-8").replace("### BEGIN HIDDEN TESTS\n", "### BEGIN HIDDEN TESTS\nfinal = 1\n")
    lesson.write_text(text + "assert final\n", encoding="utf-8")
    assert "the solution fails the check without its hidden tests" in "\n".join(faults(lesson))


def test_two_wrong_answers_are_wanted(lesson):
    (exercise,) = exercises.read_exercises(lesson)
    wrong = exercises.read_wrong_answers(lesson)["matmul"]
    assert "only 1 wrong answers" in exercises.faults(exercise, wrong[:1])[0]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("lines=1", "lines=2", "states lines=2, but its solution has 1"),
        ("    ### END SOLUTION\n", "", "needs '### BEGIN SOLUTION' and '### END SOLUTION', once each"),
        (
            "### END HIDDEN TESTS\n",
            "",
            "needs '### BEGIN HIDDEN TESTS' and '### END HIDDEN TESTS', once each",
        ),
        ('answer="matmul"', 'answer="mat mul"', "'mat mul' may hold letters, digits and _ only"),
        ('check="matmul"', 'check="other"', "'l03-other-test' stands before its answer, or has none"),
        ('# %% check="matmul" points=1', "# %%", r"no check cell follows the answers \['l03-matmul'\]"),
        ("points=1", "points=0", "must be worth one point or more, not 0"),
        ("points=1", "weight=1", r"unknown cell metadata \['weight'\]"),
    ],
)
def test_broken_forms_are_refused(lesson, old, new, message):
    spoil(lesson, old, new)
    with pytest.raises(LessonError, match=f"03_example.py: .*{message}|03_example.py.*{message}"):
        exercises.read_exercises(lesson)


# Notebooks --------------------------------------------------------------------------------------------------


def pretend_executed(path: Path) -> None:
    notebook = build.read_lesson(path)
    for number, cell in enumerate(c for c in notebook.cells if c.cell_type == "code"):
        cell.execution_count = number + 1
    build.write(notebook, path)


def test_the_same_source_gives_the_same_notebook(lesson):
    assert nbformat.writes(build.read_lesson(lesson)) == nbformat.writes(build.read_lesson(lesson))
    nbformat.validate(build.read_lesson(lesson))
    ids = [cell.id for cell in build.read_lesson(lesson).cells]
    spoil(lesson, "# # 03 Integer matmul", "# # 03 Matmul")
    changed = [cell.id for cell in build.read_lesson(lesson).cells]
    assert ids[0] != changed[0] and ids[1:] == changed[1:]


def test_equal_cells_have_ids_of_their_own(lesson):
    lesson.write_text("# %%\nx = 1\n\n# %%\nx = 1\n", encoding="utf-8")
    first, second = build.read_lesson(lesson).cells
    assert second.id == first.id + "-2"


def test_nbgrader_metadata(lesson):
    answer, check = build.read_lesson(lesson).cells[-2:]
    shared = {"schema_version": 3, "task": False}
    assert answer.metadata.nbgrader == shared | {
        "grade": False,
        "grade_id": "l03-matmul",
        "locked": False,
        "solution": True,
    }
    assert check.metadata.nbgrader == shared | {
        "grade": True,
        "grade_id": "l03-matmul-test",
        "locked": True,
        "solution": False,
        "points": 1,
    }


def test_staleness(lesson):
    assert "does not exist" in build.staleness(lesson)
    pretend_executed(lesson)
    assert build.staleness(lesson) is None
    spoil(lesson, "show_versions()\nuse", "show_versions()\n\nuse")
    assert "cell 2 differs from its source in its id" in build.staleness(lesson)
    pretend_executed(lesson)
    spoil(lesson, "points=1", "points=2")
    assert "differs from its source in its metadata" in build.staleness(lesson)
    build.write(build.read_lesson(lesson), lesson)
    assert "cell 1 was never executed" in build.staleness(lesson)
    pretend_executed(lesson)
    spoil(lesson, "### END HIDDEN TESTS\n", "### END HIDDEN TESTS\n\n# %%\nmore = 1\n")
    assert "has 6 cells, its source 7" in build.staleness(lesson)


def output(**content) -> nbformat.NotebookNode:
    notebook = nbformat.v4.new_notebook()
    notebook.cells.append(nbformat.v4.new_code_cell("f(x)", outputs=[nbformat.v4.new_output(**content)]))
    return notebook


@pytest.mark.parametrize(
    "content, message",
    [
        ({"output_type": "stream", "name": "stderr", "text": "a warning"}, "writes to stderr:\na warning"),
        (
            {"output_type": "stream", "name": "stdout", "text": "<f at 0x7f00aa00>"},
            "differs between machines",
        ),
        ({"output_type": "execute_result", "data": {"text/plain": "/tmp/x"}}, "differs between machines"),
        ({"output_type": "stream", "name": "stdout", "text": str(build.FOLDER)}, "differs between machines"),
    ],
)
def test_outputs_that_are_refused(content, message):
    with pytest.raises(LessonError, match=r"03_x.py: the cell that begins 'f\(x\)'.*" + message):
        build.check_outputs(output(**content), Path("03_x.py"))


def test_too_large_a_notebook_is_refused_and_not_written(lesson):
    large = output(output_type="stream", name="stdout", text="x" * build.LARGEST)
    with pytest.raises(LessonError, match="the limit is 400,000"):
        build.write(large, lesson)
    assert not lesson.with_suffix(".ipynb").exists()


def test_execution(lesson):
    pytest.importorskip("ipykernel")
    lesson.write_text('# %%\nprint("hello")\n\n# %%\n1 + 1\n', encoding="utf-8")
    notebook = build.execute(lesson)
    assert notebook.cells[0].outputs[0].text == "hello\n"
    assert notebook.cells[1].outputs[0].data["text/plain"] == "2"
    assert notebook.metadata == build.KERNEL and notebook.cells[0].metadata == {}
    lesson.write_text("# %%\n1 / 0\n", encoding="utf-8")
    with pytest.raises(LessonError, match="03_example.py: a cell failed"):
        build.execute(lesson)


def test_building_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    with pytest.raises(LessonError, match="there are no lessons in"):
        build.main(["--check"])


def test_unknown_lesson_number():
    with pytest.raises(LessonError, match="there is no lesson 77"):
        build.lesson_paths(["77"])


# lesson_tools -----------------------------------------------------------------------------------------------


def test_compare_of_equal_integers(capsys):
    values = np.array([[-4, -14, -58], [44, 79, 127]], np.int8)
    assert lesson_tools.compare("fc1.weight", values, values.astype(np.int64))
    assert capsys.readouterr().out.splitlines() == [
        "fc1.weight (2, 3): exact, all 6 equal",
        "    minquant       torch",
        "     -4 -14 -58     -4 -14 -58",
        "     44  79 127     44  79 127",
    ]


def test_compare_of_different_integers(capsys):
    ours, theirs = np.array([0, 255], np.uint8), np.array([0, 3], np.uint8)
    assert not lesson_tools.compare("q", ours, theirs)
    out = capsys.readouterr().out
    assert "q (2,): 1 of 2 differ (50.0%), largest difference 252" in out and "255*" in out and "3*" in out


def test_compare_refuses_to_broadcast(capsys):
    assert not lesson_tools.compare("q", np.zeros((2, 1)), np.zeros((2, 2)), ("ours", "theirs"))
    assert capsys.readouterr().out == "q: shapes differ, ours (2, 1), theirs (2, 2)\n"


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.float32(1.5), np.zeros((20, 20)), np.array([np.nan])])
def test_compare_of_odd_shapes(values, capsys):
    assert lesson_tools.compare("x", values, values)
    assert "exact" in capsys.readouterr().out


@pytest.mark.parametrize(
    "yours, wanted, within, passes",
    [
        (1, 1, 0, True),
        ((1, [2.0, 3]), (1, [2, 3.0]), 0, True),
        (np.array([1, 2]), [1, 2], 0, True),
        ([1, 2], np.array([[1, 2]]), 0, False),
        (1.0000001, 1.0, 0, False),
        (1.01, 1.0, 0.02, True),
        (1.03, 1.0, 0.02, False),
        (float("nan"), float("nan"), 0, True),
        (float("nan"), 0.0, 1, False),
        ("weight", "weight", 0, True),
        ("weight", "bias", 0, False),
        (None, 0, 0, False),
        (None, None, 0, True),
        ([1, [2]], [1, 2], 0, False),
        (2**62 + 1, 2**62, 0, False),
    ],
)
def test_check(yours, wanted, within, passes, capsys):
    if passes:
        lesson_tools.check("f(1)", yours, wanted, within=within)
        assert capsys.readouterr().out == "✓ f(1)\n"
        lesson_tools.check("f(1)", yours, wanted, within=within, quiet=True)
        assert capsys.readouterr().out == ""
    else:
        with pytest.raises(AssertionError, match=r"f\(1\)\n    specification  .*\n    yours  "):
            lesson_tools.check("f(1)", yours, wanted, within=within)


def test_check_explains():
    with pytest.raises(AssertionError) as error:
        lesson_tools.check("s", (0.75, 1), (1.0, 1), means=[((0.75, 1), "divided by 2**bits"), ((1, 0), "no")])
    assert str(error.value).splitlines()[1:] == [
        "    specification  (1, 1)",
        "    yours          (0.75, 1)",
        "    divided by 2**bits",
    ]
    with pytest.raises(AssertionError, match="is the hole still empty"):
        lesson_tools.check("s", None, 1)


def test_without_torch_recorded_values_serve(monkeypatch, capsys):
    monkeypatch.setattr(lesson_tools, "quiet_torch", lambda: None)
    assert lesson_tools.torch_or_recorded(lambda torch: 1 / 0, recorded=[1, 2]) == [1, 2]
    assert "recorded with torch 2.13.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    "fresh, recorded, good",
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        ([1, 2], [[1, 2]], False),
        ([0.12345678], [0.123457], True),
        ([0.12345678], [0.1235], False),
    ],
)
def test_with_torch_recorded_values_are_tested(fresh, recorded, good, monkeypatch):
    monkeypatch.setattr(lesson_tools, "quiet_torch", lambda: np)
    if good:
        assert lesson_tools.torch_or_recorded(lambda torch: torch.array(fresh), recorded) is not recorded
    else:
        with pytest.raises(ValueError, match="the recorded values are not what torch gives"):
            lesson_tools.torch_or_recorded(lambda torch: torch.array(fresh), recorded)


def test_plots_share_a_style():
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context():
        lesson_tools.use_style()
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"][0] == lesson_tools.COLOURS["minquant"]


def test_versions(capsys):
    lesson_tools.show_versions()
    assert re.match(r"minquant 0\.1\.0 · numpy \d+\.\d+\.\d+ · torch ", capsys.readouterr().out)
