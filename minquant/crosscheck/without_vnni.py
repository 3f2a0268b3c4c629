"""torch's fbgemm as a processor without VNNI runs it: in a process of its own, since the choice is made once.

``FBGEMM_ENABLE_INSTRUCTIONS=AVX2`` has fbgemm leave the dot-product instruction unused, on every x86 processor that
has AVX2; where torch has no fbgemm engine, the processor is no such one.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["ask"]


def ask(inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Static and dynamic outputs of many Linears of one shape, from one process.

    Args:
        inputs: see `minquant.crosscheck.checks.saturation`.

    Returns:
        "static": uint8 (B, M, N); "dynamic": float32 (B, M, N).

    Raises:
        RuntimeError: the process failed; the message is what it said.
    """
    sent = io.BytesIO()
    np.savez(sent, **inputs)
    environment = os.environ | {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2"}
    command = [sys.executable, "-m", __name__]
    done = subprocess.run(command, input=sent.getvalue(), capture_output=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"torch under FBGEMM_ENABLE_INSTRUCTIONS=AVX2 failed: {done.stderr.decode()}")
    with np.load(io.BytesIO(done.stdout)) as answered:
        return {name: answered[name] for name in answered.files}


def _answer(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What torch makes of every Linear, in this process."""
    cases = [{name: array[i] for name, array in inputs.items()} for i in range(len(inputs["qx"]))]
    outputs = [_linear(case) for case in cases]
    return {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}


def _linear(case: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    from .theirs import tensor

    if case["per_channel"]:
        zeros = torch.zeros(len(case["qw"]), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(tensor(case["qw"]), tensor(case["w_scale"]), zeros, 0)
    else:
        weight = torch._make_per_tensor_quantized_tensor(tensor(case["qw"]), float(case["w_scale"][0]), 0)
    packed = torch.ops.quantized.linear_prepack(weight, tensor(case["bias"]))
    x = torch._make_per_tensor_quantized_tensor(tensor(case["qx"]), float(case["x_scale"]), int(case["x_zero_point"]))
    static = torch.ops.quantized.linear_relu if case["relu"] else torch.ops.quantized.linear
    dynamic = torch.ops.quantized.linear_relu_dynamic if case["relu"] else torch.ops.quantized.linear_dynamic
    return {
        "static": static(x, packed, float(case["out_scale"]), int(case["out_zero_point"])).int_repr().numpy(),
        "dynamic": dynamic(tensor(case["x"]), packed, False).numpy(),  # no reduce_range, or nothing would saturate
    }


def main() -> None:
    """Reads the inputs from standard input, writes the outputs to standard output, both as npz."""
    import torch

    from .quiet import one_thread, quiet

    with np.load(io.BytesIO(sys.stdin.buffer.read())) as inputs, quiet(torch), one_thread(torch):
        torch.backends.quantized.engine = "fbgemm"
        outputs = _answer({name: inputs[name] for name in inputs.files})
    written = io.BytesIO()
    np.savez(written, **outputs)  # type: ignore[arg-type]
    sys.stdout.buffer.write(written.getvalue())


if __name__ == "__main__":
    main()
