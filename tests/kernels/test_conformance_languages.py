"""The part of the session contract that holds in every language, on every backend."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import time

import nbformat
import pytest
from kernel_probes import on_host, text
from languages import EVERY, LANGUAGES, Language, language_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.parametrize("backend", EVERY)]
SOON_S = 5.0
"""What is promised within one second is asserted within this many: others may use the machine."""


@pytest.fixture
def cells(backend) -> Language:
    return LANGUAGES[language_of(backend)]


def waits(backend: str) -> list[str]:
    return list(LANGUAGES[language_of(backend)].waits)


async def test_state_output_and_errors(opened, cells):
    session = await opened()
    kept = [await session.execute(cells.keep), await session.execute(cells.kept)]
    assert [result.status for result in kept] == ["ok", "ok"]
    assert [result.execution_count for result in kept] == [1, 2]
    assert kept[1].outputs[0]["data"]["text/plain"].split()[-1] == "42"
    assert text((await session.execute(cells.say)).outputs) == "hello\n"
    assert text((await session.execute(cells.warn)).outputs, "stderr").strip() == "careful"
    assert text((await session.execute(cells.many)).outputs) == "done  \n"
    assert text((await session.execute(cells.unicode)).outputs) == "Ω 🧬 ü\n"
    assert text((await session.execute(cells.cleared)).outputs) == "b\n"
    for code in (cells.fail, cells.broken):
        failed = await session.execute(code)
        assert (failed.status, failed.state_kept) == ("error", True)
        assert failed.outputs[-1]["output_type"] == "error"
    assert text((await session.execute(cells.is_kept)).outputs).strip() == "yes"


async def test_displays_and_plots_are_valid_outputs(opened, cells):
    session = await opened()
    for code, kinds in ((cells.html, {"text/html"}), (cells.table, {"text/html", "text/plain"})):
        result = await session.execute(code)
        assert result.status == "ok"
        assert kinds <= set(result.outputs[0]["data"])
    plot = await session.execute(cells.plot)
    assert [output["output_type"] for output in plot.outputs] == ["display_data"]
    assert base64.b64decode(plot.outputs[0]["data"]["image/png"]).startswith(b"\x89PNG")
    outputs = [nbformat.from_dict(output) for output in result.outputs + plot.outputs]
    nbformat.validate(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)]))


async def test_every_wait_ends_at_its_time_and_the_variables_tell_the_truth(opened, cells):
    session = await opened()
    for what, code in cells.waits.items():
        await session.execute(cells.keep)
        result = await session.execute(code, timeout=0.3)
        start = time.perf_counter()
        assert result.status == "timeout", what
        assert "0.3 s" in result.cause
        after = await session.execute(cells.is_kept, timeout=SOON_S)
        assert (text(after.outputs).strip() == "yes") is result.state_kept, what
        assert time.perf_counter() - start < SOON_S, what


async def test_what_ignores_the_interrupt_is_killed(opened, cells):
    session = await opened(grace_s=0.3)
    await session.execute(cells.keep)
    result = await session.execute(cells.deaf, timeout=0.3)
    assert (result.status, result.state_kept) == ("timeout", False)
    assert "ignored the interrupt" in result.cause
    assert "killed" in result.cause
    after = await session.execute(cells.is_kept, timeout=SOON_S)
    assert (after.status, text(after.outputs).strip(), after.execution_count) == ("ok", "no", 1)


async def test_every_death_is_told_with_its_cause_at_once(opened, cells):
    session = await opened()
    for cause, code in cells.deaths.items():
        await session.execute(cells.keep)
        start = time.perf_counter()
        result = await session.execute(code, timeout=30)
        assert time.perf_counter() - start < SOON_S
        assert (result.status, result.cause, result.state_kept, result.dropped_bytes) == ("dead", cause, False, 0)
        assert text((await session.execute(cells.is_kept)).outputs).strip() == "no"


async def test_a_kernel_that_was_stopped_is_killed_at_the_time_limit(opened, cells):
    session = await opened(grace_s=0.3)
    os.kill(on_host(session, int(text((await session.execute(cells.pid)).outputs))), signal.SIGSTOP)
    for _ in range(50):
        await session.interrupt()
    result = await session.execute(cells.say, timeout=0.3)
    assert (result.status, result.state_kept, result.outputs) == ("timeout", False, [])
    assert text((await session.execute(cells.say)).outputs) == "hello\n"


async def test_restart_keeps_files_and_nothing_else(opened, cells):
    session = await opened()
    await session.execute(cells.keep)
    await session.execute(cells.write)
    await session.restart()
    result = await session.execute(cells.is_kept)
    assert (text(result.outputs).strip(), result.execution_count, result.state_kept) == ("no", 1, True)
    assert await session.read("f.txt") == b"content"


async def test_cells_that_wait_are_not_lost_to_an_interrupt(opened, cells):
    session = await opened()
    running = asyncio.create_task(session.execute(cells.waits["computes"]))
    waiting = [asyncio.create_task(session.execute(cells.say)) for _ in range(4)]
    await asyncio.sleep(0.3)
    await session.interrupt()
    assert ((await running).status, (await running).cause) == ("error", "interrupted")
    assert [text(result.outputs) for result in await asyncio.gather(*waiting)] == ["hello\n"] * 4


async def test_cells_that_wait_are_not_lost_to_a_time_limit_or_a_death(opened, cells):
    session = await opened()
    codes = (cells.waits["computes"], cells.say, next(iter(cells.deaths.values())), cells.say)
    results = await asyncio.gather(*(session.execute(code, timeout=2) for code in codes))
    assert [result.status for result in results] == ["timeout", "ok", "dead", "ok"]
    assert text(results[1].outputs) == text(results[3].outputs) == "hello\n"


async def test_input_is_refused_with_an_error(opened, cells):
    session = await opened()
    result = await session.execute(cells.ask, timeout=20)
    assert (result.status, result.state_kept) == ("error", True)
    assert result.outputs[-1]["ename"] == "StdinNotImplementedError"
    assert text((await session.execute(cells.say)).outputs) == "hello\n"


async def test_endless_output_is_capped_as_it_arrives(opened, cells):
    session = await opened(output_bytes=100_000, grace_s=5)
    result = await session.execute(cells.endless, timeout=1)
    assert (result.status, result.state_kept) == ("timeout", True)
    assert result.dropped_bytes > 0
    assert len(str([output for output in result.outputs if output["output_type"] != "error"])) < 120_000
    assert text((await session.execute(cells.say)).outputs) == "hello\n"


async def test_one_huge_output_is_dropped_and_the_next_cells_are_heard(opened, cells):
    session = await opened()
    for code, size in ((cells.huge, 60_000_000), (cells.huge_text, 30_000_000)):
        result = await session.execute(code, timeout=60)
        assert (result.status, result.state_kept) == ("ok", True)
        assert result.dropped_bytes >= size
        assert len(str(result.outputs)) < 2 << 20
        assert text((await session.execute(cells.say)).outputs) == "hello\n"


async def test_seeds_hold_in_a_fresh_kernel(opened, cells):
    session = await opened()
    first = text((await session.execute(cells.draw)).outputs)
    await session.restart()
    assert text((await session.execute(cells.draw)).outputs) == first != ""


async def test_more_memory_than_allowed_is_an_error_that_names_the_limit(opened, cells):
    session = await opened(memory_bytes=3 << 30)
    result = await session.execute(cells.greedy)
    assert (result.status, result.state_kept) == ("error", True)
    assert "memory" in result.limit
    assert text((await session.execute(cells.say)).outputs) == "hello\n"
