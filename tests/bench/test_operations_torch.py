"""Every library that is installed does the work that is asked of it, on every engine."""

from __future__ import annotations

import importlib.util

import pytest

pytest.importorskip("torch")

from minquant.bench.job import WrongResultError, checked
from minquant.bench.operation import present
from minquant.bench.operations import every_operation
from minquant.bench.threads import limited
from tests.bench.tiny import TINY, spoiled

OPERATIONS = [operation for operation in every_operation() if not operation.obstacle()]
PRESENT, MISSING = present([peer for operation in OPERATIONS for peer in operation.peers])
PEERS = [
    pytest.param(operation, peer, id=f"{operation.name}: {peer.name}")
    for operation in OPERATIONS
    for peer in operation.peers
    if peer in PRESENT
]


def test_torch_is_there_on_several_engines():
    names = {peer.name for peer in PRESENT}
    assert {"torch._int_mm", "torch float32", "torch bfloat16", "torch.ao prepare_qat"} <= names
    assert any(name.startswith("torch quantized::linear, ") for name in names)
    assert any(name.startswith("torch quantized::conv2d, ") for name in names)
    for name, why in MISSING.items():
        assert "torch" not in name or why.startswith("this torch was built without ")


@pytest.mark.parametrize(("operation", "peer"), PEERS)
def test_a_peer_is_right(operation, peer):
    for shape in TINY[operation.name]:
        with limited(1):
            checked(peer.name, peer.prepare(operation.draw(shape), 1))


@pytest.mark.parametrize(("operation", "peer"), PEERS)
def test_wrong_data_would_show(operation, peer):
    """The bounds are not so wide that anything would do."""
    with limited(1), pytest.raises(WrongResultError, match="values are wrong"):
        checked(peer.name, spoiled(operation, TINY[operation.name][-1], lambda data: peer.prepare(data, 1)))


def test_threads_reach_torch_and_its_engine_is_given_back():
    import torch

    before, engine = torch.get_num_threads(), torch.backends.quantized.engine
    (linear,) = (operation for operation in OPERATIONS if operation.name == "static Linear")
    with limited(2):
        assert torch.get_num_threads() == 2
        peer = next(peer for peer in PRESENT if peer in linear.peers and peer.engine != engine)
        peer.prepare(linear.draw((3, 5, 7)), 2)
    assert (torch.get_num_threads(), torch.backends.quantized.engine) == (before, engine)


@pytest.mark.skipif(importlib.util.find_spec("threadpoolctl") is None, reason="threadpoolctl is not installed")
def test_threads_reach_numpys_blas():
    from threadpoolctl import threadpool_info

    def counts():
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    with limited(1):
        assert counts() <= {1}
