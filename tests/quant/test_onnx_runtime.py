"""ONNX's operators and the dialects onnx and onnxruntime against the two packages: equal integers, equal values."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from minquant.crosscheck.checks import onnx_layers, onnx_rules
from minquant.crosscheck.onnx_models import onnxruntime_outputs, reference_outputs
from minquant.crosscheck.suite import reproducer, run_check
from minquant.quant.dialects import onnx, onnx_products

CHECKS = (*onnx_rules.CHECKS, *onnx_layers.CHECKS)
F32 = np.float32


@pytest.mark.parametrize("check", CHECKS, ids=[check.name for check in CHECKS])
def test_check(check):
    result = run_check(check, seed=1, quick=True)
    assert result.ok, reproducer(result, 1, True)


@pytest.mark.parametrize(("name", "rounding"), [("reference", "in_single"), ("onnxruntime", "in_double")])
def test_the_checks_tell_the_two_roundings_apart(name, rounding, monkeypatch):
    monkeypatch.setitem(onnx_rules.ROUNDING, name, getattr(onnx_products, rounding))
    for operator in ("QLinearMatMul", "QLinearConv"):
        (check,) = [check for check in CHECKS if check.name == f"{operator}/{name}"]
        result = run_check(check, seed=1, quick=True)
        assert result.mismatches and result.max_abs_diff == 1 and not result.error


def test_what_the_two_make_of_an_all_zero_input():
    inputs = {"x": np.zeros(3, F32)}
    assert reference_outputs("DynamicQuantizeLinear", inputs)[1] == F32(1) / F32(255)
    assert onnxruntime_outputs("DynamicQuantizeLinear", inputs)[1] == 1


def test_the_reference_implementation_wraps_around_int32():
    """The specification saturates, and so do onnxruntime and minquant."""
    inputs = {"x": np.array([3e9, -3e9], F32), "y_scale": np.array(1, F32), "y_zero_point": np.array(0, np.uint8)}
    with pytest.warns(RuntimeWarning, match="invalid value encountered in cast"):
        (wrapped,) = reference_outputs("QuantizeLinear", inputs)
    assert wrapped.tolist() != [255, 0]
    assert onnxruntime_outputs("QuantizeLinear", inputs)[0].tolist() == [255, 0]
    assert onnx.quantize_linear(**inputs).tolist() == [255, 0]
