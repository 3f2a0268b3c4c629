"""Weights that cannot change are packed once."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from minquant.kernels import Packed, column_sums, int8_matmul, isa, kept, pack_weight
from minquant.quant import QParams, QSpec, QuantizedLinear, quantize

pytestmark = pytest.mark.skipif(isa.chosen().name == "plain", reason="there is nothing to pack for")


def frozen(*shape: int) -> np.ndarray:
    array = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    array.flags.writeable = False
    return array


def test_the_same_view_of_a_frozen_array_is_packed_once():
    b = frozen(20, 30)
    assert pack_weight(b) is pack_weight(b)
    assert pack_weight(b.T) is pack_weight(b.T)
    assert pack_weight(b.T) is not pack_weight(b)
    assert pack_weight(b[:10]) is not pack_weight(b)
    np.testing.assert_array_equal(column_sums(pack_weight(b)), b.sum(axis=0, dtype=np.int32))


def test_what_could_change_is_packed_anew():
    b = np.ones((3, 4), np.int8)
    view = b.T
    view.flags.writeable = False  # its memory is not
    first = pack_weight(view)
    b[:] = 2
    assert pack_weight(view) is not first and pack_weight(b) is not pack_weight(b)
    assert (int8_matmul(np.ones((1, 4), np.uint8), view) == 8).all()


def test_nothing_is_kept_longer_than_the_array():
    b = frozen(5, 6)
    place = id(b)
    pack_weight(b)
    assert place in kept._KEPT
    del b
    gc.collect()
    assert place not in kept._KEPT


def test_a_layer_packs_its_weight_once():
    rng = np.random.default_rng(0)
    weight = quantize(rng.standard_normal((8, 16)).astype(np.float32), QParams(0.02, 0, QSpec(symmetric=True)))
    with pytest.raises(ValueError, match="read-only"):
        weight.storage[0, 0] = 1
    grid = QParams(0.05, 100, QSpec(signed=False))
    layer = QuantizedLinear(weight, None, grid, "reference")
    x = quantize(rng.standard_normal((4, 16)).astype(np.float32), grid)
    first = layer(x).int_repr()
    tables = len(kept._KEPT[id(weight.storage)])
    assert np.array_equal(layer(x).int_repr(), first) and len(kept._KEPT[id(weight.storage)]) == tables == 1
    assert isinstance(pack_weight(weight.int_repr().T), Packed)
