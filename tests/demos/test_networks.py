"""Random networks have every kind of layer, and prepared equals converted on all of them."""

from __future__ import annotations

import numpy as np

from minquant import nn
from minquant.demos.chains import prepared_vs_converted
from minquant.demos.networks import Operation, random_network
from minquant.quant import fused
from minquant.quant.between import BETWEEN_GRIDS


def test_every_kind_of_layer_occurs():
    rng = np.random.default_rng(0)
    networks = [random_network(rng)[0] for _ in range(200)]
    found = {type(m) for network in networks for m in network.modules()}
    assert found >= {nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding, *fused.FUSED.values(), *BETWEEN_GRIDS}
    assert found >= {nn.FloatFunctional, nn.ReLU, nn.MaxPool2d, nn.Dropout, nn.Flatten, nn.QuantStub, nn.DeQuantStub}
    names = {m.name for network in networks for m in network.modules() if isinstance(m, Operation)}
    assert names == {"add", "add_relu", "mul", "add_scalar", "mul_scalar", "cat"}


def test_prepared_equals_converted():
    """`python -m minquant.demos.chains` does the same with 200 networks and more than a million values."""
    counted = prepared_vs_converted(models=40, seed=2, values=1_000)
    assert counted["mismatches"] == 0
    assert counted["values"] >= 40_000
