"""The lessons' tools with torch: it loads without a word, and its tensors compare as integers."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lesson_tools


def test_quiet_torch_says_nothing():
    code = """
import lesson_tools
torch = lesson_tools.quiet_torch()
model = torch.nn.Sequential(torch.nn.Linear(3, 3))
torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
"""
    run = [sys.executable, "-c", code]
    folder = lesson_tools.__file__.rsplit("/", 1)[0]
    out = subprocess.run(run, cwd=folder, capture_output=True, text=True, check=True)
    assert (out.stdout, out.stderr) == ("", "")


def test_tensors_are_compared_as_integers(capsys):
    quantized = torch.quantize_per_tensor(torch.tensor([0.0, 1.0]), 0.5, 3, torch.quint8)
    assert lesson_tools.compare("q", np.array([3, 5], np.uint8), quantized)
    assert lesson_tools.compare("x", np.array([0.5], np.float32), torch.tensor([0.5], requires_grad=True))
    lesson_tools.check("q", quantized, [3, 5])
