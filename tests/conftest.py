"""Where torch is promised (MINQUANT_REQUIRE_TORCH=1, as in CI), a test that skips for want of it fails."""

from __future__ import annotations

import os

import pytest

skipped_for_want_of_torch: list[str] = []


def note_skip(report: pytest.CollectReport | pytest.TestReport) -> None:
    if report.skipped and isinstance(report.longrepr, tuple) and "torch" in report.longrepr[2]:
        skipped_for_want_of_torch.append(f"{report.nodeid}: {report.longrepr[2]}")


pytest_runtest_logreport = note_skip
pytest_collectreport = note_skip


def torch_required() -> bool:
    return os.environ.get("MINQUANT_REQUIRE_TORCH") == "1"


def pytest_sessionfinish(session: pytest.Session) -> None:
    if torch_required() and skipped_for_want_of_torch:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if torch_required() and skipped_for_want_of_torch:
        terminalreporter.section("torch is required here (MINQUANT_REQUIRE_TORCH=1), yet tests were skipped", red=True)
        for line in skipped_for_want_of_torch:
            terminalreporter.line(line)
