"""Every library that is installed computes the product that is asked of it, on every engine."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

pytest.importorskip("torch")

from minquant.bench import peers
from minquant.bench.operands import Job, Operands, WrongResultError, checked, operands
from minquant.bench.threads import limited

PRESENT, MISSING = peers.present()
SHAPES = [(1, 1, 1), (3, 5, 7), (16, 640, 33)]


def test_torch_is_there_on_several_engines():
    names = {peer.name for peer in PRESENT}
    assert {"torch._int_mm", "torch float32", "torch bfloat16"} <= names
    assert any(name.startswith("torch quantized::linear, ") for name in names)
    for name, why in MISSING.items():
        assert "torch" not in name or why.startswith("this torch was built without ")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("peer", PRESENT, ids=lambda peer: peer.name)
def test_a_peer_is_right(peer, shape):
    with limited(1):
        checked(peer.name, peer.prepare(operands(shape, peer.left), 1))


@pytest.mark.parametrize("peer", PRESENT, ids=lambda peer: peer.name)
def test_a_wrong_weight_would_show(peer):
    """The bounds are not so wide that anything would do."""
    right = operands((16, 640, 33), peer.left)
    b = right.b.copy()
    b[:, 5] = np.where(b[:, 5] > 0, b[:, 5] - 1, b[:, 5] + 1)
    with limited(1):
        theirs = peer.prepare(Operands(right.a, b), 1)
        expected = peer.prepare(right, 1)
        with pytest.raises(WrongResultError, match="values are wrong"):
            checked(peer.name, Job(theirs.call, theirs.values, expected.expected, expected.bound))


def test_threads_reach_torch_and_its_engine_is_given_back():
    import torch

    before, engine = torch.get_num_threads(), torch.backends.quantized.engine
    with limited(2):
        assert torch.get_num_threads() == 2
        peer = next(peer for peer in PRESENT if peer.engine and peer.engine != engine)
        peer.prepare(operands((3, 5, 7), "uint8"), 2)
    assert (torch.get_num_threads(), torch.backends.quantized.engine) == (before, engine)


@pytest.mark.skipif(importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed")
def test_threads_reach_numpys_blas():
    from threadpoolctl import threadpool_info

    def counts():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with limited(1):
        assert counts() <= {1}
