"""What the files of mutants share: wrong implementations that look right, which some existing test must notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from minquant.crosscheck.suite import Result
from tests.golden.record_checks import compare
from tests.golden.test_golden_checks import BY_NAME, RECORDED


class Mutant(NamedTuple):
    """`wrong` in the place of ``where.attribute``, and the test that must not pass with it."""

    where: Any
    attribute: str
    wrong: Any
    check: Callable[[], None]


def name(mutant: Mutant) -> str:
    """For the report: ``wrong-check``."""
    wrong = getattr(mutant.wrong, "fget", mutant.wrong)  # of a property
    return f"{wrong.__name__}-{mutant.check.__name__}"


def must_be_rejected(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the check as it is and with the mutant in place, in NumPy: that is the specification of all kernels.

    Raises:
        AssertionError: the check fails without the mutant, or passes with it.
    """
    monkeypatch.setenv("MINQUANT_BACKEND", "numpy")
    mutant.check()  # so that it is the mutant that it rejects
    monkeypatch.setattr(mutant.where, mutant.attribute, mutant.wrong)
    with pytest.raises(AssertionError):
        mutant.check()


# ---- checks ----------------------------------------------------------------------------------------------------------


def of(test: Callable[..., None], *arguments: Any) -> Callable[[], None]:
    """A test with parameters, for these."""

    def check() -> None:
        test(*arguments)

    check.__name__ = f"{test.__name__}[{','.join(map(str, arguments))}]"
    return check


def every(test: Any) -> Callable[[], None]:
    """A test with one mark of parameters, for all of them."""

    def check() -> None:
        for case in test.pytestmark[0].args[1]:
            test(*(case if isinstance(case, tuple) else (case,)))

    check.__name__ = test.__name__
    return check


def recorded(check_name: str) -> Callable[[], None]:
    """A check of the conformance suite, against what its oracle answered when it was recorded."""

    def check() -> None:
        result = Result(BY_NAME[check_name])
        compare(result, RECORDED[check_name])
        assert result.ok

    check.__name__ = f"recorded[{check_name}]"
    return check
