"""The session contract on losses: time limits, interrupts, deaths and floods of output, on every backend."""

from __future__ import annotations

import asyncio

import pytest
from kernel_probes import text
from languages import AND_BRANCHES

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("backend", AND_BRANCHES)]


async def test_what_a_late_cell_printed_is_kept(opened):
    session = await opened()
    result = await session.execute("print('before', flush=True)\nimport time\ntime.sleep(60)", timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", True)
    assert text(result.outputs) == "before\n"
    assert result.outputs[-1]["ename"] == "KeyboardInterrupt"


async def test_code_that_holds_the_interpreter_is_killed(opened):
    session = await opened(grace_s=0.5)
    result = await session.execute("sum(iter(int, 1))", timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", False)
    assert (await session.execute("1")).status == "ok"


async def test_the_number_of_outputs_is_capped_and_the_error_is_kept(opened):
    session = await opened(output_messages=10)
    result = await session.execute("for i in range(50): display(i)\n1 / 0")
    kinds = [output["output_type"] for output in result.outputs]
    assert kinds == ["display_data"] * 10 + ["error"]
    assert result.dropped_bytes > 0


async def test_restart_ends_a_running_cell(opened):
    session = await opened()
    cell = asyncio.create_task(session.execute("import time\ntime.sleep(60)"))
    await asyncio.sleep(0.3)
    await session.restart()
    assert (await cell).status == "dead"
    assert (await session.execute("1")).status == "ok"


async def test_interrupts_at_any_moment_leave_a_kernel_that_answers(opened, backend):
    session = await opened()
    await session.execute("x = 'still here'")
    for i in range(60 if backend == "fork" else 6):
        cell = asyncio.create_task(session.execute("for i in range(200): print(i)"))
        await asyncio.sleep(0.0002 * i)
        await session.interrupt()
        assert (await cell).status in ("ok", "error")
    assert (await session.execute("x")).outputs[0]["data"]["text/plain"] == "'still here'"


async def test_a_cancelled_cell_does_not_leak_into_the_next(opened):
    session = await opened()
    await session.execute("x = 1")
    cell = asyncio.create_task(session.execute("import time\nprint('stale')\ntime.sleep(60)"))
    await asyncio.sleep(0.3)
    cell.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cell
    result = await session.execute("x")
    assert [output["output_type"] for output in result.outputs] == ["execute_result"], result
    assert result.state_kept
