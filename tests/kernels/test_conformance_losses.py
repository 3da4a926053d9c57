"""The session contract on losses: time limits, interrupts, deaths and floods of output, on every backend."""

from __future__ import annotations

import asyncio
import resource
import time

import pytest
from kernel_probes import text

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("backend", ["local", "fork"])]


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(60)",
        "while True:\n    pass",
        "import asyncio\nawait asyncio.sleep(60)",
        "import subprocess\nsubprocess.run(['sleep', '60'])",
    ],
)
async def test_a_late_cell_is_interrupted_and_the_variables_stay(opened, code):
    session = await opened()
    await session.execute("x = 1")
    start = time.perf_counter()
    result = await session.execute(f"print('before', flush=True)\n{code}", timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", True)
    assert "0.3 s" in result.cause
    assert text(result.outputs) == "before\n"
    after = await session.execute("x")
    assert after.outputs[0]["data"]["text/plain"] == "1"
    assert time.perf_counter() - start < 3


async def test_a_cell_that_swallows_the_interrupt_is_killed(opened):
    session = await opened(grace_s=0.5)
    await session.execute("x = 1")
    code = (
        "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except KeyboardInterrupt:\n        print('no')"
    )
    result = await session.execute(code, timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", False)
    assert "killed" in result.cause
    after = await session.execute("'x' in globals()")
    assert (after.status, after.outputs[0]["data"]["text/plain"]) == ("ok", "False")
    assert after.execution_count == 1
    assert after.state_kept


async def test_code_that_holds_the_interpreter_is_killed(opened):
    session = await opened(grace_s=0.5)
    result = await session.execute("sum(iter(int, 1))", timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", False)
    assert (await session.execute("1")).status == "ok"


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("import os\nos._exit(3)", "exit code 3"),
        ("import os\nos._exit(0)", "exit code 0"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
        ("import os, signal\nos.killpg(0, signal.SIGTERM)", "signal SIGTERM"),
        ("import ctypes\nctypes.string_at(0)", "signal SIGSEGV"),
    ],
)
async def test_death_is_reported_with_its_cause_at_once(opened, code, cause):
    session = await opened()
    await session.execute("x = 1")
    start = time.perf_counter()
    result = await session.execute(code, timeout=30)
    assert time.perf_counter() - start < 1.5
    assert (result.status, result.cause, result.state_kept) == ("dead", cause, False)
    after = await session.execute("'x' in globals()")
    assert after.outputs[0]["data"]["text/plain"] == "False"


async def test_an_endless_print_is_capped_as_it_arrives(opened):
    session = await opened(output_bytes=100_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await session.execute("while True: print('y' * 1000)", timeout=1.5)
    assert (result.status, result.state_kept) == ("timeout", True)
    assert 90_000 <= len(text(result.outputs)) <= 100_000
    assert result.dropped_bytes > 0
    assert result.outputs[-1]["ename"] == "KeyboardInterrupt"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB
    assert text((await session.execute("print('fine')")).outputs) == "fine\n"


async def test_one_huge_output_is_dropped_and_the_next_cells_are_heard(opened):
    session = await opened()
    result = await session.execute(
        "from IPython.display import display\ndisplay({'text/plain': 'z' * 40_000_000}, raw=True)", timeout=30
    )
    assert (result.status, result.outputs) == ("ok", [])
    assert result.dropped_bytes > 1_000_000
    for _ in range(3):
        assert text((await session.execute("print('fine')")).outputs) == "fine\n"


async def test_the_number_of_outputs_is_capped_and_the_error_is_kept(opened):
    session = await opened(output_messages=10)
    result = await session.execute("for i in range(50): display(i)\n1 / 0")
    kinds = [output["output_type"] for output in result.outputs]
    assert kinds == ["display_data"] * 10 + ["error"]
    assert result.dropped_bytes > 0


async def test_restart_keeps_files_and_drops_variables(opened):
    session = await opened()
    await session.execute("x = 1\nopen('kept', 'w').write('k')")
    await session.restart()
    result = await session.execute("'x' in globals(), open('kept').read()")
    assert result.outputs[0]["data"]["text/plain"] == "(False, 'k')"
    assert (result.execution_count, result.state_kept) == (1, True)


async def test_restart_ends_a_running_cell(opened):
    session = await opened()
    cell = asyncio.create_task(session.execute("import time\ntime.sleep(60)"))
    await asyncio.sleep(0.3)
    await session.restart()
    assert (await cell).status == "dead"
    assert (await session.execute("1")).status == "ok"


async def test_interrupt_from_outside_loses_nothing_that_waits(opened):
    session = await opened()
    running = asyncio.create_task(session.execute("import time\ntime.sleep(60)"))
    waiting = [asyncio.create_task(session.execute(f"print({i})")) for i in range(3)]
    await asyncio.sleep(0.3)
    await session.interrupt()
    result = await running
    assert (result.status, result.outputs[-1]["ename"]) == ("error", "KeyboardInterrupt")
    assert [text((await cell).outputs) for cell in waiting] == ["0\n", "1\n", "2\n"]


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
    assert [output["output_type"] for output in result.outputs] == ["execute_result"]
    assert result.state_kept
