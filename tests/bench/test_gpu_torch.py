"""The GPU's part of `minquant bench`, on CPU tensors: results, bounds, rows and the figures asked of them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from minquant.bench.figures import reached
from minquant.bench.job import WrongResultError, checked
from minquant.bench.operation import Case, present, select
from minquant.bench.operations import every_operation, gpu
from minquant.bench.run import Bench
from minquant.bench.threads import limited
from tests.bench.tiny import TINY, spoiled

NAMES = [operation.name for operation in gpu.OPERATIONS]
OURS = [(op, variant, shape) for op in gpu.OPERATIONS for variant in op.variants for shape in TINY[op.name]]
PEERS = [(op, peer) for op in gpu.OPERATIONS for peer in present(op.peers)[0] if not peer.name.endswith("compiled")]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")


@pytest.mark.parametrize(("operation", "variant", "shape"), OURS)
def test_minquants_side_is_right(operation, variant, shape):
    checked("minquant", operation.ours(operation.draw(shape), variant))
    with pytest.raises(WrongResultError, match="values are wrong"):
        checked("minquant", spoiled(operation, shape, lambda data: operation.ours(data, variant)))


@pytest.mark.parametrize(("operation", "peer"), PEERS, ids=[f"{op.name}: {peer.name}" for op, peer in PEERS])
def test_a_peer_is_right(operation, peer):
    with limited(1):
        for shape in TINY[operation.name]:
            checked(peer.name, peer.prepare(operation.draw(shape), 1))
        with pytest.raises(WrongResultError, match="values are wrong"):
            checked(peer.name, spoiled(operation, TINY[operation.name][-1], lambda data: peer.prepare(data, 1)))


def test_some_rows_are_compared():
    assert gpu.rows_of(1).tolist() == [0] and gpu.rows_of(3).tolist() == [0, 1, 2]
    rows = gpu.rows_of(8192)
    assert len(rows) == gpu.ROWS and rows[0] == 0 and rows[-1] == 8191


def test_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {op.obstacle() for op in gpu.OPERATIONS} == {"no CUDA device"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert {op.obstacle() for op in gpu.OPERATIONS} == {""}
    assert set(NAMES) < {op.name for op in every_operation()}


@pytest.mark.parametrize("operation", gpu.OPERATIONS, ids=NAMES)
def test_rows_are_as_of_every_operation(operation):
    peers = [peer for op, peer in PEERS if op is operation]
    rows = Bench(peers, seconds=0.05).run(Case(operation, "square", (16, 70, 33), 1))
    assert {row["variant"] for row in rows} == set(operation.variants)
    for row in rows:
        assert row["op"] == operation.name and row["shape"] == [16, 70, 33] and row["threads"] == 1
        assert row["seconds"] > 0 and row["peer_seconds"] > 0 and row["share"] is None
        assert row["speedup"] == pytest.approx(row["peer_seconds"] / row["seconds"], rel=3)


def test_the_figures_that_are_asked_of_a_gpu():
    cases = select(gpu.OPERATIONS, None, [1, 2])
    assert {case.threads for case in cases} == {1}
    (linear,) = (op for op in gpu.OPERATIONS if op.name == "GPU dynamic Linear")
    rows = [
        {"op": linear.name, "shape": [n] * 3, "threads": 1, "seconds": 1.0, "speedup": speedup, "share": None,
         "variant": "per token", "peer": peer, "rounds": 9}
        for n in (1024, 2048, 4096, 8192)
        for peer, speedup in ((f"{gpu.TORCHAO}, float32", 1.2), (f"{gpu.TORCHAO}, bfloat16", 1.1 if n > 1024 else 0.9),
                              (gpu.BFLOAT16_ON_GPU, n / 2048))
    ]  # fmt: skip
    of_torchao, of_bfloat16 = reached(rows, cases)
    assert (of_torchao["reached"], of_torchao["met"], of_torchao["due"]) == (0.9, False, 4)
    assert (of_bfloat16["reached"], of_bfloat16["met"], of_bfloat16["due"]) == (2.0, True, 2)
    assert np.isclose(of_bfloat16["asked"], 1.5)
