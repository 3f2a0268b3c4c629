"""Fake quantizers as torch modules: minquant's own rules choose the grid, torch rounds to it, straight through.

Only ranges travel to the host, where minquant's functions make grids of them; values stay on their device, and the
arithmetic that rounds them is minquant's own (`minquant.kernels.tensors.in_torch`). So the values are minquant's to the
last bit, and so is what passes a gradient on.

In several processes (torch.distributed) the observed range is that of all their parts of a batch, as in
`minquant.train.parallel`; torch's DistributedDataParallel would give every process the range that the first one saw.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed

from minquant import Tensor as Own
from minquant.interop.shell import shell_of
from minquant.kernels.tensors import in_torch
from minquant.quant import QParams, fake_quant, observers
from minquant.quant.dialects.torchao import choose_qparams_with_min_max
from minquant.quant.fake_quantizer import FakeQuantizerBase, StaticFakeQuantizer
from minquant.quant.fixed_observer import FixedQParamsObserver
from minquant.quant.grid import real_of, straight_through_range, to_code
from minquant.quant.spec import Granularity

from .rules import on_device
from .twin import Twin

__all__ = ["Chosen", "Observed", "Observer", "OnHost", "uncovered_fake_quantizer", "uncovered_observer"]

OBSERVERS = (
    observers.MinMaxObserver,
    observers.MovingAverageMinMaxObserver,
    observers.PerChannelMinMaxObserver,
    observers.MovingAveragePerChannelMinMaxObserver,
    FixedQParamsObserver,
)
OBSERVING = (fake_quant.FakeQuantize, fake_quant.WeightFakeQuantize, StaticFakeQuantizer)


def uncovered_fake_quantizer(own: Any) -> str:
    """Why a fake quantizer cannot be had in torch; "" if it can."""
    if type(own) in OBSERVING:
        return ""
    if not isinstance(own, FakeQuantizerBase):
        return "this fake quantizer is not covered"
    if own._parameters or own._modules or set(own._buffers) != {"fake_quant_enabled"}:
        return "a fake quantizer with tensors of its own is not covered"
    return ""


def uncovered_observer(own: Any) -> str:
    """Why an observer cannot be had in torch; "" if it can."""
    return "" if type(own) in OBSERVERS else "this observer is not covered; those of a smallest and largest value are"


# ---- grids that are chosen anew at every call ------------------------------------------------------------------------


class Chosen(Twin):
    """minquant's `IntxFakeQuantizer`: the grid follows from these very values, which all pass gradients."""

    fake_quant_enabled: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if not self.fake_quant_enabled or not x.numel():
            return x
        config = self.shell.config
        ends = finite_range(x, config.spec.granularity, self.where)
        grid = choose_qparams_with_min_max(*ends, config.spec, config.mapping_type, config.eps)
        return StraightThrough.apply(x, rounded(x, grid), None)


class OnHost(Twin):
    """Any other `FakeQuantizerBase`, such as one of your own: minquant itself rounds, and says what the gradient is.

    Values on a GPU travel to the host and back.
    """

    fake_quant_enabled: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return ByMinquant.apply(x, self.shell) if self.fake_quant_enabled else x


class ByMinquant(torch.autograd.Function):
    """``own.round``, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, own: Any) -> Tensor:
        ctx.x = Own(np.array(x.detach().cpu().numpy()), requires_grad=True)
        ctx.y = own.round(ctx.x)
        return torch.tensor(ctx.y.data, device=x.device)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.y.backward(Own(np.array(grads[0].cpu().numpy())))
        return torch.tensor(ctx.x.grad.data, device=grads[0].device), None


# ---- grids for a range that was observed -----------------------------------------------------------------------------


class Observer(Twin):
    """The range that one of minquant's observers has seen: ``min_val`` and ``max_val``, as buffers."""

    def in_minquant(self) -> Any:
        """The observer, with this range."""
        own = shell_of(self.shell)
        for name, buffer in self._buffers.items():
            own.register_buffer(name, Own(np.array(buffer.cpu().numpy())))
        return own

    def observe(self, x: Tensor, anew: bool) -> None:
        """Takes x into account, as minquant does; `anew`: and nothing else."""
        own = self.in_minquant()
        low, high = range_of(x.detach(), own.granularity)
        if not anew:
            low, high = shared(low, high)
        if (low > high).any():
            return  # no values anywhere
        if anew:
            own.reset_min_max_vals()
        own(finite(torch.stack([low, high], -1), self.where).reshape(*low.shape, 2))
        for name in own.resizable:
            self.put(name, torch.tensor(np.array(getattr(own, name).data)))

    def put(self, name: str, values: Tensor) -> None:
        """Sets a buffer, of whatever shape; the tensor, which others may know, stays the same one."""
        buffer = getattr(self, name)
        buffer.set_(values.to(buffer.device, copy=True))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        for name in self.shell.resizable:
            if prefix + name in state_dict:
                self.put(name, state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *args)


