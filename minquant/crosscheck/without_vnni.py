"""torch's fbgemm and onednn as a processor without VNNI runs them: in a process of its own, as the choice is made once.

``FBGEMM_ENABLE_INSTRUCTIONS=AVX2`` and ``ONEDNN_MAX_CPU_ISA=AVX2`` have them leave the dot-product instruction unused,
on every x86 processor that has AVX2; where torch has no fbgemm engine, the processor is no such one.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from .processor import has_vnni

__all__ = ["ask"]


AVX2 = {"FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def ask(inputs: Mapping[str, Any], layer: str = "linear", engine: str = "fbgemm") -> dict[str, np.ndarray]:
    """Outputs of many layers, from one process: this one, if the processor has no VNNI anyhow.

    Args:
        inputs: see `minquant.crosscheck.checks.saturation`.
        layer: "linear", static and dynamic, all of one shape; or "conv".
        engine: "fbgemm" or "onednn".

    Returns:
        Of Linears "static", uint8 (B, M, N), and "dynamic", float32 (B, M, N); of convolutions "0", "1" …

    Raises:
        RuntimeError: the process failed; the message is what it said.
    """
    if not has_vnni():
        return ANSWERS[layer](inputs, engine)
    sent = io.BytesIO()
    np.savez(sent, **inputs)
    command = [sys.executable, "-m", __name__, layer, engine]
    done = subprocess.run(command, input=sent.getvalue(), capture_output=True, env=os.environ | AVX2, check=False)
    if done.returncode:
        raise RuntimeError(f"torch under {AVX2} failed: {done.stderr.decode()}")
    with np.load(io.BytesIO(done.stdout)) as answered:
        return {name: answered[name] for name in answered.files}


def _convs(inputs: Mapping[str, np.ndarray], engine: str) -> dict[str, np.ndarray]:
    """What torch makes of every convolution, in this process; an input ``"0 qx"`` belongs to the first."""
    from .theirs import static_conv

    cases: dict[str, dict[str, np.ndarray]] = {}
    for key, value in inputs.items():
        i, _, name = key.partition(" ")
        cases.setdefault(i, {})[name] = value
    return {i: static_conv(engine, case) for i, case in cases.items()}


def _linears(inputs: Mapping[str, np.ndarray], engine: str) -> dict[str, np.ndarray]:
    """What torch makes of every Linear, in this process."""
    import torch

    torch.backends.quantized.engine = engine
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
    once, again = (torch.ops.quantized.linear_prepack(weight, tensor(case["bias"])) for _ in range(2))
    x = torch._make_per_tensor_quantized_tensor(tensor(case["qx"]), float(case["x_scale"]), int(case["x_zero_point"]))
    static = torch.ops.quantized.linear_relu if case["relu"] else torch.ops.quantized.linear
    dynamic = torch.ops.quantized.linear_relu_dynamic if case["relu"] else torch.ops.quantized.linear_dynamic
    return {
        "static": static(x, once, float(case["out_scale"]), int(case["out_zero_point"])).int_repr().numpy(),
        "dynamic": dynamic(tensor(case["x"]), again, False).numpy(),  # no reduce_range, or nothing would saturate
    }


ANSWERS = {"linear": _linears, "conv": _convs}


def main() -> None:
    """Reads the inputs from standard input, writes the outputs to standard output, both as npz."""
    import torch

    from .quiet import one_thread, quiet

    layer, engine = sys.argv[1:]
    with np.load(io.BytesIO(sys.stdin.buffer.read())) as inputs, quiet(torch), one_thread(torch):
        outputs = ANSWERS[layer]({name: inputs[name] for name in inputs.files}, engine)
    written = io.BytesIO()
    np.savez(written, **outputs)  # type: ignore[arg-type]
    sys.stdout.buffer.write(written.getvalue())


if __name__ == "__main__":
    main()
