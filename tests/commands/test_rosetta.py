"""``minquant rosetta``: its table, its JSON, and what it refuses."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

from minquant import cli


@pytest.fixture
def saved(tmp_path):
    def save(array, name: str = "x.npy") -> str:
        np.save(tmp_path / name, array, allow_pickle=True)
        return str(tmp_path / name)

    return save


TIES = np.array([-1, 0.5, 1.5, 2.5, 254], np.float32)


def test_table_and_json(saved, tmp_path, capsys):
    path, out = saved(TIES), str(tmp_path / "out.json")
    assert cli.main(["rosetta", path, "--json", out]) == 0
    printed = capsys.readouterr().out
    assert "torch observer quint8" in printed and "zero point added before" in printed
    assert "integers 0 2 2 4 255" in printed
    assert max(map(len, printed.splitlines())) <= 110 or len(path) > 80
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["file"], report["shape"], report["bits"]) == (path, [5], 8) and "numpy" in report["versions"]
    rows = {row["dialect"]: row for row in report["rows"]}
    row = rows["torch observer quint8"]
    assert row == {
        "dialect": "torch observer quint8",
        "base": "reference affine",
        "rule": "zero point added before the rounding (moves 3)",
        "scale": 1.0,
        "zero_point": 1,
        "qmin": 0,
        "qmax": 255,
        "integers": [0, 2, 2, 4, 255],
        "differing": 3,
        "first": [[0.5, 1, 2], [1.5, 3, 2], [2.5, 3, 4]],
        "max_steps": 0.5,
    }


def test_many_integers_stay_out_of_the_json(saved, tmp_path):
    out = tmp_path / "out.json"
    assert cli.main(["rosetta", saved(np.ones((5, 13), np.float64)), "--bits", "4", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["shape"] == [5, 13] and all("integers" not in row for row in report["rows"])


def test_without_rich(saved, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["rosetta", saved(TIES)]) == 0
    assert capsys.readouterr().out.startswith("dialect")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([1, 2]), "expected floating point values (float32), got int64"),
        (np.array([1.0, np.nan], np.float32), "1 NaN"),
        (np.zeros(0, np.float32), "x is empty"),
        (np.array([{"a": 1}], object), "Object arrays cannot be loaded"),
    ],
)
def test_bad_arrays(saved, capsys, array, message):
    assert cli.main(["rosetta", saved(array)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("minquant rosetta: ") and message in error and "Traceback" not in error


def test_bad_files(saved, tmp_path, capsys):
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-3] if saved(TIES) else b"")
    (tmp_path / "magic.npy").write_bytes(b"\x93NUMPY")
    np.savez(tmp_path / "many.npz", a=TIES)
    for name, message in {
        "no.npy": "there is no such file",
        "text.npy": "is no .npy file",
        "many.npz": "is no .npy file",
        "cut.npy": "cannot be read",
        "magic.npy": "cannot be read",
    }.items():
        assert cli.main(["rosetta", str(tmp_path / name)]) == 1
        assert message in capsys.readouterr().err, name


def test_bad_arguments(saved, tmp_path, capsys):
    assert cli.main(["rosetta", saved(TIES), "--bits", "9"]) == 1
    assert "from 2 to 8" in capsys.readouterr().err
    assert cli.main(["rosetta", saved(TIES), "--json", str(tmp_path / "nowhere" / "out.json")]) == 1
    assert "there is no folder" in capsys.readouterr().err
