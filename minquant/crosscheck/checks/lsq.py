"""Learned scales and zero points: values and all three gradients, and whole phases of observing and learning."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

import minquant.quant as quant
from minquant import Tensor
from minquant.quant import LearnableFakeQuantize, PerChannel, PerTensor, QParams, QSpec

from ..flat import numbered, series
from ..inputs import KINDS, near_ties, values
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

F32 = np.float32
RANGES = ((0, 255), (-128, 127), (0, 15), (-8, 7), (-2, 1))
SMALLEST_SCALE = 2.0**-23


def _shape(rng: np.random.Generator, i: int, at_least: int) -> tuple[int, ...]:
    """2 to 4 axes, small ones first."""
    sizes = (3, 3, 3, 3) if i < 8 else (40, 70, 6, 5) if i % 4 else (3000, 9, 2, 2)
    axes = int(rng.integers(2, 5))
    return tuple(int(rng.integers(at_least, size + 1)) for size in sizes[:axes])


def _limits(rng: np.random.Generator) -> dict[str, int]:
    low, high = RANGES[int(rng.integers(len(RANGES)))]
    return {"quant_min": low, "quant_max": high}


def _spec(inputs: Inputs, axis: int | None) -> QSpec:
    low, high = inputs["quant_min"], inputs["quant_max"]
    return QSpec(8, low < 0, False, PerTensor() if axis is None else PerChannel(axis), low, high)


def _dtype(inputs: Inputs) -> str:
    return "qint8" if inputs["quant_min"] < 0 else "quint8"


# ---- one step: the value and its gradients ---------------------------------------------------------------------------


def _draw_step(axis: int | None, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """X near ties of its grid, and zero points between, on and beyond the integers."""
    for i in range(24 if quick else 400):
        kind = KINDS[i % len(KINDS)]
        x = values(rng, _shape(rng, i, at_least=1), kind)
        limits = _limits(rng)
        spec = _spec(limits, axis)
        low, high = spec.granularity.min_max(x)
        step = (np.maximum(high, 0) - np.minimum(low, 0)) / F32(spec.qmax - spec.qmin)
        scale = np.maximum(step * F32(rng.uniform(0.2, 2)), F32(SMALLEST_SCALE))
        choices = [0, 0.5, 1.5, -2.5, -3, spec.qmin, spec.qmax, rng.uniform(spec.qmin - 3, spec.qmax + 3)]
        zero_point = np.asarray(rng.choice(choices, scale.shape), F32)
        on_grid = np.clip(np.rint(zero_point), spec.qmin, spec.qmax).astype(np.int32)
        yield {
            "x": near_ties(rng, x, QParams(scale, on_grid, spec)),
            "gradient": rng.standard_normal(x.shape).astype(F32),
            "scale": np.atleast_1d(scale),
            "zero_point": np.atleast_1d(zero_point),
            **limits,
        }


def _our_step(axis: int | None, scaled: bool, inputs: Inputs) -> dict[str, np.ndarray]:
    fake_quant = _ours(inputs, axis, use_grad_scaling=scaled).enable_param_learning()
    fake_quant.scale.data, fake_quant.zero_point.data = inputs["scale"], inputs["zero_point"]
    x = Tensor(inputs["x"], requires_grad=True)
    y = fake_quant(x)
    y.backward(Tensor(inputs["gradient"]))
    gradients: Any = (x.grad, fake_quant.scale.grad, fake_quant.zero_point.grad)
    return {"y": y.data} | {name: grad.data for name, grad in zip(("dx", "ds", "dz"), gradients, strict=True)}


def _ours(inputs: Inputs, axis: int | None, **options: Any) -> LearnableFakeQuantize:
    kind = {"dtype": _dtype(inputs), "quant_min": inputs["quant_min"], "quant_max": inputs["quant_max"], **options}
    if axis is None:
        return LearnableFakeQuantize(quant.MinMaxObserver, qscheme="per_tensor_affine", **kind)
    return LearnableFakeQuantize(quant.PerChannelMinMaxObserver, qscheme="per_channel_affine", ch_axis=axis, **kind)


def _their_step(axis: int | None, scaled: bool, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    tensors = [torch.from_numpy(inputs[name].copy()).requires_grad_() for name in ("x", "scale", "zero_point")]
    limits = inputs["quant_min"], inputs["quant_max"]
    factor = 1.0 / (inputs["x"].size * inputs["quant_max"]) ** 0.5 if scaled else 1.0
    if axis is None:
        y = torch._fake_quantize_learnable_per_tensor_affine(*tensors, *limits, factor)
    else:
        y = torch._fake_quantize_learnable_per_channel_affine(*tensors, axis, *limits, factor)
    y.backward(torch.from_numpy(inputs["gradient"]))
    gradients = zip(("dx", "ds", "dz"), tensors, strict=True)
    return {"y": y.detach().numpy()} | {name: tensor.grad.numpy() for name, tensor in gradients}


# ---- the module: three batches observed, three learned ---------------------------------------------------------------


def _draw_phases(scheme: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Six batches with the gradient that comes in."""
    for i in range(10 if quick else 100):
        shape = _shape(rng, i, at_least=1)
        limits = {"quant_min": -128, "quant_max": 127} if "symmetric" in scheme else _limits(rng)
        kind = KINDS[i % len(KINDS)]
        batches = [values(rng, shape, kind) for _ in range(6)]
        yield {**numbered("x", batches), "gradient": rng.standard_normal(shape).astype(F32), **limits}


