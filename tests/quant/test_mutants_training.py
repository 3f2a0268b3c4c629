"""Batch norms folded wrongly, and wrong gradients of learned scales. See `mutants`."""

from __future__ import annotations

import numpy as np
import pytest

from minquant import Tensor, functional
from minquant.quant import batch_norm
from minquant.quant.batch_norm import FoldsBatchNorm
from minquant.quant.learnable import LearnableFakeQuantize, RoundToLearnedGrid
from tests.quant import test_batch_norm, test_learnable
from tests.quant.mutants import Mutant, must_be_rejected, name

F32 = np.float32

# ---- batch norm ------------------------------------------------------------------------------------------------------

FOLD, AFFINE, FORWARD = batch_norm.fold_batch_norm, batch_norm._affine, FoldsBatchNorm.forward


def mean_forgotten(weight, bias, bn):
    return FOLD(weight, (0.0 if bias is None else bias) + bn.running_mean, bn)


def bias_forgotten(weight, bias, bn):
    return FOLD(weight, None, bn)


def eps_outside_the_root(bn):
    return 1 / (functional.sqrt(bn.running_var) + bn.eps)


def variance_for_deviation(bn):
    return 1 / (bn.running_var + bn.eps)


def gamma_forgotten(bn):
    return Tensor(np.ones(bn.num_features, F32)), AFFINE(bn)[1]


def running_statistics_in_training(self, x):
    return super(FoldsBatchNorm, self).forward(x)


def frozen_statistics_that_move(self, x):
    was, self.bn_frozen = self.bn_frozen, False
    try:
        return FORWARD(self, x)
    finally:
        self.bn_frozen = was


def rounded_before_folding(self, x):
    return self.product(x, self.fake_quantized(self.weight), self.bias)


def running_scale_left_in(self, x):
    factor = AFFINE(self.bn)[0] * batch_norm._inverse_deviation(self.bn)
    weight = self.fake_quantized(self.weight * batch_norm._per_output(factor, self.weight.ndim))
    return self.product(x, weight, self.bias)


def biased_variance(x):
    values = np.moveaxis(x.data, 1, 0).reshape(x.shape[1], -1).astype(np.float64)
    return values.mean(axis=1), values.var(axis=1)


# ---- learned scales --------------------------------------------------------------------------------------------------

LSQ = RoundToLearnedGrid.backward


def unscaled_gradient(self, x):
    return 1.0


def scaled_without_the_root(self, x):
    return 1.0 / (x.data.size * self.spec.qmax) if self.use_grad_scaling else 1.0


def gradient_inside_only(self, grad):
    dx = LSQ(self, grad)[0]
    return dx, *LSQ(self, dx)[1:]


def gradient_to_clipped_values(self, grad):
    return grad, *LSQ(self, grad)[1:]


def rounding_has_no_gradient(self, grad):
    x, spec = self.saved[0], self.grid.spec
    z = spec.granularity.expand(np.asarray(self.zero_point), x.shape)
    codes = np.clip(np.rint(x / spec.granularity.expand(self.grid.scale, x.shape) + z), spec.qmin, spec.qmax)
    return LSQ(self, grad)[0], self._sum(grad * (codes - z)), LSQ(self, grad)[2]


def one_gradient_for_all_channels(self, terms):
    return np.full_like(np.atleast_1d(self.grid.scale), terms.sum())


def zero_point_truncated(self):
    scale = np.maximum(self.scale.data, F32(2.0**-23))
    zero_point = np.clip(np.trunc(self.zero_point.data), self.spec.qmin, self.spec.qmax).astype(np.int32)
    per_tensor = scale.size == 1
    return (scale[0], zero_point[0]) if per_tensor else (scale, zero_point)


def estimated_in_eval(self, x):
    self.activation_post_process(x)
    self.scale.data, self.zero_point.data = (
        np.atleast_1d(values).astype(F32) for values in self.activation_post_process.calculate_qparams()
    )


MUTANTS = [Mutant(*row) for row in (
    (test_batch_norm, "fold_batch_norm", mean_forgotten, test_batch_norm.test_folding_by_hand),
    (test_batch_norm, "fold_batch_norm", bias_forgotten, test_batch_norm.test_folding_by_hand),
    (batch_norm, "_inverse_deviation", eps_outside_the_root,
     test_batch_norm.test_the_variance_of_a_constant_channel_is_0_and_eps_keeps_it_finite),
    (batch_norm, "_inverse_deviation", variance_for_deviation, test_batch_norm.test_folding_by_hand),
    (batch_norm, "_affine", gamma_forgotten, test_batch_norm.test_folding_by_hand),
    (FoldsBatchNorm, "forward", running_statistics_in_training,
     test_batch_norm.test_without_rounding_it_trains_as_the_float_model_does),
    (FoldsBatchNorm, "forward", frozen_statistics_that_move,
     test_batch_norm.test_frozen_statistics_stand_still_and_thawed_ones_move),
    (FoldsBatchNorm, "_before_batch_norm", rounded_before_folding,
     test_batch_norm.test_in_training_the_folded_weight_is_rounded),
    (FoldsBatchNorm, "_before_batch_norm", running_scale_left_in,
     test_batch_norm.test_without_rounding_it_trains_as_the_float_model_does),
    (batch_norm, "_statistics", biased_variance,
     test_batch_norm.test_reestimated_statistics_are_those_of_the_batches),
    (LearnableFakeQuantize, "_grad_factor", unscaled_gradient,
     test_learnable.test_grad_scaling_divides_by_the_root_of_size_times_qmax),
    (LearnableFakeQuantize, "_grad_factor", scaled_without_the_root,
     test_learnable.test_grad_scaling_divides_by_the_root_of_size_times_qmax),
    (RoundToLearnedGrid, "backward", gradient_inside_only,
     test_learnable.test_outside_the_scale_gets_the_end_of_the_grid_and_the_zero_point_the_step),
    (RoundToLearnedGrid, "backward", gradient_to_clipped_values, test_learnable.test_the_ends_of_the_grid_are_inside),
    (RoundToLearnedGrid, "backward", rounding_has_no_gradient,
     test_learnable.test_inside_the_scale_gets_the_rounding_error_in_steps),
    (RoundToLearnedGrid, "_sum", one_gradient_for_all_channels,
     test_learnable.test_per_channel_each_scale_gets_its_own_gradient),
    (LearnableFakeQuantize, "calculate_qparams", zero_point_truncated,
     test_learnable.test_the_scale_stays_positive_and_the_zero_point_on_the_grid),
    (LearnableFakeQuantize, "observe", estimated_in_eval,
     test_learnable.test_static_the_observer_sets_the_scale_while_training_only),
)]  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS, ids=name)
def test_rejected(mutant, monkeypatch):
    must_be_rejected(mutant, monkeypatch)
