"""Normalizations as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from minquant import functional as F  # noqa: N812 (torch's name)
from minquant.functional.norm import sizes_of
from minquant.nn import init
from minquant.nn.module import Module, Parameter
from minquant.tensor import Tensor

if TYPE_CHECKING:
    from minquant.tensor import TensorLike


class _Norm(Module):
    def _register_affine(self, shape: tuple[int, ...], weight: bool, bias: bool) -> None:
        self.register_parameter("weight", Parameter(np.ones(shape, np.float32)) if weight else None)
        self.register_parameter("bias", Parameter(np.zeros(shape, np.float32)) if bias else None)

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        if self.weight is not None:
            init.ones_(self.weight)
        if self.bias is not None:
            init.zeros_(self.bias)


class _BatchNorm(_Norm):
    dims: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"{type(self).__name__}: num_features must be positive, got {num_features}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self._register_affine((num_features,), affine, affine and bias)
        self.register_buffer("running_mean", np.zeros(num_features, np.float32) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(num_features, np.float32) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", np.array(0) if track_running_stats else None)

    def reset_running_stats(self) -> None:
        """Mean 0, variance 1, no batch seen."""
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            self.num_batches_tracked.zero_()

    def forward(self, input: TensorLike) -> Tensor:
        self._check(np.shape(input))
        of_batch, share = self.training or not self.track_running_stats, self.momentum
        if share is None:  # the mean over all batches
            share = 1 / (int(self.num_batches_tracked) + 1) if self.track_running_stats else 0.0
        out = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, of_batch, share, self.eps
        )
        if of_batch and self.track_running_stats:  # after the call, which may have refused the batch
            self.num_batches_tracked += 1
        return out

    def _check(self, shape: tuple[int, ...]) -> None:
        name = type(self).__name__
        if len(shape) not in self.dims:
            raise ValueError(f"{name}: input must be {' or '.join(self.dims.values())}, got shape {shape}")
        if shape[1] != self.num_features:
            raise ValueError(
                f"{name}: input has shape {shape}, that is {shape[1]} channels, "
                f"expected num_features={self.num_features}"
            )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"bias={self.bias is not None}, track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """(x − mean) / √(var + eps) · weight + bias by channel: (N, C) or (N, C, L). See `functional.batch_norm`.

    Args:
        num_features: C.
        eps: keeps the divisor from 0.
        momentum: a batch's share in the running statistics; None weighs all batches alike.
        affine: have a weight and a bias.
        track_running_stats: keep running statistics for eval; without, eval uses its batch's.
        bias: have a bias, if affine.

    Raises:
        ValueError: an input that does not fit; one value a channel in training.
        TypeError: integers.
    """

    dims = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm):
    """(x − mean) / √(var + eps) · weight + bias by channel: (N, C, H, W). See `functional.batch_norm`.

    Args:
        num_features: C.
        eps: keeps the divisor from 0.
        momentum: a batch's share in the running statistics; None weighs all batches alike.
        affine: have a weight and a bias.
        track_running_stats: keep running statistics for eval; without, eval uses its batch's.
        bias: have a bias, if affine.

    Raises:
        ValueError: an input that does not fit; one value a channel in training.
        TypeError: integers.
    """

    dims = {4: "(N, C, H, W)"}


class LayerNorm(_Norm):
    """(x − mean) / √(var + eps) · weight + bias over the last axes: (…, *normalized_shape).

    Args:
        normalized_shape: the sizes of these axes.
        eps: keeps the divisor from 0.
        elementwise_affine: have a weight and a bias.
        bias: have a bias, if elementwise_affine.

    Raises:
        ValueError: an input that does not fit.
        TypeError: integers.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.normalized_shape = sizes_of(normalized_shape, "LayerNorm")
        self.eps, self.elementwise_affine = eps, elementwise_affine
        self._register_affine(self.normalized_shape, elementwise_affine, elementwise_affine and bias)

    def forward(self, input: TensorLike) -> Tensor:
        return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return (
            f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}, "
            f"bias={self.bias is not None}"
        )


class RMSNorm(Module):
    """x·weight / √(mean(x²) + eps) over the last axes: (…, *normalized_shape).

    Args:
        normalized_shape: the sizes of these axes.
        eps: keeps the divisor from 0; None for the step of the input's dtype at 1.
        elementwise_affine: have a weight.

    Raises:
        ValueError: an input that does not fit.
        TypeError: integers.
    """

    def __init__(
        self, normalized_shape: int | Sequence[int], eps: float | None = None, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = sizes_of(normalized_shape, "RMSNorm")
        self.eps, self.elementwise_affine = eps, elementwise_affine
        weight = Parameter(np.ones(self.normalized_shape, np.float32)) if elementwise_affine else None
        self.register_parameter("weight", weight)

    def reset_parameters(self) -> None:
        """Weight 1."""
        if self.weight is not None:
            init.ones_(self.weight)

    def forward(self, input: TensorLike) -> Tensor:
        return F.rms_norm(input, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.normalized_shape}, eps={self.eps}, elementwise_affine={self.elementwise_affine}"
