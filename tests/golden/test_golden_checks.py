"""Every check of the conformance suite, against what its oracle answered when it was recorded. Needs no torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minquant.crosscheck.checks import CHECKS
from minquant.crosscheck.suite import Result, reproducer
from tests.golden.checks_file import pack, path_of, read, read_all, unpack, write
from tests.golden.record_checks import SEED, compare

RECORDED = read_all()
BY_NAME = {check.name: check for check in CHECKS}
RECORD = "run `python -m tests.golden.record_checks PATTERN`"


@pytest.mark.parametrize("name", BY_NAME)
def test_minquant_answers_as_recorded(name):
    assert name in RECORDED, f"{name} has no golden vectors: {RECORD}"
    result = Result(BY_NAME[name])
    compare(result, RECORDED[name])
    assert result.ok, reproducer(result, SEED, True)


def test_no_record_outlives_its_check():
    assert RECORDED.keys() <= BY_NAME.keys(), RECORD
    for name, recorded in RECORDED.items():
        assert name in read(path_of(name))
        assert recorded["versions"]["numpy"] and {"torch", "torchao", "onnx", "onnxruntime"} <= set(
            recorded["versions"]
        )


def test_golden_vectors_stay_below_two_megabytes():
    files = list(Path(__file__).parent.rglob("*.npz"))
    assert len(files) > 2 and sum(path.stat().st_size for path in files) < 2_000_000


def test_the_oracles_are_not_needed():
    """In a process where importing any of them fails, all records are compared."""
    program = """
import sys
sys.modules.update(dict.fromkeys(["torch", "torchao", "onnx", "onnxruntime"]))
from minquant.crosscheck.suite import Result
from tests.golden.test_golden_checks import BY_NAME, RECORDED, compare
for name, recorded in RECORDED.items():
    result = Result(BY_NAME[name])
    compare(result, recorded)
    assert result.ok, (name, result.error)
"""
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_wrong_answer_is_found():
    name = "quantize/weight per tensor"
    recorded = RECORDED[name]
    wrong = {**recorded, "cases": [{**c, "outputs": {"output": c["outputs"]["output"] ^ 1}} for c in recorded["cases"]]}
    result = Result(BY_NAME[name])
    compare(result, wrong)
    assert not result.ok and result.mismatches == result.elements


# ---- the file --------------------------------------------------------------------------------------------------------

VALUES = {
    "floats": np.array([[0.5, -0.0], [np.nan, np.inf]], np.float32),
    "columns": np.arange(6, dtype=np.int8).reshape(3, 2).T,
    "none at all": np.zeros((0, 3), np.uint8),
    "one": np.array(7, np.int64),
    "number": np.float32(0.1),
    "flag": True,
    "text": "½",
    "nothing": None,
    "infinite": float("inf"),
    "sizes": (3, 0.25, None, np.int32(4)),
}


def test_a_record_survives_its_file(tmp_path):
    recorded = {"versions": {"torch": None}, "cases": [{"inputs": VALUES, "outputs": {"y": np.ones(2)}}]}
    write(tmp_path / "made_up.npz", {"made up/b": pack(recorded), "made up/a": pack(recorded)})
    found = read(tmp_path / "made_up.npz")
    assert list(found) == ["made up/a", "made up/b"]
    inputs = unpack(*found["made up/b"])["cases"][0]["inputs"]
    assert inputs.keys() == VALUES.keys()
    for name, value in VALUES.items():
        assert type(inputs[name]) is type(value)
        if isinstance(value, np.ndarray):
            assert inputs[name].dtype == value.dtype and inputs[name].shape == value.shape
            assert inputs[name].tobytes() == value.tobytes()
            assert not value.size or inputs[name].strides == value.strides
        else:
            assert inputs[name] == value
    write(tmp_path / "made_up.npz", {})
    assert not (tmp_path / "made_up.npz").exists() and read(tmp_path / "made_up.npz") == {}


def test_what_could_not_be_read_without_its_library_is_refused():
    with pytest.raises(TypeError, match="arrays, numbers, strings, None or tuples, got list"):
        pack({"versions": {}, "cases": [{"inputs": {"x": [1]}, "outputs": {}}]})
