"""README.md keeps its word: its example runs, its links lead somewhere, its map names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
MAP = README.split("## The map")[1].split("\n## ")[0]


@pytest.mark.parametrize("example", EXAMPLES)
def test_example_runs_as_it_stands(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_is_an_example():
    assert len(EXAMPLES) == 1


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_link_leads_somewhere(target):
    assert (ROOT / target).exists()


def mapped() -> set[str]:
    """Paths in the map's first column."""
    rows = re.findall(r"^\| (`[^|]*) \|", MAP, re.MULTILINE)
    return {f"minquant/{name}" for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize("path", sorted(mapped()))
def test_what_the_map_names_exists(path):
    assert (ROOT / path).exists()


def test_every_module_is_on_the_map():
    names = mapped()
    for source in (ROOT / "minquant").rglob("*.py"):
        relative = source.relative_to(ROOT).as_posix()
        covered = any(relative == name or (name.endswith("/") and relative.startswith(name)) for name in names)
        assert covered or source.name == "__init__.py", f"{relative} is not on README's map"
