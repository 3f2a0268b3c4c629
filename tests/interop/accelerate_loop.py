"""Two CPU processes train a prepared model in a Hugging Face Accelerate loop: `python accelerate_loop.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, debug_launcher

import minquant
from minquant import nn
from minquant.interop import from_torch, to_torch
from minquant.quant import (
    Int8DynamicActivationIntxWeightConfig,
    Int8StaticActivationInt8WeightConfig,
    PerGroup,
    QATConfig,
    quantize_,
)

STEPS, LR = 3, 0.1


def prepared() -> nn.Module:
    """A static Linear first, whose observer sees the data itself; then int4 groups."""
    minquant.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4, bias=False))
    static, int4 = Int8StaticActivationInt8WeightConfig(), Int8DynamicActivationIntxWeightConfig("int4", PerGroup(16))
    quantize_(model, QATConfig(static, step="prepare"), lambda module, path: path == "0")
    quantize_(model, QATConfig(int4, step="prepare"), lambda module, path: path == "2")
    return model


def data() -> tuple[np.ndarray, np.ndarray]:
    """Batches of 8 rows; the largest values are in the second process's part."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(STEPS, 8, 16)).astype(np.float32)
    x[:, 5] *= 3
    return x, rng.normal(size=(STEPS, 8, 4)).astype(np.float32)


def train(folder: str) -> None:
    """Any torch loop: nothing in it knows of minquant but the first line and the last."""
    model = to_torch(prepared())
    rows = [torch.tensor(part.reshape(-1, part.shape[-1])) for part in data()]
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*rows), batch_size=8)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for x, target in loader:
        optimizer.zero_grad()
        accelerator.backward(torch.nn.functional.mse_loss(model(x), target))
        optimizer.step()
    trained = accelerator.unwrap_model(model)
    torch.save(trained.state_dict(), Path(folder) / f"state-{accelerator.process_index}.pt")
    if accelerator.is_main_process:
        back = from_torch(trained).eval()
        np.savez(Path(folder) / "back.npz", **{name: value.data for name, value in back.state_dict().items()})


if __name__ == "__main__":
    debug_launcher(train, (sys.argv[1],), num_processes=2)
