"""A prepared model in a Hugging Face Accelerate loop on two CPU processes: it learns what one process learns."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from minquant import Tensor, nn, optim
from minquant.quant import QATConfig, quantize_
from tests.interop import accelerate_loop as loop

ROOT = Path(__file__).parents[2]
RANGE = "0.activation_fake_quantizer.activation_post_process."


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Each process's state, and the minquant model that came back."""
    folder = tmp_path_factory.mktemp("accelerate")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, loop.__file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    back = loop.prepared()
    back.load_state_dict(dict(np.load(folder / "back.npz")))
    return [torch.load(folder / f"state-{i}.pt", weights_only=True) for i in (0, 1)], back


def test_both_processes_have_the_ranges_of_all_the_data(trained):
    states, back = trained
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
        np.testing.assert_array_equal(back.state_dict()[name].data, value.numpy(), err_msg=name)
    x, _ = loop.data()
    assert (states[0][RANGE + "min_val"], states[0][RANGE + "max_val"]) == (x.min(), x.max())


def test_weights_are_those_of_one_minquant_process(trained):
    """Within 1e-5; an integer that flips where sums differ by a rounding error would move a weight by more."""
    model = loop.prepared()
    optimizer = optim.SGD(model.parameters(), lr=loop.LR)
    for x, target in zip(*loop.data(), strict=True):
        optimizer.zero_grad()
        nn.MSELoss()(model(x), Tensor(target)).backward()
        optimizer.step()
    before, after = loop.prepared().state_dict(), trained[1].state_dict()
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(after[name].data, parameter.data, rtol=0, atol=1e-5, err_msg=name)
        assert np.abs(after[name].data - before[name].data).max() > 1e-3  # it has learned something


def test_it_is_converted_to_what_was_trained(trained):
    model, (x, _) = trained[1].eval(), loop.data()
    wanted = model(x[0]).data
    quantize_(model, QATConfig(step="convert"))
    np.testing.assert_array_equal(model(x[0]).data, wanted)
