"""quantize, dequantize, fake_quantize and the run-time grid, against torch's own operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor
from minquant.quant import PerChannel, PerTensor, QParams, QSpec, QTensor, choose_qparams, fake_quantize, quantize
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.fbgemm_grid import fbgemm_qparams

from ..inputs import KINDS, UINT8, near_ties, values
from ..suite import Case, Check

__all__ = ["CHECKS"]

F32 = np.float32
GRANULARITIES: dict[str, PerTensor | PerChannel] = {"per tensor": PerTensor(), "per channel": PerChannel()}


def _inputs(
    rng: np.random.Generator, quick: bool, spec_of: Callable[[], QSpec]
) -> Iterator[tuple[dict[str, Any], np.ndarray, QParams]]:
    """Inputs by name, values (C, N), many near ties, at times none, and a grid that is too narrow half of the time."""
    for i in range(40 if quick else 300):
        spec, size = spec_of(), 8 if i % 4 else 80
        x = values(rng, (int(rng.integers(1, size)), int(rng.integers(1, size))), KINDS[i % len(KINDS)])
        low, high = spec.granularity.min_max(x)
        narrow = rng.uniform(0.2, 1, np.shape(low)).astype(F32) if rng.random() < 0.5 else F32(1)
        grid = choose_qparams(low * narrow, high * narrow, spec)
        x = near_ties(rng, x, grid)[:, : 0 if i % 20 == 19 else None]
        described = {"scale": grid.scale, "zero_point": np.array(grid.zero_point), "spec": str(spec)}
        yield {"kind": KINDS[i % len(KINDS)], "x": x, **described}, x, grid


def _spec(rng: np.random.Generator, granularity: PerTensor | PerChannel) -> QSpec:
    signed = bool(rng.random() < 0.5)
    return QSpec(int(rng.choice([2, 4, 8, 8])), signed, bool(signed and rng.random() < 0.3), granularity)


# ---- quantize and dequantize -----------------------------------------------------------------------------------------


def _quantize_input(rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Where a model's input enters; all of torch's engines share the rule."""
    import torch

    dialect = get_dialect("x86")
    for inputs, x, grid in _inputs(rng, quick, lambda: UINT8):
        arguments = float(grid.scale), int(grid.zero_point), torch.quint8
        theirs = torch.quantize_per_tensor(torch.from_numpy(x), *arguments).int_repr().numpy()
        yield inputs, dialect.quantize(x, grid).int_repr(), theirs


def _torch_quantized(x: np.ndarray, grid: QParams) -> Any:
    import torch

    dtype = torch.qint8 if grid.spec.signed else torch.quint8
    if isinstance(grid.spec.granularity, PerTensor):
        return torch.quantize_per_tensor(torch.from_numpy(x), float(grid.scale), int(grid.zero_point), dtype)
    scale, zero_point = torch.from_numpy(grid.scale), torch.tensor(np.array(grid.zero_point))
    return torch.quantize_per_channel(torch.from_numpy(x), scale, zero_point, 0, dtype)


def _quantize_weight(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """Symmetric int8, on which all rounding rules agree."""
    spec = QSpec(symmetric=True, granularity=GRANULARITIES[granularity])
    for inputs, x, grid in _inputs(rng, quick, lambda: spec):
        yield inputs, quantize(x, grid).int_repr(), _torch_quantized(x, grid).int_repr().numpy()


def _dequantize(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """The integers that torch itself made, taken back to real values."""

    def spec() -> QSpec:
        return QSpec(8, bool(rng.random() < 0.5), granularity=GRANULARITIES[granularity])

    for inputs, x, grid in _inputs(rng, quick, spec):
        theirs = _torch_quantized(x, grid)
        yield (
            inputs,
            QTensor(theirs.int_repr().numpy(), grid).dequantize(),
            theirs.dequantize().numpy(),
        )


def _run_time_grid(reduce_range: bool, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    import torch

    for i in range(300 if quick else 5000):
        x = values(rng, (int(rng.integers(1, 40)),), KINDS[i % len(KINDS)])
        ours = fbgemm_qparams(x.min(), x.max(), 0, 127 if reduce_range else 255)
        yield {"x": x}, np.array(ours), np.array(torch._choose_qparams_per_tensor(torch.from_numpy(x), reduce_range))


# ---- fake_quantize ---------------------------------------------------------------------------------------------------


def _torch_fake_quantize(x: Any, grid: QParams) -> Any:
    import torch

    ends = grid.spec.qmin, grid.spec.qmax
    if isinstance(grid.spec.granularity, PerTensor):
        return torch.fake_quantize_per_tensor_affine(x, float(grid.scale), int(grid.zero_point), *ends)
    scale, zero_point = torch.from_numpy(grid.scale), torch.tensor(np.array(grid.zero_point))
    return torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, *ends)


def _forward(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """The reference dialect's one rule; quantize and dequantize, one after the other, must give the same."""
    import torch

    for inputs, x, grid in _inputs(rng, quick, lambda: _spec(rng, GRANULARITIES[granularity])):
        theirs = _torch_fake_quantize(torch.from_numpy(x), grid).numpy()
        ours = {"fake_quantize": fake_quantize(x, grid), "quantize, dequantize": quantize(x, grid).dequantize()}
        yield inputs, ours, dict.fromkeys(ours, theirs)


def _backward(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Case]:
    """The gradient without an observed range, which is torch's: zero where the integer is clipped."""
    import torch

    for inputs, x, grid in _inputs(rng, quick, lambda: _spec(rng, GRANULARITIES[granularity])):
        gradient = rng.standard_normal(x.shape).astype(F32)
        ours: Any = Tensor(x.copy(), requires_grad=True)
        theirs = torch.from_numpy(x.copy()).requires_grad_()
        fake_quantize(ours, grid).backward(Tensor(gradient))
        _torch_fake_quantize(theirs, grid).backward(torch.from_numpy(gradient))
        yield inputs, ours.grad.data, theirs.grad.numpy()


CHECKS = (
    Check("quantize/input to quint8", "torch.quantize_per_tensor", _quantize_input),
    *(
        Check(f"{rule}/{what}{granularity}", oracle.format(granularity.replace(" ", "_")), partial(run, granularity))
        for rule, what, oracle, run in (
            ("quantize", "weight ", "torch.quantize_{}", _quantize_weight),
            ("dequantize", "", "torch.Tensor.dequantize", _dequantize),
            ("fake_quantize", "forward ", "torch.fake_quantize_{}_affine", _forward),
            ("fake_quantize", "backward ", "torch.fake_quantize_{}_affine", _backward),
        )
        for granularity in GRANULARITIES
    ),
    *(
        Check(f"run-time grid/0 to {qmax}", "torch._choose_qparams_per_tensor", partial(_run_time_grid, qmax == 127))
        for qmax in (255, 127)
    ),
)
