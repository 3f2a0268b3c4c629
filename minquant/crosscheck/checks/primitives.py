"""quantize, dequantize, fake_quantize and the run-time grid, against torch's own operators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor
from minquant.quant import QSpec, QTensor, choose_qparams, fake_quantize, quantize
from minquant.quant.dialects import get_dialect
from minquant.quant.dialects.fbgemm_grid import fbgemm_qparams

from ..flat import GRANULARITIES, flat_grid, grid_of
from ..inputs import KINDS, UINT8, near_ties, values
from ..suite import Check, Inputs

__all__ = ["CHECKS"]

F32 = np.float32


def _draw(spec_of: Callable[[np.random.Generator], QSpec], rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Values (C, N), many near ties, at times none, a gradient, and a grid that is too narrow half of the time."""
    for i in range(40 if quick else 300):
        spec, size = spec_of(rng), 80 if i % 4 == 3 else 8
        x = values(rng, (int(rng.integers(1, size)), int(rng.integers(1, size))), KINDS[i % len(KINDS)])
        low, high = spec.granularity.min_max(x)
        narrow = rng.uniform(0.2, 1, np.shape(low)).astype(F32) if rng.random() < 0.5 else F32(1)
        grid = choose_qparams(low * narrow, high * narrow, spec)
        x = near_ties(rng, x, grid)[:, : 0 if i % 20 == 19 else None]
        yield {"kind": KINDS[i % len(KINDS)], "x": x, **flat_grid(grid)}


