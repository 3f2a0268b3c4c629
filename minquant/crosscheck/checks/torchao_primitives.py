"""torchao's own rules: mappings, smallest scales, gradients, and tinygemm's real zero point.

None is asked about a tensor without elements, which torchao does not take.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from minquant import Tensor
from minquant.quant import PerChannel, PerGroup, PerTensor, PerToken, QParams, QSpec, quantize
from minquant.quant.dialects import tinygemm, torchao

from ..inputs import KINDS, near_ties, values
from ..quiet import import_torchao
from ..suite import Check, Inputs

__all__ = ["CHECKS", "MAPPINGS", "PRIMITIVES", "blocks"]

F32 = np.float32
PRIMITIVES = "torchao.quantization.quant_primitives"
GRANULARITIES = ("per tensor", "per channel", "per group", "per token")
NO_CLIPPING = "symmetric_no_clipping_error"
MAPPINGS = {"symmetric": "SYMMETRIC", NO_CLIPPING: "SYMMETRIC_NO_CLIPPING_ERR", "asymmetric": "ASYMMETRIC"}


def blocks(rng: np.random.Generator, i: int) -> tuple[tuple[int, int], int]:
    """(R, K) and a group size that divides K; small ones first."""
    group = int(rng.choice([2, 4] if i < 12 else [2, 4, 16, 32]))
    rows, groups = (int(rng.integers(1, 4 if i < 12 else 20)) for _ in range(2))
    return (rows, group * groups), group


def _draw(mapping: str, granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """Values near ties of their grid, and a grid of 2 to 8 bits, one time in four without all of its integers."""
    for i in range(24 if quick else 300):
        shape, group = blocks(rng, i)
        kind = {"kind": KINDS[i % len(KINDS)], "mapping": mapping, "group": group, **_integers(rng, mapping)}
        x = values(rng, shape, kind["kind"])
        grid = torchao.choose_qparams(x, _spec(kind, granularity), mapping)
        yield {**kind, "x": near_ties(rng, x, grid), "gradient": rng.standard_normal(shape).astype(F32)}


def _integers(rng: np.random.Generator, mapping: str) -> dict[str, Any]:
    spec = QSpec(int(rng.integers(2, 9)), bool(mapping == NO_CLIPPING or rng.random() < 0.7))
    low, high = spec.qmin, spec.qmax
    if rng.random() < 0.25:
        low, high = low + int(rng.integers(0, 1 - low // 2)), high - int(rng.integers(0, max(high // 2, 1)))
    return {"bits": spec.bits, "signed": spec.signed, "qmin": low, "qmax": high}


def _spec(inputs: Inputs, granularity: str) -> QSpec:
    of: Any = {
        "per tensor": PerTensor(),
        "per channel": PerChannel(),
        "per group": PerGroup(inputs["group"]),
        "per token": PerToken(),
    }[granularity]
    symmetric = inputs["mapping"] != "asymmetric"
    return QSpec(inputs["bits"], inputs["signed"], symmetric, of, inputs["qmin"], inputs["qmax"])


def _block(inputs: Inputs, granularity: str) -> tuple[int, ...]:
    shape = inputs["x"].shape
    return {"per tensor": shape, "per group": (1, inputs["group"])}.get(granularity, (1, shape[1]))


# ---- from values to a grid, to integers, and back --------------------------------------------------------------------


def _our_integers(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    grid = torchao.choose_qparams(inputs["x"], _spec(inputs, granularity), inputs["mapping"])
    q = quantize(inputs["x"], grid)
    return {"scale": grid.scale, "zero_point": grid.zero_point, "q": q.int_repr(), "real": q.dequantize()}


def _their_integers(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    ao, x, block = import_torchao(PRIMITIVES), torch.from_numpy(inputs["x"]), _block(inputs, granularity)
    dtype, ends = _their_integer_type(inputs)
    kind = ao.MappingType[MAPPINGS[inputs["mapping"]]]
    scale, zero_point = ao.choose_qparams_affine(x, kind, block, dtype, *ends)
    q = ao.quantize_affine(x, block, scale, zero_point, dtype, *ends)
    real = ao.dequantize_affine(q, block, scale, zero_point, dtype, *ends)
    shape = _spec(inputs, granularity).granularity.qparams_shape(x.shape)
    grid = {"scale": scale.reshape(shape).numpy(), "zero_point": zero_point.reshape(shape).numpy()}
    return grid | {"q": q.numpy(), "real": real.numpy()}


def _their_integer_type(inputs: Inputs) -> tuple[Any, tuple[int, int]]:
    import torch

    return torch.int8 if inputs["signed"] else torch.uint8, (inputs["qmin"], inputs["qmax"])


# ---- fake quantization, forward and backward -------------------------------------------------------------------------


def _draw_narrow(mapping: str, granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """The same on a grid of half the range, so that some values are clipped."""
    for inputs in _draw(mapping, granularity, rng, quick):
        grid = torchao.choose_qparams(inputs["x"], _spec(inputs, granularity), mapping)
        yield {**inputs, "scale": np.maximum(grid.scale / F32(2), torchao.TINY), "zero_point": grid.zero_point.copy()}


def _our_fake_quantize(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    grid = QParams(inputs["scale"], inputs["zero_point"], _spec(inputs, granularity))
    return _steps(Tensor(inputs["x"], requires_grad=True), lambda x: torchao.fake_quantize(x, grid), Tensor, inputs)


def _steps(x: Any, fake_quantize: Any, wrap: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    y = fake_quantize(x)
    y.backward(wrap(inputs["gradient"]))
    return {"y": y.detach().numpy(), "dx": x.grad.numpy()}


def _their_fake_quantize(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    ao, block = import_torchao(PRIMITIVES), _block(inputs, granularity)
    grid = [torch.from_numpy(np.array(inputs[name])) for name in ("scale", "zero_point")]
    dtype, ends = _their_integer_type(inputs)
    return _steps(
        torch.from_numpy(inputs["x"].copy()).requires_grad_(),
        lambda x: ao._fake_quantize_affine(x, block, *grid, dtype, *ends),
        torch.from_numpy,
        inputs,
    )


# ---- the fake quantizer of quantization-aware training ---------------------------------------------------------------


def _draw_qat(granularity: str, rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    """int8 per token, as for activations; else symmetric, 2 to 8 bits, as for weights."""
    for inputs in _draw("asymmetric" if granularity == "per token" else "symmetric", granularity, rng, quick):
        spec = QSpec(8 if granularity == "per token" else inputs["bits"])
        yield {**inputs, "bits": spec.bits, "signed": True, "qmin": spec.qmin, "qmax": spec.qmax}


def _our_qat(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    grid = torchao.choose_qparams(inputs["x"], _spec(inputs, granularity))
    return _steps(Tensor(inputs["x"], requires_grad=True), lambda x: torchao.fake_quantize(x, grid), Tensor, inputs)


def _their_qat(granularity: str, inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    qat, name = import_torchao("torchao.quantization.qat"), granularity.replace(" ", "_")
    symmetric = {"is_symmetric": granularity != "per token"}
    kind = {"group_size": inputs["group"]} if name == "per_group" else {"granularity": name}
    config = qat.IntxFakeQuantizeConfig(getattr(torch, f"int{inputs['bits']}"), **kind, **symmetric)
    x = torch.from_numpy(inputs["x"].copy()).requires_grad_()
    return _steps(x, qat.IntxFakeQuantizer(config), torch.from_numpy, inputs)


# ---- tinygemm: a zero point in real values ---------------------------------------------------------------------------


def _draw_tinygemm(rng: np.random.Generator, quick: bool) -> Iterator[Inputs]:
    for inputs in _draw("asymmetric", "per group", rng, quick):
        yield {"x": inputs["x"], "group": inputs["group"], "bits": inputs["bits"]}


def _our_tinygemm(inputs: Inputs) -> dict[str, np.ndarray]:
    spec = QSpec(inputs["bits"], signed=False, granularity=PerGroup(inputs["group"]))
    grid = tinygemm.choose_qparams(inputs["x"], spec)
    q = tinygemm.quantize(inputs["x"], grid)
    return {"scale": grid.scale, "zero_point": grid.zero_point, "q": q, "real": tinygemm.dequantize(q, grid)}


def _their_tinygemm(inputs: Inputs) -> dict[str, np.ndarray]:
    import torch

    ao, utils = import_torchao(PRIMITIVES), import_torchao("torchao.quantization.utils")
    w, block, ends = torch.from_numpy(inputs["x"]), (1, inputs["group"]), (0, 2 ** inputs["bits"] - 1)
    scale, zero_point = utils.get_groupwise_affine_qparams(w, inputs["bits"], inputs["group"], torch.float32)
    q = ao._quantize_affine_tinygemm(w, block, scale, zero_point, torch.uint8, *ends)
    real = ao._dequantize_affine_tinygemm(q, block, scale, zero_point, torch.uint8, *ends)
    return {"scale": scale.numpy(), "zero_point": zero_point.numpy(), "q": q.numpy(), "real": real.numpy()}


CHECKS = (
    *(
        Check(
            f"torchao/{mapping.replace('_', ' ')} {granularity}",
            f"{PRIMITIVES}.choose_qparams_affine",
            partial(_draw, mapping, granularity),
            partial(_our_integers, granularity),
            partial(_their_integers, granularity),
        )
        for mapping in MAPPINGS
        for granularity in GRANULARITIES
    ),
    *(
        Check(
            f"torchao/fake_quantize {mapping.replace('_', ' ')} {granularity}",
            f"{PRIMITIVES}._fake_quantize_affine",
            partial(_draw_narrow, mapping, granularity),
            partial(_our_fake_quantize, granularity),
            partial(_their_fake_quantize, granularity),
        )
        for mapping in MAPPINGS
        for granularity in GRANULARITIES
    ),
    *(
        Check(
            f"torchao/IntxFakeQuantizer {granularity}",
            "torchao.quantization.qat.IntxFakeQuantizer",
            partial(_draw_qat, granularity),
            partial(_our_qat, granularity),
            partial(_their_qat, granularity),
        )
        for granularity in ("per channel", "per group", "per token")
    ),
    Check(
        "torchao/tinygemm", f"{PRIMITIVES}._quantize_affine_tinygemm", _draw_tinygemm, _our_tinygemm, _their_tinygemm
    ),
)
