"""``minquant demo`` as a newcomer runs it: what it prints, the JSON that others read, its pictures and errors."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys

import pytest

from minquant import cli
from minquant.demos import digits

R = {
    "float_loss",
    "quantized_loss",
    "torch_float_loss",
    "torch_quantized_loss",
    "weight_int_equal",
    "output_int_equal",
}


@pytest.fixture
def short_digits(monkeypatch):
    """Two seeds and one epoch: the figures themselves are tested in tests/demos."""
    once = digits.Schedule(epochs=1, batch_size=64, decay=False)
    short = functools.partial(digits.run, seeds=2, float_schedule=once, further_schedule=once)
    monkeypatch.setattr(digits, "run", short)


@pytest.fixture
def without_torch(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))


def run(capsys, *argv: str) -> str:
    assert cli.main(argv) == 0
    return capsys.readouterr().out


def test_without_torch_recorded_values_are_shown_and_marked(capsys, tmp_path, short_digits, without_torch):
    report, plots = tmp_path / "out.json", tmp_path / "plots"
    printed = run(capsys, "demo", "all", "--json", str(report), "--plots", str(plots))
    assert "torch 2.13.0, recorded" in printed and "differ[" not in printed
    for figure in ("0.0037 → 0.0049", "0.0062 → 0.0068", "18.4320 → 18.4320", "4.7411 → 1.2000"):
        assert figure in printed
    assert "[[ -4 -14 -58]" in printed
    assert {p.name for p in plots.iterdir()} == {"dynamic.png", "static.png", "qat.png"}

    written = json.loads(report.read_text())
    assert set(written) == {"demos", "digits", "prepared_vs_converted", "versions"}
    assert set(written["demos"]) == {"dynamic", "static", "qat"}
    for demo in written["demos"].values():
        assert R <= set(demo) and R <= set(demo["published"])
        assert {"x86", "fbgemm", "qnnpack", "onednn", "reference"} == set(demo["engines"])
        for engine in demo["engines"].values():
            assert R <= set(engine)
    for row in written["digits"]:
        assert set(row) == {"model", "flow", "weight_bits", "act_bits", "mean", "std", "seeds"}
    assert {row["flow"] for row in written["digits"]} == {"float", "control", "dynamic", "static", "qat"}
    assert written["prepared_vs_converted"]["mismatches"] == 0
    assert written["prepared_vs_converted"]["values"] > 100_000
    assert written["versions"]["torch_values"] == "recorded"


def test_one_flow_alone(capsys, tmp_path, short_digits, without_torch):
    report = tmp_path / "out.json"
    printed = run(capsys, "demo", "static", "--json", str(report))
    assert "Static quantization" in printed and "Dynamic quantization" not in printed
    written = json.loads(report.read_text())
    assert set(written["demos"]) == {"static"} and written["prepared_vs_converted"] is None


def test_missing_packages_are_named_with_the_cure(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["demo"]) == 1
    error = capsys.readouterr().err
    assert "rich, scikit-learn, matplotlib not installed" in error and "pip install 'minquant[demo]'" in error


def test_a_report_that_could_not_be_written_is_refused_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "run", None)
    assert cli.main(["demo", "--json", str(tmp_path / "nowhere" / "out.json")]) == 1
    error = capsys.readouterr().err
    assert "--json" in error and "there is no folder" in error and "create it first" in error


def test_a_folder_that_is_a_file_is_refused_before_the_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(digits, "run", None)
    (tmp_path / "plots").write_text("in the way")
    assert cli.main(["demo", "--plots", str(tmp_path / "plots")]) == 1
    assert "File exists" in capsys.readouterr().err


def test_without_a_command_it_says_what_it_can_do(capsys):
    printed = run(capsys)
    assert "demo" in printed and "lessons" in printed and "example" in printed


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["demo", "--help"])
    assert stopped.value.code == 0
    assert "example: minquant demo all --json out.json --plots plots" in capsys.readouterr().out


def test_asking_for_help_imports_neither_torch_nor_numba():
    code = (
        "import sys; from minquant.cli import main; main([]);"
        "assert not {'torch', 'numba', 'rich', 'matplotlib', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
