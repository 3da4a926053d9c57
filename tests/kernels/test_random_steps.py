"""Random steps in sessions of every backend, each with what it must give; the benchmark runs thousands."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "speed"


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_no_step_hangs_or_is_wrong(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from kernel_steps import ours

    tally = await ours(200, seed=1, each=2)
    assert (tally.steps, tally.hung, tally.wrong) == (200, 0, 0), tally.problems
