"""Torch's engines with one rule exchanged: sums that saturate, convolutions, operations, pooling. See `mutants`."""

from __future__ import annotations

import numpy as np
import pytest

from minquant.kernels import int8_matmul
from minquant.quant import QTensor
from minquant.quant.dialects import (
    base,
    fbgemm,
    onednn,
    qnnpack_operations,
    saturating_conv,
    torch_operations,
    torch_pooling,
    torch_rules,
    x86,
)
from minquant.quant.dialects.qnnpack_operations import QNNPACKOperations
from minquant.quant.dialects.torch_operations import TorchOperations
from tests.kernels import test_saturating
from tests.quant import test_conv_dialects, test_operations
from tests.quant.mutants import Mutant, every, must_be_rejected, name, of, recorded

F32 = np.float32

# ---- sums that saturate ----------------------------------------------------------------------------------------------

SATURATING, ACCUMULATE, TAPS = test_saturating.saturating_matmul, base.accumulate, saturating_conv.taps_in_pairs


def in_int16(a):
    return np.clip(a, -(2**15), 2**15 - 1).astype(np.int32)


def total_saturates(a, b):
    return in_int16(int8_matmul(a, b))


def each_product_saturates(a, b):
    return sum(in_int16(a[:, [k]].astype(np.int32) @ b[[k]]) for k in range(a.shape[1]))


def pairs_one_further_on(a, b):
    return SATURATING(a[:, :1], b[:1]) + SATURATING(a[:, 1:], b[1:])


def pairs_half_apart(a, b):
    half = a.shape[1] // 2
    order = np.arange(2 * half).reshape(2, half).T.reshape(-1)
    return SATURATING(a[:, order], b[order])


def pairs_that_wrap_around(a, b):
    pairs = [a[:, k : k + 2].astype(np.int32) @ b[k : k + 2] for k in range(0, a.shape[1], 2)]
    return sum(pair.astype(np.int16).astype(np.int32) for pair in pairs)


def zero_points_taken_out_before(qx, zx, qw, zw, matmul=None):
    return ACCUMULATE((qx - zx).astype(np.int8), 0 * zx, qw, zw)


def channels_first(rows, channels):
    return rows


def pairs_across_taps(rows, channels):
    return rows


def zero_point_in_the_padding(qx, zx, qw, geometry):
    parts = zip(geometry.columns(qx), geometry.filters(qw), strict=True)
    return np.concatenate([SATURATING(c, f.T) - zx * f.sum(axis=1, dtype=np.int32) for c, f in parts], axis=1)


# ---- convolution -----------------------------------------------------------------------------------------------------


def never_onednn(weight, geometry):
    return False


def onednn_for_any_number_of_groups(weight, geometry):
    return not weight.qparams.zero_point.any()


def onednn_for_any_weight(weight, geometry):
    return geometry.groups <= x86.MOST_GROUPS


def weight_scales_inverted_twice(self, x, weight, bias, output, relu, geometry, x_scale, out_scale):
    w_scale = onednn.reciprocal_twice(weight.qparams.scale)
    to_codes = self.codes_of_scales(x_scale, w_scale, out_scale, bias, output, relu)
    return QTensor(geometry.images(to_codes(self.conv_sums(x, weight, geometry)), x.shape), output)


def scale_rounded_before_its_reciprocal(self, x, scale, weight, bias, geometry):
    return self.conv(x, weight, bias, x.qparams, False, geometry)


def zero_point_after_the_rounding(y, inverse, zero_point):
    return np.rint(y * inverse) + zero_point


def real_values_kept(self, *arguments):
    return base.Dialect.dynamic_conv(self, *arguments)


def exact_depthwise_kernel(self, x, weight, geometry):
    return torch_rules.TorchDialect.conv_sums(self, x, weight, geometry)


# ---- operations ------------------------------------------------------------------------------------------------------

IN_VECTORS, MUL_SCALAR = torch_operations.in_vectors, TorchOperations.mul_scalar


def on_grid(codes, output):
    return QTensor(np.clip(codes, output.spec.qmin, output.spec.qmax).astype(output.spec.dtype), output)


def all_in_vectors(shapes, lanes, channels_last):
    return np.ones(np.broadcast_shapes(*shapes), bool)


def order_of_axes(shapes, lanes, channels_last):
    return IN_VECTORS(shapes, lanes, False)


def one_division_for_the_product(self, a, b, output, relu):
    multiplier = (a.qparams.scale * b.qparams.scale) / output.scale
    acc = torch_pooling.centred(a) * torch_pooling.centred(b)
    return on_grid(np.rint(acc.astype(F32) * multiplier) + output.zero_point, output)


def integers_joined(self, operands, dim, output):
    return on_grid(np.concatenate([x.int_repr() for x in operands], axis=dim), output)


def one_cat_for_all(self, operands, dim, output):
    return base.Dialect.cat(self, operands, dim, output)


def number_in_real_values(self, a, c, output):
    return base.Dialect.add_scalar(self, a, c, output)


def negative_factor_not_mirrored(self, a, c, output):
    return MUL_SCALAR(self, a, abs(c), output)


def padding_not_counted(x, kernel, stride, padding, lanes, channels_last):
    ones = QTensor(np.ones_like(x.int_repr()), torch_operations.grid_of(1, 0, x.qparams.spec))
    count = torch_pooling.window_sums(torch_pooling.centred(ones), kernel, stride, padding)
    total = torch_pooling.window_sums(torch_pooling.centred(x), kernel, stride, padding)
    return on_grid(np.rint(total / count) + x.qparams.zero_point, x.qparams)


