"""Wrong grids, Linears, fake quantizers and storage, each with one rule exchanged. See `mutants`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from minquant.kernels import Packed, epilogue
from minquant.quant import PerChannel, QParams, fake_quant, grid, integer, qtensor
from minquant.quant.dialects import base, fbgemm, onednn, qnnpack, reference, torch_rules
from tests.quant import test_dialects, test_fake_quant, test_grid, test_integer, test_linear, test_qtensor
from tests.quant.mutants import Mutant, every, must_be_rejected, name

F32 = np.float32


# ---- the mutants ----------------------------------------------------------------------------------------------------


def half_away_from_zero(x, scale, zero_point, rule=None):
    steps = x * (F32(1) / scale)
    return np.trunc(steps + np.copysign(F32(0.5), steps)) + zero_point.astype(F32)


def truncation(x, scale, zero_point, rule=None):
    return np.trunc(x * (F32(1) / scale)) + zero_point.astype(F32)


def zero_point_before_rounding(x, scale, zero_point, rule=None):
    return np.rint(x * (F32(1) / scale) + zero_point.astype(F32))


def range_without_zero(x_min, x_max, spec):
    return QParams(*grid.affine_grid(F32(x_min), F32(x_max), spec.qmin, spec.qmax), spec)


def one_step_too_many(lo, hi, qmin, qmax, eps=grid.EPS):
    scale = np.maximum((hi - lo) / F32(qmax - qmin + 1), eps)
    return scale, np.clip(qmin - np.rint(lo / scale), qmin, qmax).astype(np.int32)


def narrow_symmetric_scale(lo, hi, qmin, qmax, eps=grid.EPS):
    return np.asarray(np.maximum(np.maximum(-lo, hi) / F32(qmax), eps))


def shared_scale(self, x):
    channels = x.shape[self.axis]
    return np.full(channels, x.min()), np.full(channels, x.max())


def unfolded_zero_points(qx, zx, qw, zw):
    return qx.astype(np.int32) @ qw.astype(np.int32).T


def weight_zero_point_forgotten(qx, zx, qw, zw):
    return (qx.astype(np.int32) - zx) @ qw.astype(np.int32).T


def float32_accumulation(a, b):
    return (a.astype(F32) @ unpacked(b).astype(F32)).astype(np.int32)


def unpacked(b):
    """The matrix behind a packed operand, if it is one."""
    if not isinstance(b, Packed):
        return b
    K, N = b.shape
    return np.moveaxis(b.panels, (1, 3), (0, 1)).reshape(-1, b.panels.shape[0] * b.panels.shape[2])[:K, :N]


def bias_before_rescale(acc, x_scale, w_scale, bias):
    return (acc.astype(F32) + bias) * (x_scale * w_scale)


def integer_bias(acc, x_scale, w_scale, bias):
    return (acc + np.rint(bias / (x_scale * w_scale)).astype(np.int64)).astype(F32) * (x_scale * w_scale)


def fused_rescale(acc, x_scale, w_scale, bias):
    return (acc * np.float64(x_scale * w_scale) + bias).astype(F32)


def relu_at_integer_zero(self, function, inputs, options):
    return qtensor.QTensor(function().forward(self.int_repr().astype(np.int32), *inputs[1:], **options), self.qparams)


def relu_clamp_at_zero(output, relu, function, terms, zero_point):
    return base.codes_on(output, False, function, terms, zero_point)


def no_saturation(steps, zero_point):
    return steps + zero_point


def codes_that_wrap(self, acc):
    return self.function(acc, *self.terms, self.zero_point).astype(np.int64).astype(self.dtype)


def highest_bits_first(integers, bits):
    bit_matrix = (integers.reshape(-1, 1).astype(np.int64) >> np.arange(bits)[::-1]) & 1
    return np.packbits(bit_matrix.astype(np.uint8).reshape(-1))


def gradient_everywhere(self, grad):
    return grad


def mask_of_the_integers(x_min, x_max, spec):
    """Freezes the value that set a symmetric range."""
    lo, hi = np.minimum(x_min, F32(0)), np.maximum(x_max, F32(0))
    amax = np.maximum(-lo, hi)
    return -amax, amax * F32(spec.qmax / (spec.qmax + 0.5))


def observing_in_eval(self, x):
    self.activation_post_process(x)


def weight_range_that_lags(self, x):
    self.activation_post_process(x)


def float_product(self, x, weight, bias):
    from minquant import functional

    return functional.linear(x, weight, bias)


def fma_in_two_roundings(a, b, c):
    return np.asarray(a, F32) * np.asarray(b, F32) + np.asarray(c, F32)


def scales_as_they_are(value):
    return np.asarray(value, F32)


def observers_formula(x_min, x_max, qmin, qmax, symmetric=False, scale_dtype=np.float64):
    scale, zero_point = grid.affine_grid(np.minimum(F32(x_min), 0), np.maximum(F32(x_max), 0), qmin, qmax)
    return np.float64(scale), int(zero_point)


# ---- the tests that must notice -------------------------------------------------------------------------------------


def golden(*engines: str) -> Callable[[], None]:
    """Every golden Linear of these engines."""

    def check() -> None:
        for engine in engines:
            for i in range(test_dialects.count("linear")):
                test_dialects.test_golden_linear(engine, i)

    check.__name__ = f"golden[{','.join(engines)}]"
    return check


closed_forms = every(test_grid.test_closed_forms)
MUTANTS = [Mutant(*row) for row in (
    (grid, "to_codes", half_away_from_zero, test_grid.test_ties_go_to_even_before_the_zero_point_is_added),
    (grid, "to_codes", truncation, test_grid.test_every_value_is_at_most_half_a_step_away),
    (grid, "to_codes", zero_point_before_rounding, test_grid.test_ties_go_to_even_before_the_zero_point_is_added),
    (test_grid, "choose_qparams", range_without_zero, test_grid.test_constants_survive),
    (grid, "affine_grid", one_step_too_many, closed_forms),
    (grid, "symmetric_scale", narrow_symmetric_scale, closed_forms),
    (PerChannel, "min_max", shared_scale, test_grid.test_each_channel_has_its_own_scale),
    (integer, "accumulate", unfolded_zero_points, test_linear.test_dynamic_linear_is_its_formula),
    (integer, "accumulate", weight_zero_point_forgotten, test_linear.test_static_linear_is_its_formula),
    (integer, "accumulate", unfolded_zero_points, golden("fbgemm")),
    (integer, "int8_matmul", float32_accumulation, test_integer.test_sums_beyond_24_bits_keep_their_last_bit),
    (reference, "real", bias_before_rescale, test_linear.test_static_linear_is_its_formula),
    (reference, "real", integer_bias, test_linear.test_dynamic_linear_is_its_formula),
    (reference, "real", fused_rescale, test_dialects.test_rescale_orders),
    (fbgemm, "real", reference.real, golden("fbgemm")),
    (qtensor.QTensor, "__tensor_function__", relu_at_integer_zero, test_qtensor.test_operations_on_integers),
    (fbgemm, "codes_on", relu_clamp_at_zero, golden("fbgemm")),
    (qnnpack, "codes_on", relu_clamp_at_zero, golden("qnnpack")),
    (test_dialects, "saturated", no_saturation, test_dialects.test_packing_saturates_in_three_steps),
    (epilogue.ToCodes, "__call__", codes_that_wrap, golden("fbgemm")),
    (fbgemm.FBGEMM, "to_codes", qnnpack.QNNPACK.to_codes, golden("fbgemm")),
    (qnnpack.QNNPACK, "to_codes", fbgemm.FBGEMM.to_codes, golden("qnnpack")),
    (onednn.ONEDNN, "to_codes", fbgemm.FBGEMM.to_codes, golden("onednn")),
    (onednn, "reciprocal_twice", scales_as_they_are, golden("onednn")),
    (fbgemm, "fma", fma_in_two_roundings, golden("fbgemm")),
    (torch_rules, "fbgemm_qparams", observers_formula, golden("x86", "qnnpack")),
    (qtensor, "pack_bits", highest_bits_first, test_qtensor.test_storage_gives_the_integers_back),
    (grid.RoundToGrid, "backward", gradient_everywhere, test_fake_quant.test_outside_the_range_nothing_passes),
    (grid, "straight_through_range", mask_of_the_integers,
     test_grid.test_symmetric_gradient_passes_up_to_amax_and_not_one_ulp_more),
    (fake_quant.FakeQuantize, "observe", observing_in_eval, test_fake_quant.test_the_range_stands_still_in_eval),
    (fake_quant.WeightFakeQuantize, "observe", weight_range_that_lags,
     test_fake_quant.test_a_weights_range_is_its_current_one),
    (reference.Reference, "qat_linear", float_product,
     test_linear.test_forward_is_the_integer_layer_and_backward_the_float_one),
)]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_rejected(mutant, monkeypatch):
    must_be_rejected(mutant, monkeypatch)
