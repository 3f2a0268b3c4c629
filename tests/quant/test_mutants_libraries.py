"""ONNX, torchao, TFLite, ModelOpt and what compares them, with one rule exchanged. See `mutants`."""

from __future__ import annotations

import numpy as np
import pytest

from minquant.crosscheck import suite
from minquant.quant import QParams
from minquant.quant.dialects import (
    base,
    fixed_point,
    modelopt,
    onnx,
    onnx_grid,
    onnx_products,
    tflite,
    tinygemm,
    torchao,
)
from minquant.quant.rosetta import causes, readings, requantizing
from tests.crosscheck import test_suite
from tests.quant import test_fixed_point, test_onnx, test_rosetta, test_torchao
from tests.quant.mutants import Mutant, every, must_be_rejected, name, of, recorded

F32 = np.float32

# ---- ONNX ------------------------------------------------------------------------------------------------------------

DYNAMIC, GEOMETRY = onnx_grid.dynamic_quantize_linear, onnx_products._geometry


def times_the_reciprocal(x, scale, zero_point):
    return np.rint(x * (F32(1) / scale)).astype(np.int64) + zero_point


def half_away_from_zero(x, scale, zero_point):
    return (np.sign(x) * np.floor(np.abs(x / scale) + F32(0.5))).astype(np.int64) + zero_point


def zero_point_before_rounding(x, scale, zero_point):
    return np.rint(x / scale + np.asarray(zero_point).astype(F32)).astype(np.int64)


def range_without_zero(x):
    low, high = x.min(), x.max()
    scale = (high - low) / F32(255)
    zero_point = np.rint(np.clip(-low / scale, 0, 255)).astype(np.uint8)
    return onnx.quantize_linear(x, scale, zero_point), scale, zero_point


def zero_point_truncated(x):
    _, scale, _ = DYNAMIC(x)
    zero_point = np.clip(-np.minimum(x.min(), F32(0)) / scale, 0, 255).astype(np.uint8)
    return onnx.quantize_linear(x, scale, zero_point), scale, zero_point


def single_for_double(acc, multiplier, zero_point):
    return onnx_products.in_single(acc, multiplier, zero_point)


def multiplier_in_float64(x_scale, w_scale, y_scale):
    return np.asarray(x_scale, np.float64) * w_scale / y_scale


def upper_for_lower(size, kernel, auto_pad, *attributes):
    return GEOMETRY(size, kernel, auto_pad.replace("LOWER", "UPPER"), *attributes)


def bias_truncated(bias, x_scale, w_scale):
    return np.clip(bias.astype(np.float64) / (x_scale * w_scale), -(2**31), 2**31 - 1).astype(np.int32)


def code_of_real_bias(acc, step, bias, out_scale, unused, zero_point):
    return np.rint((np.float64(acc) * step + bias) / out_scale + zero_point)


def real_bias(self, x_scale, w_scale, bias, output, relu):
    terms = x_scale * w_scale, bias, output.scale
    return base.codes_on(output, relu, code_of_real_bias, terms, np.float64(output.zero_point))


# ---- torchao ---------------------------------------------------------------------------------------------------------

CHOOSE = torchao.choose_qparams_with_min_max


def divisor_of_the_other_mapping(x_min, x_max, spec, mapping=None, eps=torchao.TINY):
    return CHOOSE(x_min, x_max, spec, mapping and mapping.removesuffix("_no_clipping_error"), eps)


def torchs_smallest_scale(x_min, x_max, spec, mapping=None, eps=torchao.TINY):
    return CHOOSE(x_min, x_max, spec, mapping, F32(2.0**-23))


def one_smallest_scale_for_all(x_min, x_max, spec, mapping=None, eps=torchao.TINY):
    return CHOOSE(x_min, x_max, spec, mapping)


