"""Branching by repetition works on every backend."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from kernel_probes import text

from nbagent_kernels import CannotBranch

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("backend", ["local", "fork"])]


async def test_all_that_was_executed_runs_again(opened, branched):
    parent = await opened()
    await parent.execute("lost = 1\nopen('f', 'w').write('a')")
    await parent.restart()
    await parent.execute("x = [1]\nopen('f', 'a').write('b')")
    assert (await parent.execute("1 / 0")).status == "error"
    assert (await parent.execute("x.append(2)\nimport time\ntime.sleep(60)", timeout=0.3)).status == "timeout"
    child = await branched(parent, method="replay")
    grandchild = await branched(child, method="replay")
    for session in (child, grandchild):
        result = await session.execute("print(x, 'lost' in globals(), open('f').read())")
        assert text(result.outputs) == "[1, 2] False ab\n"
    assert result.execution_count == (await parent.execute("1")).execution_count
    assert child.workdir != parent.workdir


async def test_deaths_and_interrupts_come_again(opened, branched):
    parent = await opened()
    await parent.execute("lost = 1")
    assert (await parent.execute("import os\nos._exit(1)")).status == "dead"
    await parent.execute("x = 1\nimport time")
    running = asyncio.create_task(parent.execute("print('on', flush=True)\ntime.sleep(60)"))
    await asyncio.sleep(0.5)
    await parent.interrupt()
    await running
    start = time.monotonic()
    child = await branched(parent, method="replay")
    assert time.monotonic() - start < 20
    result = await child.execute("print('lost' in globals(), x)")
    assert text(result.outputs) == "False 1\n"


async def test_a_cell_that_ends_otherwise_is_logged(opened, branched, caplog):
    caplog.set_level(logging.WARNING)
    parent = await opened()
    await parent.execute(f"import os\nassert os.getcwd() == {str(parent.workdir)!r}")
    child = await branched(parent, method="replay")
    assert "step 1 of a replayed session ended with error where it had ended with ok" in caplog.text
    assert (await child.execute("1")).status == "ok"


async def test_a_local_kernel_says_what_can(opened, backend):
    session = await opened()
    if backend == "local":
        with pytest.raises(CannotBranch, match="branch\\(method='replay'\\) can"):
            await session.branch()
    assert (await session.execute("1")).status == "ok"
