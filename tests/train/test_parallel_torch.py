"""Several processes against one: ranges and weights bit for bit, step by step; and what happens when one dies."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import minquant
from minquant import Tensor, manual_seed, nn
from minquant.lm import Llama, LlamaConfig
from minquant.quant import (
    Int8DynamicActivationInt8WeightConfig,
    LearnableFakeQuantize,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    PerTensor,
    QATConfig,
    QConfig,
    QuantWrapper,
    freeze_bn_stats,
    fuse_modules_qat,
    get_default_qat_qconfig,
    get_default_qconfig,
    prepare,
    prepare_qat,
    quantize_,
)
from minquant.train.balancers import MovingAverageLossBalancer
from minquant.train.config import Config, Saving
from minquant.train.loop import Schedule
from minquant.train.parallel import Processes, ProcessLostError, choose_backend
from minquant.train.recipes import finetune
from minquant.train.shared import refuse_what_needs_the_whole_batch
from tests.train import runs
from tests.train.processes import finish, run, start

ROOT = Path(__file__).parents[2]
F32 = np.float32


# ---- N processes are one ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "world_size", "rows", "steps"),
    [
        ("moving average", 2, 32, 50),
        ("learned", 2, 32, 50),
        ("int4 groups", 2, 4, 50),
        ("static int8", 2, 4, 50),
        ("smallest and largest", 3, 32, 20),  # 10, 11 and 11 rows
        ("moving average", 3, 2, 20),  # none, 1 and 1
    ],
)
def test_a_run_is_that_of_one_process_that_adds_the_same_parts(kind, world_size, rows, steps):
    batches = runs.make_batches(kind, rows)[:steps]
    (losses, state, beside), *others = run(world_size, runs.in_processes, kind, batches)
    ((alone, expected),) = run(1, runs.in_one_process, kind, batches, world_size)
    assert len(losses) == steps and losses[-1] != losses[0]
    assert [name for name in expected if state[name].tobytes() != expected[name].tobytes()] == []
    for _, other, _ in others:
        assert [name for name in state if state[name].tobytes() != other[name].tobytes()] == []
    assert np.abs(np.subtract(losses, alone)).max() <= 1e-14  # sums of N float64 numbers near 2
    # Beside one process that sees the whole batch at once, from the same weights: what rounding lets one compare.
    assert all(equal for equal, _ in beside)
    assert max(difference for _, difference in beside) <= 1e-5


def test_in_float_the_losses_stay_those_of_one_plain_process():
    batches = runs.make_batches("float", 6)
    (losses, state, _), _ = run(2, runs.in_processes, "float", batches)
    ((alone, expected),) = run(1, runs.in_one_process, "float", batches, 1)
    assert np.abs(np.subtract(losses, alone)).max() <= 1e-5
    # AdamW divides by the gradient's size, so that a step may differ by twice lr where the gradient is all rounding.
    for name in expected:
        assert np.abs(state[name] - expected[name]).max() <= 1e-5, name


# ---- sharing ---------------------------------------------------------------------------------------------------------


RANGES = [
    (MovingAverageMinMaxObserver(0.1), [[[1], [1]], [[3], [1]], [[1], [1]], [[1], [3]]], 1, 1.362),
    (MinMaxObserver(), [[[], [-2, 1]], [[5], []]], -2, 5),
    (MovingAverageMinMaxObserver(0.5), [[[], []], [[2], [4]], [[], []], [[], [0]]], 1, 2),
    (MinMaxObserver(), [[[1], [np.nan]]], np.nan, np.nan),
    (PerChannelMinMaxObserver(1), [[[[1, -1]], [[0, 3], [2, -4]]]], [0, -4], [2, 3]),
    (PerChannelMinMaxObserver(1), [[np.zeros((0, 2)), [[0, 3]]]], [0, 3], [0, 3]),
]
"""Observer, batches as [part of rank 0, part of rank 1], and the range."""


def observe(processes: Processes) -> Any:
    model = nn.ModuleList([observer for observer, *_ in RANGES])
    processes.synchronise(model)
    for observer, (_, batches, *_) in zip(model, RANGES, strict=True):
        for parts in batches:
            observer(np.array(parts[processes.rank], F32))
    copied = copy.deepcopy(model)
    shares = all(observer.share_range.__self__ is processes for observer in copied)
    return [(o.min_val.data, o.max_val.data) for o in copied], shares, set(model.state_dict())


def test_the_range_is_that_of_the_whole_batch():
    for found, copy_shares, saved in run(2, observe):
        for (low, high), (observer, _, expected_low, expected_high) in zip(found, RANGES, strict=True):
            np.testing.assert_array_equal(low, np.array(expected_low, F32), repr(observer))
            np.testing.assert_allclose(high, np.array(expected_high, F32), 1e-6, err_msg=repr(observer))
        assert copy_shares
        assert saved == {f"{i}.{name}" for i in range(len(RANGES)) for name in ("eps", "min_val", "max_val")}


def several(processes: Processes) -> dict[str, Any]:
    """What takes no training to see."""
    rank = processes.rank
    shards = {rows: processes.shard(rows) for rows in (1, 2, 3, 7)}
    parameters = [Tensor(np.zeros(2, F32), requires_grad=True) for _ in range(4)]
    parameters[0].grad = Tensor(np.array([rank, 1], F32))
    parameters[1].grad = Tensor(np.array([6, 7], F32)) if rank == 1 else None
    parameters[3].requires_grad = False
    processes.average_gradients(parameters, [0.5, 0.25, 0.25][rank])
    mean = processes.average([1.0, 2.0, np.nan][rank], [0.5, 0.5, 0.0][rank])
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3, bias=rank != 2))
    errors = [
        message(processes.check_same, "config", {"training": {"lr": 0.1 if rank == 1 else 0.01, "steps": 5}}),
        message(processes.synchronise, model),
        message(processes.check_in_step, nn.Linear(1, 1)),  # random weights, and nobody has synchronised them
        message(processes.shard, 0),
    ]
    return {"shards": shards, "grads": [p.grad for p in parameters], "mean": mean, "errors": errors}


def message(function: Any, *args: Any) -> str:
    with pytest.raises(ValueError) as caught:
        function(*args)
    return str(caught.value)


def test_shards_gradients_and_disagreements():
    found = run(3, several)
    for rows in (1, 2, 3, 7):
        shards = [result["shards"][rows] for result in found]
        owned = [i for shard in shards if shard.weight for i in range(rows)[shard.rows]]
        assert owned == list(range(rows))
        assert [shard.weight * rows for shard in shards if not shard.weight] == [0] * max(3 - rows, 0)
        assert all(shard.rows.stop > shard.rows.start for shard in shards)
    for result in found:
        first, second, third, fourth = result["grads"]
        assert first.data.tolist() == [0.75, 1] and second.data.tolist() == [1.5, 1.75]
        assert first.dtype == F32 and third is None and fourth is None
        assert result["mean"] == 1.5
        config, model, state, empty = result["errors"]
        assert config == ("the processes disagree on the config:\n  rank 1 has training.lr = 0.1 where rank 0 has 0.01")
        assert "rank 2 has 1.bias = nothing where rank 0 has float32 (3,), learned" in model
        assert "disagree on the state of the model" in state and "rank 2 has weight" in state
        assert "must have rows" in empty


# ---- what cannot be shared -------------------------------------------------------------------------------------------


def with_activation(activation: Any) -> nn.Module:
    net = QuantWrapper(nn.Sequential(nn.Linear(4, 4)))
    return prepare_qat(net, QConfig(activation, get_default_qat_qconfig().weight))


def batch_norm() -> nn.Module:
    net = fuse_modules_qat(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), ["0", "1"])
    return prepare_qat(QuantWrapper(net), get_default_qat_qconfig())


def per_tensor() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4))
    base = Int8DynamicActivationInt8WeightConfig((PerTensor(), PerTensor()))
    quantize_(model, QATConfig(base, step="prepare"))
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (batch_norm, "BatchNorm1d .* statistics .* freeze_bn_stats"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), "Dropout '1' draws"),
        (lambda: prepare(QuantWrapper(nn.Linear(4, 4)), get_default_qconfig()), "HistogramObserver .* MinMaxObserver"),
        (
            lambda: with_activation(LearnableFakeQuantize.with_args(observer=MinMaxObserver, use_grad_scaling=True)),
            "use_grad_scaling=False",
        ),
        (per_tensor, "IntxFakeQuantizer '0.activation_fake_quantizer' chooses one grid"),
        (lambda: nn.Sequential(MovingAverageLossBalancer()), "StaticLossBalancer"),
    ],
)
def test_what_needs_the_whole_batch_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        refuse_what_needs_the_whole_batch(make())


def test_what_looks_like_it_and_does_not_is_let_through():
    frozen = batch_norm()
    frozen.apply(freeze_bn_stats)
    learned = LearnableFakeQuantize.with_args(
        observer=MinMaxObserver, quant_min=-8, quant_max=7, dtype="qint8", qscheme="per_tensor_symmetric",
        use_grad_scaling=True,
    )  # fmt: skip
    weight = QConfig(get_default_qat_qconfig().activation, learned)
    for model in (frozen, nn.Sequential(nn.Dropout(0.0)), prepare_qat(QuantWrapper(nn.Linear(4, 4)), weight)):
        refuse_what_needs_the_whole_batch(model)


@pytest.mark.parametrize(
    ("gpus", "local", "expected"),
    [(0, 2, ("gloo", "cpu")), (1, 2, ("gloo", "cpu")), (2, 2, ("cpu:gloo,cuda:nccl", "cuda:1"))],
)
def test_gradients_go_by_nccl_where_each_process_has_a_gpu(monkeypatch, gpus, local, expected):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(local))
    monkeypatch.setenv("LOCAL_RANK", "1")
    cuda = SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus)
    assert choose_backend(SimpleNamespace(cuda=cuda)) == expected


def test_without_torchrun_there_is_an_error(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK.*torchrun --nproc-per-node 2"):
        Processes()


# ---- a process that dies ---------------------------------------------------------------------------------------------


def die(processes: Processes, how: str, rank: int) -> None:
    """Joint operations without end, until one process meets its end."""
    for step in range(10_000):
        processes.step = step
        processes.average(1.0, 1.0)
        if step == 3 and processes.rank == rank:
            if how == "error":
                raise KeyError("batch 3 is missing")
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(("how", "rank"), [("kill", 1), ("kill", 0), ("error", 2)])
def test_the_others_stop_and_name_the_one_that_died(how, rank):
    started = start(4, die, how, rank)
    begun = time.monotonic()
    results = finish(started)
    assert time.monotonic() - begun < 20  # starting them included
    pid = started[rank][0].pid
    for other, result in enumerate(results):
        if other != rank:
            assert isinstance(result, ProcessLostError)
            said = {
                "kill": f"rank {rank} (process {pid}) died in step 4",
                "error": f"rank {rank} stopped in step 3: KeyError: 'batch 3 is missing'",
            }[how]
            assert f"rank {other} stops, since {said}" in str(result), result
    assert results[rank] is None if how == "kill" else isinstance(results[rank], KeyError)


def tune(processes: Processes, config: Config, dies_at: int | None, resume: bool) -> list[float]:
    def after_step(step: int, loss: float) -> None:
        if step == dies_at and processes.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    return finetune("full", config, resume=resume, after_step=after_step, processes=processes).losses


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    words = np.random.default_rng(0).choice("the weight of a grid is what rounding leaves it".split(), 1500)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(words[i : i + 9]) for i in range(0, len(words), 9)))
    return path


SIZES = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1)


def test_a_run_whose_process_was_killed_resumes_to_the_same_end(tmp_path, text):
    sizes = minquant.train.config.ModelSizes(**SIZES)
    options = dict(text=str(text), context=24, batch_size=4, questions=4, model=sizes)
    options |= dict(training=Schedule(steps=8), checkpoints=Saving(early=3, every=5))
    whole, killed = (Config(out=str(tmp_path / name), **options) for name in ("whole", "killed"))
    expected, _ = run(2, tune, whole, None, False)
    lost, nothing = finish(start(2, tune, killed, 6, False))
    assert isinstance(lost, ProcessLostError) and nothing is None
    assert "rank 1" in str(lost) and "died in step 7" in str(lost)
    resumed, again = run(2, tune, killed, None, True)
    assert resumed == again == expected and len(expected) == 8
    ours, theirs = (minquant.load(tmp_path / name / "model.safetensors").state_dict() for name in ("whole", "killed"))
    assert [name for name in ours if ours[name].data.tobytes() != theirs[name].data.tobytes()] == []


# ---- under torchrun --------------------------------------------------------------------------------------------------


def test_finetune_under_torchrun(tmp_path, text):
    manual_seed(0)
    minquant.save(Llama(LlamaConfig(vocab_size=256, max_position_embeddings=24, **SIZES)), tmp_path / "start")
    (tmp_path / "qat.toml").write_text(
        f'out = "out"\nstart = "start"\ntext = "{text}"\ncontext = 24\nbatch_size = 4\nquestions = 4\n'
        "[training]\nsteps = 4\n[quantization]\ngroup_size = 16\n"
    )
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "minquant", "finetune", "qat", "--config", "qat.toml", "--json", "out.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MINQUANT_BACKEND": "numpy", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *torchrun, *command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert len(report["losses"]) == 4 and [row["stage"] for row in report["rows"]] == ["float", "ptq", "qat"]
    assert done.stdout.count("figures written") == 1  # by one of the two
    model = minquant.load(tmp_path / "out" / "model.safetensors")
    assert "DynamicQuantizedLinear" in repr(model)
