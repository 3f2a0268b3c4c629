"""The training loop: it learns, follows its schedule, repeats itself bit for bit, and goes on where it stopped."""

from __future__ import annotations

import math

import numpy as np
import pytest
import safetensors.numpy

import minquant
from minquant import Tensor, nn, optim
from minquant.lm.text import RandomWindows
from minquant.train.checkpoint import Checkpoints, load_checkpoint, save_checkpoint
from minquant.train.loop import Schedule, clip_grad_norm_, next_token_loss, train

TOKENS = np.tile(np.arange(8), 40)
CONFIG = {"recipe": "test", "lr": 0.05}


class Bigram(nn.Module):
    """Guesses the next of eight tokens from the last, with dropout, so that random numbers count."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, 16)
        self.norm = nn.RMSNorm(16)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, 8)

    def forward(self, tokens):
        return self.head(self.dropout(self.norm(self.table(tokens))))


def run(steps=16, **options):
    minquant.manual_seed(1)
    model = Bigram()
    windows = RandomWindows(TOKENS, context=6, batch_size=4, seed=0)
    return model, train(model, windows, Schedule(steps, lr=0.05, warmup_steps=3), **options)


def same(a, b):
    other = b.state_dict()
    return all((tensor.data == other[name].data).all() for name, tensor in a.state_dict().items())


def test_it_learns():
    _, losses = run(60)
    assert len(losses) == 60 and losses[0] > 1.5 and losses[-1] < 0.2


def test_it_repeats_itself_bit_for_bit():
    (a, first), (b, second) = run(), run()
    assert first == second and same(a, b)


def test_the_schedule():
    s = Schedule(steps=10, lr=1.0, warmup_steps=4)
    assert [s.lr_at(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [s.lr_at(i) for i in range(4, 10)] == pytest.approx([(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)])
    assert Schedule(steps=10, lr=1.0, shape="constant").lr_at(9) == 1.0


def test_impossible_schedules_name_every_problem():
    with pytest.raises(ValueError, match=r"steps must be 1 or more, got 0; lr must be above 0, got -1; .*'linear'"):
        Schedule(steps=0, lr=-1, shape="linear")


def test_the_first_step_is_adamw_s_and_norms_are_not_decayed():
    windows = RandomWindows(TOKENS, context=6, batch_size=4, seed=0)
    minquant.manual_seed(1)
    model = Bigram()
    train(model, windows, Schedule(steps=1, lr=0.05))
    minquant.manual_seed(1)
    by_hand = Bigram()
    next_token_loss(by_hand, *windows.batch(0)).backward()
    params = list(by_hand.parameters())
    clip_grad_norm_(params, 1.0)
    groups = [
        {"params": [p for p in params if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in params if p.ndim == 1], "weight_decay": 0.0},
    ]
    optim.AdamW(groups, lr=0.05, betas=(0.9, 0.999)).step()
    assert same(model, by_hand)


def test_only_what_requires_a_gradient_is_trained():
    minquant.manual_seed(1)
    model = Bigram()
    model.table.requires_grad_(False)
    before = model.table.weight.data.copy()
    train(model, RandomWindows(TOKENS, 6, 4, 0), Schedule(3, lr=0.1))
    assert (model.table.weight.data == before).all()
    with pytest.raises(ValueError, match="no parameter of the model requires a gradient"):
        train(model.requires_grad_(False), RandomWindows(TOKENS, 6, 4, 0), Schedule(3))


def test_gradients_are_shortened_together():
    a, b = (nn.Parameter(np.zeros(1, np.float32)) for _ in range(2))
    a.grad, b.grad = Tensor(np.float32([3])), Tensor(np.float32([4]))
    assert clip_grad_norm_([a, b], 10) == 5 and a.grad.item() == 3
    assert clip_grad_norm_([a, b], 1) == 5
    assert [a.grad.item(), b.grad.item()] == pytest.approx([0.6, 0.8], rel=1e-6)


def test_hooks_see_every_step():
    seen = []
    run(3, before_step=lambda i: seen.append(i), after_step=lambda i, loss: seen.append((i, loss > 0)))
    assert seen == [0, (0, True), 1, (1, True), 2, (2, True)]


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan; try a smaller lr"):
        run(3, loss=lambda model, x, y: next_token_loss(model, x, y) * float("nan"))


# ---- checkpoints -----------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_at(step):
    def hook(i):
        if i == step:
            raise StoppedError

    return hook


@pytest.mark.parametrize(("stopped", "name"), [(5, "early"), (13, "latest")])
def test_a_resumed_run_ends_as_if_it_had_never_stopped(tmp_path, stopped, name):
    whole, losses = run()
    with pytest.raises(StoppedError):
        run(before_step=stop_at(stopped), checkpoints=Checkpoints(tmp_path, CONFIG, 16, early=3, every=8))
    resumed = Checkpoints(tmp_path, CONFIG, 16, early=3, every=8, resume=True)
    assert resumed.found()[0].stem == name
    minquant.rand(5)  # whatever else was drawn meanwhile
    model, again = run(checkpoints=resumed)
    assert again == losses and same(model, whole)
    assert {path.name for path in tmp_path.iterdir()} == {
        "early.safetensors",
        "latest.safetensors",
        "final.safetensors",
    }


def test_a_finished_run_is_not_run_again(tmp_path):
    model, losses = run(checkpoints=Checkpoints(tmp_path, CONFIG, 16))
    steps = []
    options = {"checkpoints": Checkpoints(tmp_path, CONFIG, 16, resume=True), "after_step": lambda *a: steps.append(a)}
    again, same_losses = run(**options)
    assert same(model, again) and same_losses == losses and not steps


def test_an_earlier_run_is_not_overwritten(tmp_path):
    run(checkpoints=Checkpoints(tmp_path, CONFIG, 16))
    with pytest.raises(FileExistsError, match=r"final.safetensors of an earlier run; resume that run"):
        Checkpoints(tmp_path, CONFIG, 16)


def test_only_one_process_writes(tmp_path):
    run(checkpoints=Checkpoints(tmp_path, CONFIG, 16, write=False))
    assert not list(tmp_path.iterdir())


def fresh(path=None):
    minquant.manual_seed(2)
    model = Bigram()
    return model, optim.AdamW(model.parameters())


def test_another_config_is_refused_with_the_difference(tmp_path):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, *fresh(), [1.0], CONFIG)
    with pytest.raises(ValueError, match=r"another config:\n  lr: 0.05 there, 0.1 here\n  seed: 'not given' there, 3"):
        load_checkpoint(path, *fresh(), {**CONFIG, "lr": 0.1, "seed": 3})


def test_another_model_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, *fresh(), [1.0], CONFIG)
    other = nn.Linear(2, 2)
    before = other.weight.data.copy()
    with pytest.raises(ValueError, match=r"is of another model[\s\S]*missing: weight"):
        load_checkpoint(path, other, optim.AdamW(other.parameters()), CONFIG)
    assert (other.weight.data == before).all()


def test_what_is_damaged_is_refused_with_the_reason(tmp_path):
    path = tmp_path / "run.safetensors"
    save_checkpoint(path, *fresh(), [1.0], CONFIG)
    data = path.read_bytes()
    for cut in (0, 7, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="is truncated or damaged"):
            load_checkpoint(path, *fresh(), CONFIG)
    for place in (len(data) // 2, len(data) - 1):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match="has been altered"):
            load_checkpoint(path, *fresh(), CONFIG)
    safetensors.numpy.save_file({"a": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="no checkpoint that this minquant reads"):
        load_checkpoint(path, *fresh(), CONFIG)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        load_checkpoint(tmp_path / "none", *fresh(), CONFIG)


def test_no_checkpoint_means_from_the_beginning(tmp_path):
    _, losses = run()
    _, again = run(checkpoints=Checkpoints(tmp_path / "new", CONFIG, 16, resume=True))
    assert losses == again
