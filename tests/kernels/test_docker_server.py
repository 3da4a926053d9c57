"""The fork server in a container is out of reach of the code under its own uid; what is lost with it is told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from conftest import container
from kernel_probes import text
from test_docker import end_server, identity, inside

from nbagent_kernels import SessionSpec, open_session
from nbagent_kernels.container import OWNER_LABEL, labels
from nbagent_kernels.engineclient import client
from nbagent_kernels.errors import KernelStartError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]


@pytest.fixture
def backend():
    return "docker"


async def ours() -> set[str]:
    """The engine's ids of this process's containers: others may run these tests too."""
    owner = f"{OWNER_LABEL}={labels('tests')[OWNER_LABEL]}"
    found = await asyncio.to_thread(client().api.containers, all=True, filters={"label": owner})
    return {one["Id"] for one in found}


SIGNALS = """
import os, signal, time
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
time.sleep(0.5)
print(os.getppid(), open("/proc/1/stat").read().split()[2])
"""
REACH = """
import os
reached = []
for name in ("mem", "environ", "maps", "fd/0", "fd/1", "fd/2", "fd/3", "fd/4"):
    for flags in (os.O_RDONLY, os.O_WRONLY):
        try: os.open(f"/proc/1/{name}", flags)
        except OSError: continue
        reached.append((name, flags))
print(reached)
"""
ORPHANS = """
import os, time
for _ in range(20):
    if os.fork() == 0:
        os._exit(0) if os.fork() else time.sleep(0.1)
        os._exit(0)
    os.wait()
time.sleep(1)
print([pid for pid in os.listdir("/proc") if pid.isdigit() and open(f"/proc/{pid}/stat").read().split()[2] == "Z"])
"""


async def test_no_signal_stops_or_ends_it(opened):
    session = await opened()
    result = await session.execute(SIGNALS)
    assert (result.status, text(result.outputs)[:2]) == ("ok", "1 ")
    assert text(result.outputs).split()[1] in "SR"
    assert (await session.execute("while True: pass", timeout=0.3)).status == "timeout"
    assert await session.list() == []


async def test_its_memory_and_its_descriptors_cannot_be_opened(opened):
    session = await opened()
    result = await session.execute(REACH)
    assert text(result.outputs) == "[]\n"
    branch = await session.branch()
    assert text((await branch.execute("print(open('/proc/self/mem', 'r+b').writable())")).outputs) == "True\n"
    await branch.close()


async def test_nothing_reaches_the_engines_log(opened):
    session = await opened()
    server = inside(session).server
    assert server is not None
    places = [Path(f"/proc/{server.container.pid}/fd/{number}") for number in range(3)]
    try:
        assert {str(place.readlink()) for place in places} == {"/dev/null"}
    except PermissionError:
        pytest.skip("only root sees the descriptors of a process in a container")


async def test_it_waits_for_what_has_lost_its_parent(opened):
    session = await opened()
    result = await session.execute(ORPHANS)
    assert (result.status, text(result.outputs)) == ("ok", "[]\n")


async def test_two_calls_after_a_loss_make_one_container(opened):
    session = await opened()
    before = identity(session)
    cell = asyncio.create_task(session.execute("import time; time.sleep(60)"))
    await asyncio.sleep(0.3)
    end_server(session)
    assert (await cell).status == "dead"
    known = await ours()
    await asyncio.gather(session.list(), session.read("nothing"), session.execute("1"), return_exceptions=True)
    made = await ours() - known
    assert made == {identity(session)} != {before}
    await session.close()
    assert not made & await ours()


async def test_close_while_a_container_is_made_leaves_none(opened):
    session = await opened()
    cell = asyncio.create_task(session.execute("import time; time.sleep(60)"))
    await asyncio.sleep(0.3)
    end_server(session)
    assert (await cell).status == "dead"
    listing = asyncio.create_task(session.list())
    await asyncio.sleep(0.1)
    await session.close()
    await asyncio.wait([listing])
    listing.exception()
    assert identity(session) not in await ours()


STARVE = """
import os, time
child = os.fork()
if child == 0:
    held = []
    while True:
        file = os.memfd_create("held")
        held.append(file)
        os.posix_fallocate(file, 0, 32 << 20)
os.waitpid(child, 0)
time.sleep(1)
"""


async def test_what_starved_long_before_is_not_the_cause(opened):
    session = await opened(memory_bytes=256 << 20)
    result = await session.execute(STARVE)
    assert result.limit == "memory: 256 MiB"  # whatever of the session's was ended, its server was not
    await asyncio.sleep(2)
    assert (await session.execute("1")).status == "ok"
    cell = asyncio.create_task(session.execute("import time; time.sleep(60)"))
    await asyncio.sleep(0.3)
    end_server(session)
    assert "ended the sandbox's fork server" in (await cell).cause


async def test_a_container_that_ends_at_its_start_is_told_of_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("nbagent_kernels.container.kernel_files", lambda: tmp_path)
    with pytest.raises(KernelStartError, match=r"ended at its start, with status 1; it wrote: (?s:.)*forkserver\.py"):
        await open_session(SessionSpec(container=container("python"), preload=()), "docker")


async def test_a_server_that_answers_no_more_is_replaced(opened, monkeypatch):
    monkeypatch.setattr("nbagent_kernels.served.END_S", 1.0)
    session = await opened()
    before = identity(session)
    await asyncio.to_thread(client().api.pause, before)
    result = await session.execute("1", timeout=0.5)
    assert (result.status, result.state_kept) == ("timeout", False)
    assert (await session.execute("1")).status == "ok"
    assert identity(session) != before
