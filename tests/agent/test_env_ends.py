"""How an environment begins and ends: host-side failures, resets, what stays outside the sandbox, leaks."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import psutil
import pytest

from nbagent.actions import action_format
from nbagent.env import brief_of
from nbagent.errors import InfrastructureError
from nbagent.tasks import Task
from nbagent_kernels.workspace import process_root

# One loop for the module, and with it one fork server.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_host_side_failure_is_raised_and_costs_no_step(task, opened):
    spoken_by_none = replace(task, language="cobol")
    async with opened(spoken_by_none, backend="local") as at:
        with pytest.raises(InfrastructureError, match="cobol"):
            await at.do("run_cell", code="1")
        assert at.env.steps_taken == 0
    async with opened(spoken_by_none, backend="local"):
        pass


async def test_reset_begins_anew(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="a = 1")
        await at.do("submit_answer", answer="5")
        await at.env.reset()
        assert (at.env.steps_taken, at.env.history, at.env.answer, at.env.verdict) == (0, [], None, None)
        assert "NameError" in await at.do("run_cell", code="a")
        assert [cell.id for cell in at.env.notebook.cells] == ["c1"]


async def test_neither_key_nor_verifier_is_in_the_sandbox(task, opened):
    task = Task("t1", "q", task.capsule, task.verifier, key="the-secret-key", reference=task.capsule / "a.csv")
    async with opened(task) as at:
        code = "import os, sys\nprint(dict(os.environ), sys.argv, list(globals()), os.listdir())"
        text = await at.do("run_cell", code=code)
        assert "the-secret-key" not in text
        assert "nbagent_bixbench" not in text
        assert "t1" not in str(at.env.brief)


async def test_the_capsule_is_never_written_to(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="open('a.csv', 'w').write('gone'); open('new', 'w').write('x')")
    assert sorted(path.name for path in task.capsule.iterdir()) == ["a.csv", "deep", "long.txt"]
    assert (task.capsule / "a.csv").read_text() == "x,y\n1,3\n"


def kernels():
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def folders():
    return set(process_root().iterdir())


@pytest.mark.parametrize("wait_s", [0.0, 0.005, 0.02])
async def test_closing_while_it_opens_leaks_nothing(task, wait_s, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="1")
    before, processes = folders(), len(kernels())
    async with opened(task):
        await asyncio.sleep(wait_s)
    assert (folders(), len(kernels())) == (before, processes)


async def test_a_cancelled_step_leaks_nothing(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="1")
    before, processes = folders(), len(kernels())
    async with opened(task) as at:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(at.do("run_cell", code="import time; time.sleep(60)"), 0.3)
    assert (folders(), len(kernels())) == (before, processes)


async def test_the_kernel_starts_while_the_model_thinks(task, opened):
    async with opened(task) as at:
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await at.do("run_cell", code="1")
        assert time.monotonic() - began < 0.5


async def test_on_backend_local(task, opened):
    async with opened(task, backend="local") as at:
        await at.do("run_cell", code="x = 3")
        assert await at.do("run_cell", code="x + 1") == "[c2]\n4"
        assert "exit code 3" in await at.do("run_cell", code="import os; os._exit(3)")
        assert "NameError" in await at.do("run_cell", code="x")
        assert (await at.do("list_dir")).startswith("a.csv (8 B)")
        await at.do("submit_answer", answer="4")
        assert at.reward == 1.0
    before = len(kernels())
    async with opened(task, backend="local"):
        await asyncio.sleep(0.2)
    assert len(kernels()) == before


async def test_a_language_without_a_kernel_is_the_hosts(task, opened):
    task = Task("t1", "q", task.capsule, task.verifier, language="klingon")
    async with opened(task, backend="local") as at:
        assert at.env.notebook.metadata.language_info.name == "klingon"
        with pytest.raises(InfrastructureError, match="klingon"):
            await at.do("run_cell", code="1")


async def test_the_brief_lists_at_most_fifty_files(task, tmp_path):
    many, empty = tmp_path / "many", tmp_path / "empty"
    many.mkdir()
    empty.mkdir()
    for number in range(60):
        (many / f"f{number:02}.csv").touch()
    brief = brief_of(Task("t", "Q?", many, task.verifier), action_format("fenced"))
    assert brief.task.startswith("Q?\nFiles: f00.csv, f01.csv, ")
    assert brief.task.endswith(", f49.csv, … and 10 more")
    assert brief_of(Task("t", "Q?", empty, task.verifier), action_format("fenced"), "Do it.").instruction == "Do it."
    assert brief_of(Task("t", "Q?", empty, task.verifier), action_format("fenced")).task == "Q?"
