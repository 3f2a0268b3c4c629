"""Records what the oracles answer in the first cases of every check, for tests that run without them.

    python -m tests.golden.record_checks [PATTERN]

writes tests/golden/checks/<subject>.npz (see checks_file.py). After adding or changing a check, run it with a PATTERN
that names it (as in ``minquant crosscheck --only PATTERN``): only what matches is recorded again, and records of
checks that are no more are removed. Recorded with torch 2.13.0 and torchao 0.18.0; each record holds its versions.

A check's inputs are those of ``minquant crosscheck --quick``, as many of the first as fit into 6 kB. Where minquant
differs from the oracle nothing is recorded and the exit status is 1. Where torch's engine depends on the processor,
the inputs hold the dialect that it spoke here ("fbgemm_avx2" without VNNI), so that the record holds everywhere.
"""

from __future__ import annotations

import sys
import zlib

import numpy as np

from minquant.commands.crosscheck import all_versions
from minquant.crosscheck.checks import CHECKS
from minquant.crosscheck.suite import Result, by_name, generator, select
from tests.golden.checks_file import FOLDER, pack, path_of, read, write

SEED = 0
LIMIT = 6000
"""Compressed bytes a check. All golden vectors together must stay below 2 MB; tests/golden/test_golden_checks.py."""

PACKAGES = ("numpy", "torch", "torchao", "onnx", "onnxruntime", "cpu_capability", "vnni")


def record(check, versions):
    """The record of a check, and the Result of comparing minquant with it."""
    cases, too_large = [], []
    for inputs in check.draw(generator(check, SEED), True):
        outputs = {name: np.array(value) for name, value in by_name(check.theirs(inputs)).items()}
        case = {"inputs": dict(inputs), "outputs": outputs}
        if size([case]) > LIMIT:
            too_large.append(case)
        elif size([*cases, case]) > LIMIT:
            break
        else:
            cases.append(case)
    recorded, result = {"versions": versions, "cases": cases or too_large[:1]}, Result(check)
    compare(result, recorded)
    return recorded, result


def compare(result, recorded):
    """Adds minquant's answers to all recorded cases to a Result, beside the recorded outputs."""
    for case in recorded["cases"]:
        ours = by_name(result.check.ours(case["inputs"]))
        result.add(case["inputs"], {name: ours[name] for name in case["outputs"]}, case["outputs"])


def size(cases):
    return sum(len(zlib.compress(part.tobytes())) for part in pack({"versions": {}, "cases": cases}))


def versions():
    return {name: value for name, value in all_versions().items() if name in PACKAGES}


def main(pattern):
    import torch

    from minquant.crosscheck.quiet import one_thread, quiet

    made_by = versions()
    recorded, differing = {}, []
    with quiet(torch), one_thread(torch):
        for check in select(CHECKS, pattern):
            found, result = record(check, made_by)
            print(f"{check.name}: {len(found['cases'])} cases, {size(found['cases']):,} bytes", flush=True)
            if result.ok:
                recorded[check.name] = pack(found)
            else:
                differing.append(check.name)
    put(recorded)
    print(f"{sum(path.stat().st_size for path in FOLDER.glob('*.npz')):,} bytes in all")
    if differing:
        print(f"minquant differs from the oracle, so not recorded: {', '.join(differing)}", file=sys.stderr)
    return 1 if differing else 0


def put(recorded):
    """Writes packed records into their files, and removes the records of checks that are no more."""
    known = {check.name for check in CHECKS}
    for path in {path_of(name) for name in known} | set(FOLDER.glob("*.npz")):
        kept = {name: packed for name, packed in read(path).items() if name in known}
        write(path, kept | {name: packed for name, packed in recorded.items() if path_of(name) == path})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else None))
