"""Wrong convolutions, operations between grids and embeddings, each with one rule exchanged. See `mutants`."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, functional
from minquant.functional import geometry
from minquant.functional.geometry import Geometry
from minquant.quant import QTensor, between, embedding, watching
from minquant.quant.dialects import base, float_qparams, onnx_products
from minquant.quant.fixed_observer import FixedQParamsObserver
from minquant.quant.integer import accumulate
from tests import test_functional_conv
from tests.quant import test_between, test_conv, test_embedding, test_onnx
from tests.quant.mutants import Mutant, must_be_rejected, name, of, recorded

F32 = np.float32

# ---- convolution -----------------------------------------------------------------------------------------------------

COLUMNS, FILTERS, WINDOWS = Geometry.columns, Geometry.filters, geometry.windows
PADDING_OF, ONNX_GEOMETRY = geometry._padding_of, onnx_products._geometry


def padding_of_integer_zero(self, x, fill=0):
    return COLUMNS(self, x)


def groups_interleaved(self, x, fill=0):
    return COLUMNS(self, x[:, np.arange(x.shape[1]).reshape(-1, self.groups).T.reshape(-1)], fill)


def kernel_flipped(self, weight):
    return FILTERS(self, np.flip(weight, tuple(range(2, weight.ndim))))


def dilation_ignored(x, kernel, stride, dilation):
    places = WINDOWS(x, kernel, stride, dilation).shape[-2 * len(kernel) : -len(kernel)]
    near = WINDOWS(x, kernel, stride, (1,) * len(kernel))
    return near[(..., *map(slice, places), *(slice(None),) * len(kernel))]


def more_before_than_after(padding, *arguments):
    pads = PADDING_OF(padding, *arguments)
    return tuple((after, before) for before, after in pads) if padding == "same" else pads


def pads_axis_by_axis(size, kernel, auto_pad, dilations, group, pads, strides):
    return ONNX_GEOMETRY(size, kernel, auto_pad, dilations, group, (*pads[::2], *pads[1::2]), strides)


def rows_as_images(self, rows, x_shape):
    return rows.reshape(x_shape[0], rows.shape[-1], *self.places(x_shape[2:]))


def zero_points_of_the_first_group(qx, zx, qw, zw, geometry, sums=accumulate):
    first = np.broadcast_to(zw, len(qw)).reshape(geometry.groups, -1)[0]
    parts = zip(geometry.columns(qx, int(zx)), geometry.filters(qw), strict=True)
    return np.concatenate([sums(columns, zx, filters, first) for columns, filters in parts], axis=1)


# ---- between grids ---------------------------------------------------------------------------------------------------


def on_grid(integers, output):
    return QTensor(np.clip(integers, output.spec.qmin, output.spec.qmax).astype(output.spec.dtype), output)


def sum_of_integers(self, a, b, output, relu):
    return on_grid(a.int_repr().astype(int) + b.int_repr() - output.zero_point, output)


def product_of_integers(self, a, b, output, relu):
    return on_grid(a.int_repr().astype(int) * b.int_repr(), output)


def relu_at_integer_zero_of_a_sum(self, a, b, output, relu):
    return self.in_real_values(lambda x, y: x + y, (a, b), output)


def integers_joined(self, operands, dim, output):
    return on_grid(np.concatenate([x.int_repr() for x in operands], axis=dim), output)


def product_of_stored_integers(self, a, b, output):
    return on_grid(a.int_repr().astype(int) @ b.int_repr().astype(int), output)


def average_of_integers(self, x, kernel, stride, padding, output):
    mean = functional.avg_pool2d(Tensor(x.int_repr().astype(F32)), kernel, stride, padding)
    return on_grid(np.rint(mean.data), output)


def upper_end_on_the_grid(module, spec):
    if type(module) not in between.FIXED_RANGES:
        return None
    low, high = between.FIXED_RANGES[type(module)]
    scale = (high - low) / (spec.qmax - spec.qmin)
    ends = {"quant_min": spec.qmin, "quant_max": spec.qmax}
    return {"scale": scale, "zero_point": spec.qmin - int(np.rint(low / scale)), "dtype": "quint8", **ends}


def fixed_range_that_is_observed(self, x):
    self._set_range(x.min(), x.max())
    return x


# ---- embeddings ------------------------------------------------------------------------------------------------------

EMBEDDING_BAG, REAL_GRID = functional.embedding_bag, float_qparams.float_qparams


def scale_of_the_first_row(table, index):
    scale, zero_point = (v.reshape(-1)[0] for v in table.qparams.expand(table.shape))
    return (table.int_repr()[index].astype(int) - zero_point).astype(F32) * scale


def mean_without_division(index, table, offsets, mode, *options):
    return EMBEDDING_BAG(index, table, offsets, "sum", *options)


def padding_row_counted(index, table, offsets, mode, factors, include_last_offset, padding_idx):
    table.data[padding_idx if padding_idx is not None else []] = 0
    return EMBEDDING_BAG(index, table, offsets, mode, factors, include_last_offset)


def zero_point_rounded(weight, bits):
    scale, zero_point = REAL_GRID(weight, bits)
    return scale, np.rint(zero_point)


def range_with_zero(weight, bits):
    return REAL_GRID(np.concatenate([weight, np.zeros((len(weight), 1), F32)], axis=1), bits)


def float32_coefficients(self):
    return self.scale, -(self.zero_point * self.scale)


def bags_in_two_roundings(a, b, c):
    return np.asarray(a, F32) * np.asarray(b, F32) + np.asarray(c, F32)


MUTANTS = [Mutant(*row) for row in (
    (Geometry, "columns", padding_of_integer_zero, test_conv.test_padding_is_real_zero_and_not_integer_zero),
    (Geometry, "columns", padding_of_integer_zero, test_onnx.test_conv_integer),
    (Geometry, "columns", groups_interleaved, of(test_onnx.test_conv_integer_with_every_attribute, 2)),
    (onnx_products, "_geometry", pads_axis_by_axis, of(test_onnx.test_conv_integer_with_every_attribute, 1)),
    (Geometry, "filters", kernel_flipped, of(test_onnx.test_conv_integer_with_every_attribute, 1)),
    (geometry, "windows", dilation_ignored, of(test_onnx.test_conv_integer_with_every_attribute, 1)),
    (geometry, "_padding_of", more_before_than_after,
     test_functional_conv.test_an_odd_element_of_padding_same_goes_to_the_end),
    (Geometry, "images", rows_as_images, of(test_onnx.test_conv_integer_with_every_attribute, 1)),
    (onnx_products, "accumulate_conv", zero_points_of_the_first_group,
     of(test_onnx.test_conv_integer_with_every_attribute, 2)),
    (base.Dialect, "add", sum_of_integers, test_between.test_sums_and_joins_in_real_values),
    (base.Dialect, "add", relu_at_integer_zero_of_a_sum, test_between.test_sums_and_joins_in_real_values),
    (base.Dialect, "mul", product_of_integers, test_between.test_sums_and_joins_in_real_values),
    (base.Dialect, "cat", integers_joined, test_between.test_sums_and_joins_in_real_values),
    (base.Dialect, "matmul", product_of_stored_integers, of(test_between.test_prepared_equals_converted, "block", 8)),
    (base.Dialect, "avg_pool2d", average_of_integers, of(test_between.test_prepared_equals_converted, "average", 8)),
    (watching, "fixed_output", upper_end_on_the_grid, test_between.test_ranges_known_without_data),
    (FixedQParamsObserver, "forward", fixed_range_that_is_observed, test_between.test_ranges_known_without_data),
    (embedding, "decoded_rows", scale_of_the_first_row, test_embedding.test_a_row_is_its_integers_times_its_scale),
    (functional, "embedding_bag", mean_without_division,
     test_embedding.test_bags_are_sums_and_means_of_such_rows),
    (functional, "embedding_bag", padding_row_counted, test_embedding.test_bags_are_sums_and_means_of_such_rows),
    (float_qparams, "float_qparams", zero_point_rounded,
     test_embedding.test_a_zero_point_between_two_integers),
    (float_qparams, "float_qparams", range_with_zero, test_embedding.test_a_real_zero_point),
    (float_qparams.FloatQParamsTable, "coefficients", float32_coefficients,
     test_embedding.test_four_bits_are_kept_in_half_a_byte_and_float16),
    (float_qparams, "fma", bags_in_two_roundings, recorded("quantized embeddings/8 bits")),
)]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_rejected(mutant, monkeypatch):
    must_be_rejected(mutant, monkeypatch)
