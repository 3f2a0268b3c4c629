"""The torchao dialect against torchao 0.18: every check of the conformance suite, and what torchao does in silence."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchao")

from minquant.crosscheck.checks import torchao_linears, torchao_primitives
from minquant.crosscheck.quiet import import_torchao, one_thread
from minquant.crosscheck.suite import reproducer, run_check
from minquant.quant import PerGroup, QSpec, quantize
from minquant.quant.dialects import torchao

F32 = np.float32


@pytest.fixture(autouse=True)
def on_one_thread():
    """One order of float sums."""
    with one_thread(torch):
        yield


@pytest.mark.parametrize("check", (*torchao_primitives.CHECKS, *torchao_linears.CHECKS), ids=lambda check: check.name)
def test_check(check):
    result = run_check(check, seed=1, quick=True)
    assert result.ok, reproducer(result, 1, True)


# ---- torchao 0.18 in silence -----------------------------------------------------------------------------------------


def test_torchao_divides_by_zero_where_unsigned_integers_shall_not_clip():
    """Half of the values are clipped, by a mapping that is named after clipping none."""
    ao, x = import_torchao("torchao.quantization.quant_primitives"), torch.tensor([[-1.0, 1.0]])
    mapping = ao.MappingType.SYMMETRIC_NO_CLIPPING_ERR
    scale, zero_point = ao.choose_qparams_affine(x, mapping, (1, 2), torch.uint8, 0, 255)
    assert ao.quantize_affine(x, (1, 2), scale, zero_point, torch.uint8).tolist() == [[0, 255]]
    assert (scale * 127).item() < 0.5
    with pytest.raises(ValueError, match="needs integers of both signs"):
        torchao.choose_qparams(x.numpy(), QSpec(signed=False, symmetric=True), "symmetric_no_clipping_error")


def test_torchaos_training_takes_tinygemms_zero_point_for_an_integer():
    """An asymmetric weight's zero point is a real value, truncated to int32 on the way: the values come out wrong."""
    qat = import_torchao("torchao.quantization.qat")
    x = np.linspace(0.1, 1, 32, dtype=F32).reshape(1, 32)
    fake_quantizer = qat.IntxFakeQuantizer(qat.IntxFakeQuantizeConfig(torch.int4, group_size=32, is_symmetric=False))
    theirs = fake_quantizer(torch.from_numpy(x)).numpy()
    grid = torchao.choose_qparams(x, QSpec(4, granularity=PerGroup(32)))
    assert np.abs(quantize(x, grid).dequantize() - x).max() < 0.04
    assert np.abs(theirs - x).max() > 0.5
