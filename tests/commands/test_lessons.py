"""``minquant lessons`` lists the lessons, opens them, and says what is missing."""

from __future__ import annotations

import argparse
import json
import sys

import pytest

from minquant import cli
from minquant.commands import lessons
from minquant.commands.output import write_json

SOURCE = """# %% [markdown]
# # 01 Numbers on a grid
#
# *What becomes of 0.3 on two bits?*

# %% [markdown]
# # 99 Not this
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "01_numbers.py").write_text(SOURCE)
    (tmp_path / "02_more.py").write_text(SOURCE.replace("01 Numbers on a grid", "02 More"))
    (tmp_path / "lesson_tools.py").write_text("")
    monkeypatch.setattr(lessons, "FOLDER", tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    lessons.add_parser(parser.add_subparsers())
    args = parser.parse_args(["lessons", *arguments])
    return args.run(args)


def test_lists(folder, capsys):
    assert run("--json", str(folder / "out.json")) == 0
    out = capsys.readouterr().out
    assert out.startswith("01  Numbers on a grid\n    What becomes of 0.3 on two bits?\n02  More\n")
    assert json.loads((folder / "out.json").read_text())["lessons"][0] == {
        "number": "01",
        "title": "Numbers on a grid",
        "question": "What becomes of 0.3 on two bits?",
        "notebook": "01_numbers.ipynb",
    }


@pytest.mark.parametrize("number, opened", [([], []), (["2"], ["02_more.ipynb"]), (["02"], ["02_more.ipynb"])])
def test_opens(folder, monkeypatch, number, opened):
    calls = []
    monkeypatch.setattr(lessons.subprocess, "call", lambda command, cwd: calls.append((command, cwd)) or 0)
    monkeypatch.setattr(lessons.importlib.util, "find_spec", lambda name: name)
    assert run("open", *number) == 0
    assert calls == [([sys.executable, "-m", "jupyterlab", *opened], folder)]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["open", "7"], "there is no lesson '7'; there are 01, 02"),
        (["open", "x"], "there is no lesson 'x'"),
        (["list", "2"], "did you mean: minquant lessons open 2"),
    ],
)
def test_bad_arguments(folder, capsys, arguments, message):
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err


def test_without_jupyterlab(folder, monkeypatch, capsys):
    monkeypatch.setattr(lessons.importlib.util, "find_spec", lambda name: None)
    assert run("open") == 1
    assert "JupyterLab is not installed; run: pip install -e '.[lessons]'" in capsys.readouterr().err


def test_without_the_folder(folder, capsys):
    for source in folder.glob("0*.py"):
        source.unlink()
    assert run() == 1
    assert "they come with minquant's repository" in capsys.readouterr().err


def test_a_lesson_without_its_question(folder, capsys):
    (folder / "02_more.py").write_text(SOURCE.replace("*", ""))
    assert run() == 1
    assert "02_more.py must open with" in capsys.readouterr().err


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_list_that_could_not_be_written_is_refused(capsys, tmp_path):
    assert cli.main(["lessons", "--json", str(tmp_path / "nowhere" / "out.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err
