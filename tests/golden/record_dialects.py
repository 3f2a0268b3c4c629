"""Records what torch's engines make of a few dozen Linears, whole flows, and its fused fake quantizer.

    python -m tests.golden.record_dialects        # writes tests/golden/dialects.npz; recorded with torch 2.13.0

minquant/crosscheck/inputs.py draws the cases; the file holds them too, so that it can be read without that:

- "linear/<i>/<name>": the case; "linear/<i>/<engine>/<qx | static | dynamic>": the engine's integers and values;
- "flow/<name>": a float model and its data; "flow/<engine>/<static | dynamic>/<name>": what the flow makes of it;
- "fused/<i>/<options (JSON) | batches | gradient>"; "fused/<i>/<step>/<name>".
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from minquant.crosscheck import theirs
from minquant.crosscheck.inputs import ENGINES, KINDS, draw, draw_fused, flow_data
from minquant.crosscheck.quiet import one_thread, quiet

FILE = Path(__file__).with_name("dialects.npz")
LINEARS, FUSED = 2 * len(KINDS), 10
RECORDED = [engine for engine in ENGINES if engine != "x86"]  # x86 hands Linear to fbgemm


def record() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2013)
    arrays: dict[str, np.ndarray] = {"torch": np.array(torch.__version__)}
    for i in range(LINEARS):
        case = draw(rng, KINDS[i % len(KINDS)], per_channel=bool(i % 2))
        put(arrays, f"linear/{i}", case)
        for engine in RECORDED:
            put(arrays, f"linear/{i}/{engine}", theirs.static_linear(engine, case))
            put(arrays, f"linear/{i}/{engine}", theirs.dynamic_linear(engine, case))
    data = flow_data(0)
    put(arrays, "flow", data)
    for engine in RECORDED:
        put(arrays, f"flow/{engine}/static", theirs.static_flow(engine, data))
        put(arrays, f"flow/{engine}/dynamic", theirs.dynamic_flow(engine, data))
    for i in range(FUSED):
        options, batches, gradient = draw_fused(rng)
        put(arrays, f"fused/{i}", {"options": json.dumps(options), "batches": batches, "gradient": gradient})
        for step, state in enumerate(theirs.fused_steps(options, batches, gradient)):
            put(arrays, f"fused/{i}/{step}", state)
    return arrays


def put(arrays: dict[str, np.ndarray], prefix: str, more: dict) -> None:
    arrays.update({f"{prefix}/{name}": np.asarray(array) for name, array in more.items()})


if __name__ == "__main__":
    with quiet(torch), one_thread(torch):
        np.savez_compressed(FILE, **record())
    print(f"{FILE}: {FILE.stat().st_size:,} bytes")
