"""int8 storage: kept grids do not drift, observed ones do; what a file gives back; what is refused."""

from __future__ import annotations

import numpy as np
import pytest

import minquant as mq
from minquant import Tensor, nn, optim
from minquant.quant import PerChannel, QSpec, choose_qparams, dequantize, quantize
from minquant.train.int8_storage import Int8Storage
from minquant.train.mixed_precision import GradScaler, HalfPrecision

F32 = np.float32


def model(seed: int = 0) -> nn.Sequential:
    mq.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))


def state(net: nn.Module) -> dict[str, bytes]:
    return {name: tensor.data.tobytes() for name, tensor in net.state_dict().items()}


def test_integers_and_scales_are_those_of_the_plain_rule():
    net = model()
    storage, spec = Int8Storage(net), QSpec(8, symmetric=True, granularity=PerChannel(0))
    w = net[0].weight.data
    grid = choose_qparams(w.min(1), w.max(1), spec)
    names = dict(storage.named_buffers())
    assert np.array_equal(names["0/weight"].data, quantize(w, grid).int_repr()) and names["0/weight"].dtype == np.int8
    assert np.array_equal(names["0/weight/scale"].data, grid.scale)
    assert np.array_equal(names["0/bias"].data, net[0].bias.data) and "1/running_mean" in names
    storage.decompress_(net)
    assert np.array_equal(net[0].weight.data, dequantize(quantize(w, grid)))
    # two weights of 6·4 and 4·2 integers, 4 + 2 scales, biases, and batch norm's 4 · 4 values and one int64
    assert storage.nbytes == 32 + 4 * 6 + 4 * 6 + 4 * 16 + 8


def test_a_step_below_half_is_lost_in_the_integers_and_kept_in_the_master():
    net = nn.Linear(1, 2, bias=False)
    scale = F32(2 / 255)
    net.weight.data[:] = [[1.0], [50 * scale]]  # one scale a row; the second gets the grid of amax 1 below
    storage = Int8Storage(net)
    scales = storage._buffers["weight/scale"]
    scales.data[:] = scale
    storage.compress(net)
    integers, master = storage._buffers["weight"], net.weight.data.copy()
    for _ in range(500):  # the integers alone
        storage.decompress_(net)
        net.weight.data[1] += F32(0.001)
        storage.compress(net)
    assert integers.data[1] == 50
    for _ in range(500):  # with a master
        master[1] += F32(0.001)
    assert abs(master[1, 0] / scale - 113.75) < 0.01
    net.weight.data[:] = master
    storage.compress(net)
    assert integers.data[1] == 114


def test_saving_again_and_again_does_not_drift(tmp_path):
    net, path = model(), tmp_path / "storage.safetensors"
    storage = Int8Storage(net)
    mq.save(storage, path)
    storage.decompress_(net)
    first, stored = state(net), state(storage)
    for seed in range(1, 6):
        net = model(seed)  # another process, as it were
        storage = mq.load(path)
        storage.decompress_(net)
        assert state(net) == first
        storage.compress(net)
        assert state(storage) == stored
        mq.save(storage, path)


def test_an_observed_scale_drifts_and_no_integer_tells():
    """Lesson 14's 7.5, 3, -3, 1 at four bits."""
    w, spec, scales = np.array([7.5, 3, -3, 1], F32), QSpec(4, symmetric=True), []
    for _ in range(6):
        grid = choose_qparams(w.min(), w.max(), spec)
        stored = quantize(w, grid)
        assert stored.int_repr().tolist() == [7, 3, -3, 1]
        scales.append(round(float(grid.scale), 3))
        w = dequantize(stored)
    assert scales == [1.0, 0.933, 0.871, 0.813, 0.759, 0.708] and round(float(w[0]), 2) == 4.96


def test_outgrown_weights_are_clipped_with_a_warning():
    net = model()
    storage = Int8Storage(net)
    net[0].weight.data[0, 0] = 2 * np.abs(net[0].weight.data[0]).max()
    with pytest.warns(UserWarning, match=r"1 of 24 values of '0.weight' have outgrown the grid.*Int8Storage\(model\)"):
        storage.compress(net)
    assert storage._buffers["0/weight"].data[0, 0] == 127


def test_amax_itself_is_no_warning():
    net = nn.Linear(1, 1000, bias=False)
    net.weight.data[:] = np.random.default_rng(0).uniform(0.1, 10, (1000, 1)).astype(F32)  # 78% round to 128
    assert (Int8Storage(net)._buffers["weight"].data == 127).all()


def test_a_tied_weight_is_stored_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert Int8Storage(net).nbytes == 9 + 12


def test_another_model_is_refused_and_left_alone():
    storage, other = Int8Storage(model()), nn.Sequential(nn.Linear(5, 4))
    before = state(other)
    for call in (storage.decompress_, storage.compress):
        with pytest.raises(ValueError, match=r"0/weight: stored \(4, 6\), the model's \(4, 5\)\n  1/bias"):
            call(other)
    assert state(other) == before
    net = model()
    net[0].weight.data[0, 0] = np.inf
    for call in (Int8Storage, storage.compress):
        with pytest.raises(ValueError, match="0.weight"):
            call(net)


def test_the_whole_round():
    """int8 on disk, float16 to compute, float32 to update, int8 again."""
    net = model()
    storage = Int8Storage(net)
    storage.decompress_(net)
    half, scaler, optimizer = HalfPrecision(net), GradScaler(), optim.Adam(net.parameters(), lr=0.003)
    x = np.random.default_rng(0).standard_normal((16, 6)).astype(F32)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.MSELoss()(half(x), Tensor(x[:, :2] * F32(0.1)))
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    scale = storage._buffers["0/weight/scale"].data.copy()
    with pytest.warns(UserWarning, match="outgrown"):
        storage.compress(net)
    assert losses[-1] < losses[0] and np.array_equal(storage._buffers["0/weight/scale"].data, scale)
