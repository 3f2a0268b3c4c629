"""Random networks, trained with quantization in the loop: is the prepared model equal to the converted one?"""

from __future__ import annotations

import numpy as np

from minquant import Tensor, manual_seed, nn, no_grad, optim
from minquant.quant import LinearReLU, QuantWrapper, convert, get_default_qat_qconfig, prepare_qat

__all__ = ["prepared_vs_converted", "random_chain"]

BITS = (8, 4, 2)


def random_chain(rng: np.random.Generator) -> tuple[nn.Module, int]:
    """One to four layers of random width, with or without bias, relu (fused or not) and flatten; input features."""
    widths = rng.integers(1, 40, size=rng.integers(2, 6))
    layers: list[nn.Module] = []
    for n_in, n_out in zip(widths[:-1], widths[1:], strict=True):
        linear = nn.Linear(int(n_in), int(n_out), bias=bool(rng.integers(2)))
        blocks: list[list[nn.Module]] = [
            [linear],
            [linear, nn.ReLU()],
            [LinearReLU(linear, nn.ReLU())],
            [linear, nn.Flatten()],
        ]
        layers += blocks[rng.integers(4)]
    return QuantWrapper(nn.Sequential(*layers)), int(widths[0])


def prepared_vs_converted(models: int = 45, steps: int = 3, seed: int = 0) -> dict[str, int]:
    """Trains random chains at every pair of 8, 4 and 2 bits and compares each, in eval, with its converted self.

    Args:
        models: how many networks.
        steps: training steps of each.
        seed: of networks and data.

    Returns:
        ``{"values", "mismatches"}``: output values compared, and how many of them differ in any bit.
    """
    rng = np.random.default_rng(seed)
    manual_seed(seed)
    values = mismatches = 0
    for i in range(models):
        weight_bits, act_bits = BITS[i % 3], BITS[i // 3 % 3]
        model, features = random_chain(rng)
        prepared = prepare_qat(model, get_default_qat_qconfig(weight_bits=weight_bits, act_bits=act_bits))
        optimizer = optim.Adam(prepared.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            x = rng.standard_normal((16, features), dtype=np.float32)
            (prepared(x) ** 2).mean().backward()
            optimizer.step()
        x = 2 * rng.standard_normal((200, features), dtype=np.float32)
        with no_grad():
            before = prepared.eval()(Tensor(x)).data
        after = convert(prepared)(x).data
        values += before.size
        mismatches += int((before.view(np.int32) != after.view(np.int32)).sum())
    return {"values": values, "mismatches": mismatches}