def _our_phases(scheme: str, inputs: Inputs) -> dict[str, np.ndarray]:
    return _phases(scheme, inputs, LearnableFakeQuantize, quant, Tensor, {"qscheme": scheme, "dtype": _dtype(inputs)})


def _their_phases(scheme: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch
    import torch.ao.quantization as tq
    from torch.ao.quantization._learnable_fake_quantize import _LearnableFakeQuantize

    kind = {"qscheme": getattr(torch, scheme), "dtype": getattr(torch, _dtype(inputs))}
    if "channel" in scheme:
        kind["channel_len"] = inputs["x 0"].shape[0]
    return _phases(scheme, inputs, _LearnableFakeQuantize, tq, torch.from_numpy, kind)


def _phases(
    scheme: str, inputs: Inputs, module: Any, observers: Any, wrap: Any, kind: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Values, scale, zero point and gradients of either side."""
    observer = getattr(observers, f"MovingAverage{'PerChannel' * ('channel' in scheme)}MinMaxObserver")
    limits = {"quant_min": inputs["quant_min"], "quant_max": inputs["quant_max"]}
    fake_quant = module(observer, use_grad_scaling=True, averaging_constant=0.5, **limits, **kind)
    learned = ("scale",) if "symmetric" in scheme else ("scale", "zero_point")
    found = {}
    for i, batch in enumerate(series(inputs, "x")):
        if i == 3:
            fake_quant.enable_param_learning()
        y = fake_quant(wrap(batch))
        found[f"y {i}"] = y.detach().numpy().copy()
        if i >= 3:
            y.backward(wrap(inputs["gradient"]))
            for name in learned:
                _move(getattr(fake_quant, name), f"{name} {i}", wrap, found)
    return found


def _move(parameter: Any, name: str, wrap: Any, found: dict[str, np.ndarray]) -> None:
    """Moves one parameter against its gradient, a scale by one percent and a zero point by a third of a step."""
    value, gradient = parameter.detach().numpy().copy(), parameter.grad.numpy().copy()
    found[f"d{name}"] = gradient
    found[name] = value - np.sign(gradient) * (value * F32(0.01) if name.startswith("scale") else F32(1 / 3))
    parameter.data[:] = wrap(found[name]).data
    parameter.grad = None


CHECKS = (
    *(
        Check(
            f"lsq/{'per tensor' if axis is None else f'per channel, axis {axis}'}{', scaled gradients' * scaled}",
            f"torch._fake_quantize_learnable_per_{'tensor' if axis is None else 'channel'}_affine",
            partial(_draw_step, axis),
            partial(_our_step, axis, scaled),
            partial(_their_step, axis, scaled),
        )
        for axis in (None, 0, 1)
        for scaled in (False, True)
    ),
    *(
        Check(
            f"lsq/phases {scheme.replace('_', ' ')}",
            "torch.ao.quantization._learnable_fake_quantize._LearnableFakeQuantize",
            partial(_draw_phases, scheme),
            partial(_our_phases, scheme),
            partial(_their_phases, scheme),
        )
        for scheme in ("per_tensor_affine", "per_tensor_symmetric", "per_channel_affine", "per_channel_symmetric")
    ),
)
