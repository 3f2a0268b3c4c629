"""The golden vectors of the checks are what the installed torch and torchao answer today."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from minquant.crosscheck.checks import CHECKS
from minquant.crosscheck.quiet import one_thread, quiet
from tests.golden import record_checks
from tests.golden.checks_file import read, read_all

SAMPLE = (  # not flow/qat, whose training depends on the processor's float products
    "random/randperm",
    "observer/PerChannelMinMaxObserver affine",
    "histogram/count",
    "dequantize/per channel",
    "fake_quantize/backward per tensor",
    "torchao/choose_qparams per group",
    "fake quantizer/fused per channel symmetric",
    "int8_matmul/uint8 numba",
    "static Linear/qnnpack per channel relu",
    "dynamic Linear/fbgemm per tensor",
    "flow/dynamic qnnpack",
)
BY_NAME = {check.name: check for check in CHECKS}


@pytest.mark.parametrize("name", SAMPLE)
def test_recording_again_finds_the_same(name):
    with quiet(torch), one_thread(torch):
        again, result = record_checks.record(BY_NAME[name], record_checks.versions())
    recorded = read_all()[name]
    assert result.ok
    for new, old in zip(again["cases"], recorded["cases"], strict=False):  # how many fit depends on zlib
        for part in ("inputs", "outputs"):
            assert new[part].keys() == old[part].keys()
            for key in new[part]:
                np.testing.assert_array_equal(new[part][key], old[part][key], err_msg=f"{name}, {key}")


def test_a_pattern_records_only_what_it_names(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "checks"
    monkeypatch.setattr(record_checks, "FOLDER", folder)
    monkeypatch.setattr(record_checks, "path_of", lambda name: folder / f"{name.partition('/')[0]}.npz")
    assert record_checks.main("init/uniform_") == 0
    assert record_checks.main("init/Linear") == 0
    assert list(read(folder / "init.npz")) == ["init/Linear", "init/uniform_"]
    assert [path.name for path in folder.iterdir()] == ["init.npz"]
    gone = tuple(check for check in CHECKS if check.name != "init/uniform_")
    monkeypatch.setattr(record_checks, "CHECKS", gone)
    assert record_checks.main("init/Linear") == 0
    assert list(read(folder / "init.npz")) == ["init/Linear"]
    assert "bytes in all" in capsys.readouterr().out


def test_what_differs_is_not_recorded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(record_checks, "FOLDER", tmp_path)
    monkeypatch.setattr(record_checks, "path_of", lambda name: tmp_path / "all.npz")
    broken = record_checks.Result(BY_NAME["init/Linear"])
    monkeypatch.setattr(record_checks, "record", lambda check, versions: ({"versions": {}, "cases": []}, broken))
    assert record_checks.main("init/Linear") == 1
    assert "init/Linear" in capsys.readouterr().err and not list(tmp_path.iterdir())