class Observed(Twin):
    """minquant's `FakeQuantize`, `WeightFakeQuantize` or `StaticFakeQuantizer`: a range, and rounding to its grid."""

    observer_enabled: Tensor
    fake_quant_enabled: Tensor
    activation_post_process: Observer

    def forward(self, x: Tensor) -> Tensor:
        of_weight = isinstance(self.shell, fake_quant.WeightFakeQuantize)
        if self.observer_enabled and (self.training or of_weight):
            self.activation_post_process.observe(x, of_weight)
        if not self.fake_quant_enabled:
            return x
        observer = self.activation_post_process.in_minquant()
        grid = observer.qparams()
        seen_low, seen_high = observer.range()
        ends = straight_through_range(seen_low, seen_high, grid.spec)
        low, high = (a.reshape(-1, 1) for a in on_device(map(np.atleast_1d, ends), x.device))
        rows = in_rows(x.detach(), grid.spec.granularity)
        return StraightThrough.apply(x, rounded(x, grid), ((low <= rows) & (rows <= high)).reshape(x.shape))


# ---- values ----------------------------------------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """The rounded values; the gradient passes where `inside`, or everywhere."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounded: Tensor, inside: Tensor | None) -> Tensor:
        ctx.save_for_backward(inside)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (inside,) = ctx.saved_tensors
        return (grads[0] if inside is None else grads[0] * inside), None, None


def rounded(x: Tensor, grid: QParams) -> Tensor:
    """``f((clip(rint(f(x · f(1/s))) + z) - z) · s)``, of x's dtype."""
    *arrays, low, high = grid.flat
    inverse, scale, zero_point = (a.reshape(-1, 1) for a in on_device(arrays, x.device))
    grid.check_fits(tuple(x.shape))
    codes = in_torch(to_code)(in_rows(x.detach().float(), grid.spec.granularity), inverse, zero_point)
    real = in_torch(real_of)(codes.clamp(float(low), float(high)), scale, zero_point)
    return real.reshape(x.shape).to(x.dtype)


def in_rows(x: Tensor, granularity: Granularity) -> Tensor:
    """A row for each scale."""
    return x.reshape(-1, max(granularity.run(tuple(x.shape)), 1))


def range_of(x: Tensor, granularity: Granularity) -> tuple[Tensor, Tensor]:
    """Smallest and largest of what shares a scale; inf and -inf of nothing."""
    shape = granularity.qparams_shape(tuple(x.shape))
    if not x.numel():
        return x.new_full(shape, torch.inf), x.new_full(shape, -torch.inf)
    low, high = torch.aminmax(in_rows(x.float(), granularity), dim=1)
    return low.reshape(shape), high.reshape(shape)


def shared(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest of all processes' smallest, the largest of their largest."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
    return low, high


def finite_range(x: Tensor, granularity: Granularity, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`range_of`, on the host; errors as `finite`."""
    low, high = finite(torch.stack(range_of(x.detach(), granularity)), where)
    return low, high


def finite(ends: Tensor, where: str) -> np.ndarray:
    """The ends of ranges as an array.

    Raises:
        ValueError: NaN or infinity.
    """
    array = ends.cpu().numpy()
    if not np.isfinite(array).all():
        raise ValueError(
            f"{where}: NaN or infinity in the values to round: no range, so no grid. Did training diverge?"
        )
    return array