def middle_rounded_down(x_min, x_max, spec, mapping=None, eps=torchao.TINY):
    chosen = CHOOSE(x_min, x_max, spec, mapping, eps)
    if not spec.symmetric:
        return chosen
    return QParams(chosen.scale, np.full_like(chosen.zero_point, (spec.qmin + spec.qmax) // 2), spec)


def gradient_passed_as_it_is(self, grad):
    return np.where(self.saved[0], grad, F32(0))


def gradient_everywhere(self, grad):
    scale = self.saved[1]
    return grad * scale * (F32(1) / scale)


def fused_scales(acc, x_scale, w_scale, bias):
    return acc.astype(F32) * (x_scale * w_scale) + bias


def range_with_zero(x, spec, eps=tinygemm.EPS):
    x_min, x_max = spec.granularity.min_max(x)
    scale = np.maximum(np.maximum(x_max, 0) - np.minimum(x_min, 0), F32(eps)) / F32(spec.qmax - spec.qmin)
    return tinygemm.TinygemmGrid(scale, np.minimum(x_min, 0) + scale * F32(8), spec)


def middle_between_two_integers(self):
    return F32((self.spec.qmin + self.spec.qmax) / 2)


def zero_point_in_steps(x, grid):
    scale, zero_point = grid.expand(x.shape)
    codes = np.rint(x / scale) - np.rint(zero_point / scale) + grid.middle
    return np.clip(codes, grid.spec.qmin, grid.spec.qmax).astype(grid.spec.dtype)


# ---- TFLite and ModelOpt ---------------------------------------------------------------------------------------------

FIXED_POINT = fixed_point.requantize


def rounded_once(x, mantissa, shift):
    exact = np.asarray(x, np.float64) * mantissa * 2.0 ** (np.asarray(shift, np.float64) - 31)
    return tflite.away_from_zero(exact).astype(np.int32)


def half_to_even_in_the_shift(x, exponent):
    return np.rint(np.asarray(x, np.float64) / 2.0 ** np.asarray(exponent)).astype(np.int32)


def shift_that_truncates(x, exponent):
    return (np.asarray(x, np.int64) >> np.asarray(exponent)).astype(np.int32)


def ties_away_in_the_product(a, b):
    product = np.asarray(a, np.int64) * np.asarray(b, np.int64)
    return (np.sign(product) * ((np.abs(product) + 2**30) >> 31)).astype(np.int32)


def relu_at_integer_zero(acc, multiplier, output, relu=False):
    return np.maximum(FIXED_POINT(acc, multiplier, output), 0)


def half_to_even(x):
    return np.rint(x)


def half_upwards(x):
    return np.floor(x + 0.5)


def divisor_of_the_whole_range(x, bits=8):
    qmax, amax = F32(2 ** (bits - 1) - 1), np.abs(x).max()
    scale = amax / F32(qmax + F32(0.5)) if amax else F32(1)
    return np.clip(np.rint(x / scale), -qmax, qmax).astype(np.int8), scale


def reciprocal_of_the_scale(x, bits=8):
    qmax, amax = F32(2 ** (bits - 1) - 1), np.abs(x).max()
    if amax <= modelopt.SMALLEST_AMAX:
        return np.zeros(x.shape, np.int8), F32(1)
    return np.clip(np.rint(x * (F32(1) / (amax / qmax))), -qmax, qmax).astype(np.int8), amax / qmax


# ---- what compares ---------------------------------------------------------------------------------------------------

DIFFERENCE = suite.difference


def integer_types_ignored(base, other):
    return 0


def first_rounding_that_comes(x, grid, other):
    return next(iter(causes.ROUNDINGS))


def zero_point_after_rounding(x, scale, zero_point):
    return np.rint(x * (F32(1) / scale)) + zero_point


def bias_left_out(self):
    return fixed_point.requantize(self.acc, self.step / np.float64(self.output.scale), self.output)


def nan_equals_everything(ours, theirs):
    return np.nan_to_num(DIFFERENCE(ours, theirs), posinf=0)


def shapes_that_broadcast(ours, theirs):
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    try:
        a, b = np.broadcast_arrays(a, b)
    except ValueError:
        return np.array([np.inf])
    return DIFFERENCE(a, b)


def difference_in_float32(ours, theirs):
    return DIFFERENCE(np.asarray(ours, F32), np.asarray(theirs, F32))


def difference_that_wraps_around(ours, theirs):
    a, b = np.asarray(ours), np.asarray(theirs)
    return np.abs(a - b) if a.dtype == b.dtype == np.uint8 else DIFFERENCE(ours, theirs)


def nearly_equal_is_equal(ours, theirs):
    gap = DIFFERENCE(ours, theirs)
    return np.where(gap < 1e-6, 0, gap)


def nothing_compared_is_fine(self):
    return not self.mismatches and not self.error


ATTRIBUTES = of(test_onnx.test_conv_integer_with_every_attribute, 1)
MUTANTS = [Mutant(*row) for row in (
    (onnx_grid, "to_codes", times_the_reciprocal, test_onnx.test_it_divides),
    (onnx_grid, "to_codes", half_away_from_zero, test_onnx.test_ties_round_to_even_before_the_zero_point_is_added),
    (onnx_grid, "to_codes", zero_point_before_rounding,
     test_onnx.test_ties_round_to_even_before_the_zero_point_is_added),
    (test_onnx, "dynamic_quantize_linear", range_without_zero, test_onnx.test_dynamic_quantize_linear),
    (test_onnx, "dynamic_quantize_linear", zero_point_truncated, test_onnx.test_dynamic_quantize_linear),
    (test_onnx, "in_double", single_for_double, test_onnx.test_where_the_two_roundings_differ),
    (onnx, "in_double", single_for_double, test_rosetta.test_the_question_of_the_lesson),
    (onnx_products, "multiplier", multiplier_in_float64, recorded("QLinearConv/reference")),
    (onnx_products, "_geometry", upper_for_lower, test_onnx.test_automatic_padding),
    (test_onnx, "integer_bias", bias_truncated, test_onnx.test_the_bias_is_an_integer),
    (onnx.ONNX, "to_codes", real_bias, test_rosetta.test_half_a_step_of_bias),
    (torchao, "choose_qparams_with_min_max", divisor_of_the_other_mapping, every(test_torchao.test_grids_of_int4)),
    (torchao, "choose_qparams_with_min_max", torchs_smallest_scale,
     test_torchao.test_the_smallest_scale_is_the_smallest_normal_number),
    (torchao, "choose_qparams_with_min_max", one_smallest_scale_for_all,
     test_torchao.test_symmetric_input_has_the_other_smallest_scale),
    (torchao, "choose_qparams_with_min_max", middle_rounded_down,
     test_torchao.test_the_middle_of_a_symmetric_grid_is_rounded_up_to_zero),
    (torchao.RoundLikeTorchao, "backward", gradient_passed_as_it_is,
     test_torchao.test_the_gradient_passes_through_scale_and_reciprocal),
    (torchao.RoundLikeTorchao, "backward", gradient_everywhere,
     test_torchao.test_the_gradient_passes_through_scale_and_reciprocal),
    (torchao, "real", fused_scales, recorded("torchao/dynamic Linear int8 per tensor")),
    (tinygemm, "choose_qparams", range_with_zero, test_torchao.test_tinygemm_spends_no_integers_on_zero),
    (tinygemm.TinygemmGrid, "middle", property(middle_between_two_integers),
     test_torchao.test_tinygemms_zero_point_is_the_real_value_of_the_middle),
    (tinygemm, "quantize", zero_point_in_steps, recorded("torchao/tinygemm")),
    (fixed_point, "multiply_by_quantized_multiplier", rounded_once, test_fixed_point.test_it_rounds_twice),
    (fixed_point, "rounding_divide_by_pot", half_to_even_in_the_shift, test_fixed_point.test_it_rounds_twice),
    (fixed_point, "rounding_divide_by_pot", shift_that_truncates, test_fixed_point.test_it_rounds_twice),
    (fixed_point, "saturating_rounding_doubling_high_mul", ties_away_in_the_product,
     test_fixed_point.test_it_rounds_twice),
    (test_fixed_point, "requantize", relu_at_integer_zero, test_fixed_point.test_ends_signs_relu_and_channels),
    (tflite, "away_from_zero", half_to_even, test_rosetta.test_ties_on_a_grid_of_whole_numbers),
    (tflite, "away_from_zero", half_upwards, test_rosetta.test_zero_points_at_a_tie),
    (readings, "modelopt_integers", divisor_of_the_whole_range, test_rosetta.test_three_divisors_for_amax_1),
    (readings, "modelopt_integers", reciprocal_of_the_scale, test_rosetta.test_every_word_for_rounding_is_needed),
    (causes, "shift_between", integer_types_ignored, test_rosetta.test_ties_on_a_grid_of_whole_numbers),
    (causes, "rounding", first_rounding_that_comes, test_rosetta.test_ties_on_a_grid_of_whole_numbers),
    (readings, "quantize_codes", zero_point_after_rounding, test_rosetta.test_ties_on_a_grid_of_whole_numbers),
    (requantizing.Parts, "twice_rounded", bias_left_out, test_rosetta.test_half_a_step_of_bias),
    (test_suite, "difference", nan_equals_everything, every(test_suite.test_difference)),
    (test_suite, "difference", shapes_that_broadcast, every(test_suite.test_difference)),
    (test_suite, "difference", difference_in_float32, every(test_suite.test_difference)),
    (test_suite, "difference", difference_that_wraps_around, every(test_suite.test_difference)),
    (test_suite, "difference", nearly_equal_is_equal, every(test_suite.test_difference)),
    (suite.Result, "ok", property(nothing_compared_is_fine), test_suite.test_what_compares_nothing_is_not_ok),
)]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_rejected(mutant, monkeypatch):
    must_be_rejected(mutant, monkeypatch)
