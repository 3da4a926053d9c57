"""Which tests `make check` leaves out: a list of the functions that take longest, written by `make slow`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

LIST = Path(__file__).parent / "slow.txt"
SLOW_S = 0.5
"""Seconds of a function's tests together, their fixtures included."""


def rewriting() -> bool:
    """Whether the list is to be written anew."""
    return os.environ.get("NBAGENT_SLOW") == "write"


def listed() -> frozenset[str]:
    """Functions that are slow, as `file::function`; none while the list is being written."""
    if rewriting() or not LIST.is_file():
        return frozenset()
    return frozenset(LIST.read_text(encoding="utf-8").split())


def function_of(nodeid: str) -> str:
    """The function of a test, whatever its parameters."""
    return nodeid.partition("[")[0]


class Slowness:
    """Times every test that is not marked as slow by hand, and writes the list at the end."""

    def __init__(self) -> None:
        self._seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test's set-up, call or tear-down is over."""
        if "slow" not in report.keywords:
            self._seconds[function_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """The session is over; of one that was cut short nothing is written."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        slow = sorted(name for name, seconds in self._seconds.items() if seconds >= SLOW_S)
        LIST.write_text("".join(f"{name}\n" for name in slow), encoding="utf-8")
