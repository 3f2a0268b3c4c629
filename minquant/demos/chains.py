"""Random networks, trained with quantization in the loop: is the prepared model equal to the converted one?

``python -m minquant.demos.chains`` trains 200 networks with every kind of layer and compares over a million values.
"""

from __future__ import annotations

import math

import numpy as np

from minquant import manual_seed, no_grad, optim
from minquant.quant import convert, get_default_qat_qconfig, prepare_qat

from .networks import random_network

__all__ = ["prepared_vs_converted"]

BITS = (8, 4, 2)
PER_NETWORK = 5_200


def prepared_vs_converted(models: int = 45, steps: int = 3, seed: int = 0, values: int = 4_000) -> dict[str, int]:
    """Trains random networks at every pair of 8, 4 and 2 bits and compares each, in eval, with its converted self.

    Args:
        models: how many networks.
        steps: training steps of each.
        seed: of networks and data.
        values: output values to compare of each network, at least.

    Returns:
        ``{"values", "mismatches"}``: output values compared, and how many of them differ in any bit.
    """
    rng = np.random.default_rng(seed)
    manual_seed(seed)
    compared = mismatches = 0
    for i in range(models):
        weight_bits, act_bits = BITS[i % 3], BITS[i // 3 % 3]
        model, draw = random_network(rng)
        prepared = prepare_qat(model.train(), get_default_qat_qconfig(weight_bits=weight_bits, act_bits=act_bits))
        optimizer = optim.Adam(prepared.parameters(), lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (prepared(draw(rng, 16, 1)) ** 2).mean()
            loss.backward()
            optimizer.step()
        prepared.eval()
        with no_grad():
            features = prepared(draw(rng, 1, 1)).shape[-1]
            x = draw(rng, math.ceil(values / features), 2)
            before = prepared(x).data
        after = convert(prepared)(x).data
        compared += before.size
        mismatches += int((before.view(np.int32) != after.view(np.int32)).sum())
    return {"values": compared, "mismatches": mismatches}


if __name__ == "__main__":
    counted = prepared_vs_converted(models=200, values=PER_NETWORK)
    print(f"prepared against converted: {counted['mismatches']:,} of {counted['values']:,} values differ")
    raise SystemExit(counted["mismatches"] > 0)
