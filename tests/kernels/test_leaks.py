"""After a thousand sessions there is nothing more than after ten; a hundred at once all come up."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections import Counter
from pathlib import Path

import pytest
from kernel_probes import text

from nbagent_kernels import SessionSpec, open_session
from nbagent_kernels.cgroups import own_folders
from nbagent_kernels.workspace import process_root

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
SPEC = SessionSpec(preload=())


def descendants(pid: int) -> list[int]:
    """Processes below one, zombies included."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *descendants(child)]
    return found


def descriptors(pid: int) -> Counter[str]:
    """How many descriptors of each kind a process holds."""
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[str(entry.readlink()).partition(":[")[0].partition("/")[0]] += 1
        except OSError:
            continue  # the descriptor of this very listing
    return found


def counted() -> dict[str, object]:
    """What this process has: processes with their descriptors, threads, tasks, folders, control groups."""
    gc.collect()
    there = descendants(os.getpid())
    return {
        "own descriptors": descriptors(os.getpid()),
        "descriptors of children": sum((descriptors(pid) for pid in there), Counter()),
        "processes": len(there),
        "threads": sum(not thread.name.startswith("asyncio_") for thread in threading.enumerate()),
        "tasks": len(asyncio.all_tasks()),
        "folders": sorted(path.name for path in process_root().rglob("*")),
        "groups": sum(len(list(folder.iterdir())) for folder in own_folders(process_root().name)),
    }


async def cycle(backend: str) -> None:
    session = await open_session(SPEC, backend)
    assert text((await session.execute("print(6 * 7)")).outputs) == "42\n"
    await session.close()


async def settled(wanted: dict[str, object]) -> dict[str, object]:
    """The counts, once they are as wanted or have had their time: a process may still be on its way out."""
    for _ in range(100):
        if (found := counted()) == wanted:
            break
        await asyncio.sleep(0.05)
    return found


@pytest.mark.parametrize(("backend", "cycles", "together"), [("fork", 1000, 8), ("local", 24, 4)])
async def test_nothing_is_left_behind(backend, cycles, together):
    await asyncio.gather(*(cycle(backend) for _ in range(together)))
    before = counted()
    for _ in range(cycles // together):
        await asyncio.gather(*(cycle(backend) for _ in range(together)))
    assert await settled(before) == before


async def test_a_hundred_sessions_at_once():
    before = counted()
    sessions = await asyncio.gather(*(open_session(SPEC, "fork") for _ in range(100)))
    results = await asyncio.gather(*(session.execute("import os; print(os.getcwd())") for session in sessions))
    assert [text(result.outputs).strip() for result in results] == [str(session.workdir) for session in sessions]
    await asyncio.gather(*(session.close() for session in sessions))
    assert (await settled(before))["processes"] == before["processes"]
    assert (await settled(before))["folders"] == before["folders"]
