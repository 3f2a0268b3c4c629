"""A test skipped for want of torch fails the run where torch is promised, and only there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SKIPS = {
    "a module": 'import pytest\npytest.importorskip("torch")\ndef test_a(): pass\n',
    "a test": 'import pytest\ndef test_a(): pytest.importorskip("torchao")\ndef test_b(): pass\n',
    "nothing of torch": 'import pytest\ndef test_a(): pytest.skip("no GPU")\ndef test_b(): pass\n',
}


def run_pytest(folder: Path, source: str, required: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    (folder / "test_one.py").write_text(source)
    (folder / "test_two.py").write_text("def test_always_there(): pass\n")
    for absent in ("torch", "torchao"):
        (folder / f"{absent}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{absent}'\")\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "."]
    environment = os.environ | {"MINQUANT_REQUIRE_TORCH": required}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("skipped", SKIPS)
@pytest.mark.parametrize("required", ["1", "0"])
def test_exit_status(tmp_path, skipped, required):
    result = run_pytest(tmp_path, SKIPS[skipped], required)
    must_fail = required == "1" and skipped != "nothing of torch"
    assert result.returncode == int(must_fail), result.stdout
    assert ("yet tests were skipped" in result.stdout) == must_fail