def mean_requantized(self, x, kernel, stride, padding, output):
    return base.Dialect.avg_pool2d(self, x, kernel, stride, padding, output)


def regions_side_by_side(elements, count):
    ends = [max((i + 1) * elements // count, i * elements // count + 1) for i in range(count)]
    return [slice(i * elements // count, end) for i, end in enumerate(ends)]


def float_sum(self, a, b, output, relu):
    return TorchOperations.add(self, a, b, output, relu)


def halves_upwards(self, a, b, output, relu):
    ratios = [self._ratio(x, output) for x in (a, b)]
    shift = qnnpack_operations.MULTIPLIER_BITS - int(np.frexp(max(ratios))[1])
    ma, mb = (int(np.rint(np.ldexp(ratio, shift))) for ratio in ratios)
    acc = ma * torch_pooling.centred(a).astype(np.int64) + mb * torch_pooling.centred(b)
    return on_grid(((acc + (1 << (shift - 1))) >> shift) + output.zero_point, output)


def real_softmax(self, x, dim, output):
    return TorchOperations.softmax(self, x, dim, output)


PAIRS = every(test_conv_dialects.test_pairs_equal_the_specification)
MUTANTS = [Mutant(*row) for row in (
    (test_saturating, "saturating_matmul", total_saturates, test_saturating.test_by_hand),
    (test_saturating, "saturating_matmul", each_product_saturates, test_saturating.test_by_hand),
    (test_saturating, "saturating_matmul", pairs_one_further_on, test_saturating.test_by_hand),
    (test_saturating, "saturating_matmul", pairs_half_apart, test_saturating.test_by_hand),
    (test_saturating, "saturating_matmul", pairs_that_wrap_around, test_saturating.test_by_hand),
    (saturating_conv, "saturating_accumulate", zero_points_taken_out_before, PAIRS),
    (saturating_conv, "_channels_last", channels_first, PAIRS),
    (saturating_conv, "_with_even_channels", pairs_across_taps,
     test_conv_dialects.test_other_kernels_saturate_without_vnni),
    (test_conv_dialects, "taps_in_pairs", zero_point_in_the_padding, PAIRS),
    (x86, "takes_onednn", never_onednn, of(test_conv_dialects.test_ties, "x86", [102, 102, 104])),
    (x86, "takes_onednn", onednn_for_any_number_of_groups, test_conv_dialects.test_which_engine_x86_takes),
    (x86, "takes_onednn", onednn_for_any_weight, test_conv_dialects.test_which_engine_x86_takes),
    (onednn.ONEDNN, "conv_of_scales", weight_scales_inverted_twice,
     test_conv_dialects.test_onednn_inverts_a_weights_scale_twice_for_a_linear_and_not_for_a_conv),
    (onednn.ONEDNN, "conv_to_input_grid", scale_rounded_before_its_reciprocal,
     recorded("dynamic Conv1d/onednn per tensor")),
    (onednn, "code", zero_point_after_the_rounding, of(test_conv_dialects.test_ties, "onednn", [102, 102, 104])),
    (torch_rules.TorchDialect, "dynamic_conv", real_values_kept,
     of(test_conv_dialects.test_a_dynamic_output_stays_on_the_grid_of_the_input, "fbgemm")),
    (fbgemm.FBGEMM, "conv_sums", exact_depthwise_kernel,
     test_conv_dialects.test_the_depthwise_kernel_saturates_on_every_processor),
    (torch_operations, "in_vectors", all_in_vectors,
     of(test_operations.test_a_half_step_goes_one_way_in_whole_vectors_and_the_other_way_left_over, "x86")),
    (torch_operations, "in_vectors", order_of_axes, recorded("mul/onednn")),
    (TorchOperations, "mul", one_division_for_the_product, recorded("mul/fbgemm")),
    (TorchOperations, "cat", integers_joined, of(test_operations.test_cat_brings_operands_to_one_grid, "fbgemm")),
    (TorchOperations, "cat", one_cat_for_all, test_operations.test_channels_last_images_have_a_cat_of_their_own),
    (TorchOperations, "add_scalar", number_in_real_values,
     every(test_operations.test_adding_a_number_moves_the_zero_point_or_stretches_the_grid)),
    (TorchOperations, "mul_scalar", negative_factor_not_mirrored,
     every(test_operations.test_multiplying_by_a_number_changes_the_grid)),
    (torch_operations, "avg_pool2d", padding_not_counted,
     of(test_operations.test_padding_counts_as_real_zeros, "fbgemm")),
    (TorchOperations, "avg_pool2d", mean_requantized, of(test_operations.test_padding_counts_as_real_zeros, "x86")),
    (torch_pooling, "regions", regions_side_by_side, recorded("adaptive_avg_pool2d/x86")),
    (QNNPACKOperations, "add", float_sum,
     test_operations.test_qnnpack_adds_in_fixed_point_and_rounds_halves_away_from_zero),
    (QNNPACKOperations, "add", halves_upwards,
     test_operations.test_qnnpack_adds_in_fixed_point_and_rounds_halves_away_from_zero),
    (QNNPACKOperations, "avg_pool2d", TorchOperations.avg_pool2d,
     of(test_operations.test_a_mean_between_two_integers_depends_on_engine_and_memory, "qnnpack", False, [11] * 9)),
    (QNNPACKOperations, "softmax", real_softmax, test_operations.test_softmax_of_qnnpack_divides_integers),
)]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_rejected(mutant, monkeypatch):
    must_be_rejected(mutant, monkeypatch)
