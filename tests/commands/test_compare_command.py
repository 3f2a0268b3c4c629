"""``minquant compare``: exit status, JSON, picture, and messages that say what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minquant import cli

NET = """
import numpy as np
from helper import chain
from minquant.quant import QParams, convert, get_default_qconfig, prepare

def make_float():
    return chain()

def make_quantized():
    prepared = prepare(chain(), get_default_qconfig())
    prepared(np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32))
    return convert(prepared)

def make_wrong():
    model = make_quantized()
    grid = model.module[2].output
    model.module[2].output = QParams(grid.scale * np.float32(1.01), grid.zero_point, grid.spec)
    return model

def make_number():
    return 3

def make_nothing():
    raise RuntimeError("no weights found")

not_a_function = 3
"""
HELPER = """
from minquant import manual_seed, nn
from minquant.quant import QuantWrapper

def chain():
    manual_seed(0)
    return QuantWrapper(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "broken.py").write_text("import nothing_of_that_name\n")
    np.save(tmp_path / "x.npy", np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_equal_models_exit_0(folder, capsys):
    assert cli.main(["compare", "net.py:make_quantized", "net.py:make_quantized", "x.npy"]) == 0
    assert "no layer differs" in capsys.readouterr().out


def test_different_models_exit_1_and_are_written_down(folder, capsys):
    arguments = ["net.py:make_quantized", "net.py:make_wrong", "x.npy", "--json", "out.json", "--plots", "plots"]
    pytest.importorskip("matplotlib")
    assert cli.main(["compare", *arguments]) == 1
    report = json.loads((folder / "out.json").read_text())
    assert report["first_divergent"]["layer"] == "module.2"
    assert report["first_divergent"]["cause"] == "scale"
    assert [row["name"] for row in report["layers"]] == ["quant", "module.0", "module.1", "module.2"]
    assert {"differing", "max_steps", "sqnr_db"} <= report["layers"][0].keys()
    assert (folder / "plots" / "compare.png").is_file()
    assert "first layer that differs: module.2, cause: scale" in capsys.readouterr().out


def test_a_float_model_against_its_quantized_self(folder, capsys):
    assert cli.main(["compare", "net.py:make_float", "net.py:make_quantized", "x.npy"]) == 1
    assert "nothing is wrong" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("first", "inputs", "message"),
    [
        ("net.py", "x.npy", "expected FILE.py:FUNCTION"),
        ("nowhere.py:make_float", "x.npy", "there is no file nowhere.py"),
        ("net.py:make_double", "x.npy", "net.py defines no function make_double"),
        ("net.py:not_a_function", "x.npy", "net.py defines no function not_a_function"),
        ("net.py:make_number", "x.npy", r"make_number() must return a minquant or torch model, got int"),
        ("net.py:make_nothing", "x.npy", "make_nothing() failed: RuntimeError: no weights found"),
        ("broken.py:make_float", "x.npy", "broken.py cannot be run: ModuleNotFoundError"),
        ("net.py:make_float", "nowhere.npy", "nowhere.npy: there is no such file"),
        ("net.py:make_float", "net.py", "net.py is no .npy file"),
        ("net.py:make_float", "objects.npy", "objects.npy cannot be read"),
    ],
)
def test_trouble_exits_2(folder, capsys, first, inputs, message):
    assert cli.main(["compare", first, "net.py:make_quantized", inputs]) == 2
    assert message in capsys.readouterr().err


def test_help_says_what_the_exit_status_means(capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--help"])
    printed = capsys.readouterr().out
    assert "exit status: 0 if no layer differs" in printed
    assert "minquant compare net.py:make_float" in printed