def _with_gradient(draw: Any, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for inputs in draw(rng, quick):
        yield {**inputs, "gradient": rng.standard_normal(inputs["x"].shape).astype(F32)}


def _quantized(granularity: str, draw: Any, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for inputs in draw(rng, quick):
        yield {**inputs, "q": quantize(inputs["x"], grid_of(inputs, granularity)).int_repr().copy()}


def _input_spec(rng: np.random.Generator) -> QSpec:
    return UINT8


def _weight_spec(granularity: str, rng: np.random.Generator) -> QSpec:
    """Symmetric int8, on which all rounding rules agree."""
    return QSpec(symmetric=True, granularity=GRANULARITIES[granularity])


def _byte_spec(granularity: str, rng: np.random.Generator) -> QSpec:
    return QSpec(8, bool(rng.random() < 0.5), granularity=GRANULARITIES[granularity])


def _any_spec(granularity: str, rng: np.random.Generator) -> QSpec:
    signed = bool(rng.random() < 0.5)
    return QSpec(int(rng.choice([2, 4, 8, 8])), signed, bool(signed and rng.random() < 0.3), GRANULARITIES[granularity])


# ---- quantize and dequantize -----------------------------------------------------------------------------------------


def _our_input(inputs: Inputs) -> np.ndarray:
    """Where a model's input enters; all of torch's engines share the rule."""
    return get_dialect("x86").quantize(inputs["x"], grid_of(inputs, "per tensor")).int_repr()


def _our_quantize(granularity: str, inputs: Inputs) -> np.ndarray:
    return quantize(inputs["x"], grid_of(inputs, granularity)).int_repr()


def _their_quantize(granularity: str, inputs: Inputs) -> np.ndarray:
    import torch

    dtype = torch.qint8 if inputs["signed"] else torch.quint8
    x, grid = torch.from_numpy(inputs["x"]), _torch_grid(inputs)
    if granularity == "per tensor":
        return torch.quantize_per_tensor(x, *grid, dtype).int_repr().numpy()
    return torch.quantize_per_channel(x, *grid, 0, dtype).int_repr().numpy()


def _torch_grid(inputs: Inputs) -> tuple[Any, Any]:
    """Scale and zero point: numbers for a tensor, tensors for its channels."""
    import torch

    if inputs["scale"].ndim:
        return torch.from_numpy(inputs["scale"]), torch.from_numpy(inputs["zero_point"])
    return float(inputs["scale"]), int(inputs["zero_point"])


def _our_dequantize(granularity: str, inputs: Inputs) -> np.ndarray:
    return QTensor(inputs["q"], grid_of(inputs, granularity)).dequantize()


def _their_dequantize(granularity: str, inputs: Inputs) -> np.ndarray:
    import torch

    q, grid = torch.from_numpy(inputs["q"]), _torch_grid(inputs)
    if granularity == "per tensor":
        return torch._make_per_tensor_quantized_tensor(q, *grid).dequantize().numpy()
    return torch._make_per_channel_quantized_tensor(q, *grid, 0).dequantize().numpy()


# ---- the grid of an input at run time --------------------------------------------------------------------------------


def _vectors(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for i in range(300 if quick else 5000):
        yield {"x": values(rng, (int(rng.integers(1, 40)),), KINDS[i % len(KINDS)])}


def _our_run_time_grid(qmax: int, inputs: Inputs) -> np.ndarray:
    return np.array(fbgemm_qparams(inputs["x"].min(), inputs["x"].max(), 0, qmax))


def _their_run_time_grid(qmax: int, inputs: Inputs) -> np.ndarray:
    import torch

    return np.array(torch._choose_qparams_per_tensor(torch.from_numpy(inputs["x"]), qmax == 127))


# ---- fake_quantize ---------------------------------------------------------------------------------------------------


def _our_forward(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    """The reference dialect's one rule; quantize and dequantize, one after the other, must give the same."""
    x, grid = inputs["x"], grid_of(inputs, granularity)
    y: Any = fake_quantize(x, grid)
    return {"fake_quantize": y, "quantize, dequantize": quantize(x, grid).dequantize()}


def _torch_fake_quantize(granularity: str, x: Any, inputs: Inputs) -> Any:
    import torch

    spec = grid_of(inputs, granularity).spec
    if granularity == "per tensor":
        return torch.fake_quantize_per_tensor_affine(x, *_torch_grid(inputs), spec.qmin, spec.qmax)
    return torch.fake_quantize_per_channel_affine(x, *_torch_grid(inputs), 0, spec.qmin, spec.qmax)


def _their_forward(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    y = _torch_fake_quantize(granularity, torch.from_numpy(inputs["x"]), inputs).numpy()
    return {"fake_quantize": y, "quantize, dequantize": y}


def _our_backward(granularity: str, inputs: Inputs) -> np.ndarray:
    """The gradient without an observed range, which is torch's: zero where the integer is clipped."""
    x: Any = Tensor(inputs["x"].copy(), requires_grad=True)
    fake_quantize(x, grid_of(inputs, granularity)).backward(Tensor(inputs["gradient"]))
    return x.grad.data


def _their_backward(granularity: str, inputs: Inputs) -> np.ndarray:
    import torch

    x = torch.from_numpy(inputs["x"].copy()).requires_grad_()
    _torch_fake_quantize(granularity, x, inputs).backward(torch.from_numpy(inputs["gradient"]))
    return x.grad.numpy()


def _checks(granularity: str) -> Iterator[Check]:
    name = granularity.replace(" ", "_")

    def draw(spec_of: Any) -> Any:
        return partial(_draw, partial(spec_of, granularity))

    def sides(ours: Any, theirs: Any) -> tuple[Any, Any]:
        return partial(ours, granularity), partial(theirs, granularity)

    yield Check(
        f"quantize/weight {granularity}",
        f"torch.quantize_{name}",
        draw(_weight_spec),
        *sides(_our_quantize, _their_quantize),
    )
    yield Check(
        f"dequantize/{granularity}",
        "torch.Tensor.dequantize",
        partial(_quantized, granularity, draw(_byte_spec)),
        *sides(_our_dequantize, _their_dequantize),
    )
    fake = f"torch.fake_quantize_{name}_affine"
    yield Check(f"fake_quantize/forward {granularity}", fake, draw(_any_spec), *sides(_our_forward, _their_forward))
    yield Check(
        f"fake_quantize/backward {granularity}",
        fake,
        partial(_with_gradient, draw(_any_spec)),
        *sides(_our_backward, _their_backward),
    )


CHECKS = (
    Check(
        "quantize/input to quint8",
        "torch.quantize_per_tensor",
        partial(_draw, _input_spec),
        _our_input,
        partial(_their_quantize, "per tensor"),
    ),
    *_checks("per tensor"),
    *_checks("per channel"),
    *(
        Check(
            f"run-time grid/0 to {qmax}",
            "torch._choose_qparams_per_tensor",
            _vectors,
            partial(_our_run_time_grid, qmax),
            partial(_their_run_time_grid, qmax),
        )
        for qmax in (255, 127)
    ),
)
