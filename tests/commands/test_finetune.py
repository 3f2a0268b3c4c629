"""``minquant finetune`` as it is typed: what it prints and leaves, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from minquant import cli
from minquant.train import table
from minquant.train.config import Config, ModelSizes
from minquant.train.loop import Schedule
from minquant.train.plots import loss_curve

FULL = """
out = "{folder}/full"
text = "{folder}/text.txt"
context = 40
batch_size = 2
questions = 4
[model]
hidden_size = 32
intermediate_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
[training]
steps = 6
"""


@pytest.fixture
def folder(tmp_path):
    lines = (f"the {a} {b} of every {c}\n" for a in ("small", "large") for b in ("house", "tree") for c in "abcdefgh")
    (tmp_path / "text.txt").write_text("".join(lines) * 2, encoding="utf-8")
    full = FULL.format(folder=tmp_path)
    (tmp_path / "full.toml").write_text(full)
    start = f'start = "{tmp_path}/full/model.safetensors"'
    (tmp_path / "qat.toml").write_text(start + full.replace("/full", "/qat"))
    return tmp_path


def test_full_then_qat(capsys, folder):
    assert cli.main(["finetune", "full", "--config", str(folder / "full.toml")]) == 0
    json_path, plots = folder / "out.json", folder / "plots"
    arguments = ["finetune", "qat", "--config", str(folder / "qat.toml"), "--json", str(json_path)]
    assert cli.main([*arguments, "--plots", str(plots)]) == 0
    printed = capsys.readouterr().out
    assert "int8-int4" in printed and "ptq" in printed and f"{folder}/qat" in printed
    written = json.loads(json_path.read_text())
    assert set(written) == {"recipe", "rows", "recovery", "losses", "seconds", "versions"}
    assert [row["stage"] for row in written["rows"]] == ["float", "ptq", "qat"] and len(written["losses"]) == 6
    assert (plots / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in (folder / "qat").iterdir()} == {"final.safetensors", "model.safetensors"}

    assert cli.main(arguments) == 1
    assert "an earlier run; resume that run" in capsys.readouterr().err
    assert cli.main([*arguments, "--resume"]) == 0
    assert json.loads(json_path.read_text())["rows"] == written["rows"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["qat", "--config", "none.toml"], "there is no config none.toml"),
        (["qat"], "starts from a trained model"),
        (["qat", "--quick"], "--quick is for table"),
        (["table", "--resume"], "table takes neither --config nor --resume"),
        (["table", "--quick", "--json", "nowhere/out.json"], "there is no folder"),
    ],
)
def test_what_cannot_be_is_refused_at_once(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["finetune", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_config_s_problems_are_all_listed(capsys, folder):
    (folder / "bad.toml").write_text("sed = 1\n[training]\nstps = 3\n")
    assert cli.main(["finetune", "full", "--config", str(folder / "bad.toml")]) == 1
    assert "did you mean seed?\n  training.stps is unknown; did you mean steps?" in capsys.readouterr().err


def test_the_table(capsys, folder, monkeypatch):
    sizes = ModelSizes(32, 32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)
    config = Config(
        text=str(folder / "text.txt"), context=40, batch_size=2, questions=4, model=sizes, training=Schedule(4)
    )
    plan = table.Plan(config, Schedule(2), seeds=(0, 1), schemes=table.SCHEMES[::2])
    monkeypatch.setattr(table, "QUICK", plan)
    path, plots = folder / "table.json", folder / "plots"
    assert cli.main(["finetune", "table", "--quick", "--json", str(path), "--plots", str(plots)]) == 0
    printed = capsys.readouterr().out
    assert "1 − (qat − control) / (ptq − float)" in printed and "float × int4, groups of 32" in printed
    written = json.loads(path.read_text())
    assert set(written) == {"rows", "recovery", "float_seconds", "seconds", "versions"}
    assert len(written["rows"]) == 2 * (2 + 3 * 2)
    assert {"scheme", "mean", "std"} <= set(written["recovery"][0])
    assert (plots / "recovery.png").read_bytes().startswith(b"\x89PNG")


def test_a_missed_figure_is_an_error(capsys, folder, monkeypatch):
    entry = {
        "name": "int4", "mean": 0.5, "std": 0.1, "cost": 1.0, "standard_error": 0.1, "figure": 0.8, "reached": False,
    }  # fmt: skip
    entry |= {f"acc_norm_{key}": value for key, value in entry.items() if key != "name"} | {"acc_norm_reached": None}
    monkeypatch.setattr(table, "make_table", lambda plan, progress: table.Table([], [entry], []))
    assert cli.main(["finetune", "table"]) == 1
    captured = capsys.readouterr()
    assert "50% ± 10%" in captured.out and "a figure was missed: int4" in captured.err


def test_the_curve_of_a_single_step(tmp_path):
    assert loss_curve([1.5], tmp_path / "loss.png").stat().st_size > 5_000


def test_python_m_minquant_is_the_command():
    done = subprocess.run([sys.executable, "-m", "minquant", "finetune", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "torchrun --nproc-per-node 2 -m minquant finetune qat" in done.stdout
