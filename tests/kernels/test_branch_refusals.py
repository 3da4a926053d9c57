"""What cannot be branched is refused with a plain reason, and the session goes on; replay is the other way."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from kernel_probes import text

from nbagent_kernels import CannotBranch, Session, fork, snapshot
from nbagent_kernels.fake import FakeSession
from nbagent_kernels.types import CellResult

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def backend():
    return "fork"


OBSTACLES = {
    "the thread 'worker' is running": (
        "import threading\nstop = threading.Event()\nthread = threading.Thread(target=stop.wait, name='worker')\n"
        "thread.start()",
        "stop.set(); thread.join()",
    ),
    r"the process 'sleep 98' \(pid \d+\) is running": (
        "import subprocess\nprocess = subprocess.Popen(['sleep', '98'])",
        "process.kill()",
    ),
    "a network connection is open": (
        "import socket\nsock = socket.socket(); sock.bind(('127.0.0.1', 0))",
        "sock.close()",
    ),
    "the SQLite database 'd.db' is open; close the connection first": (
        "import sqlite3\nbase = sqlite3.connect('d.db'); base.execute('create table t (x)'); base.commit()",
        "base.close()",
    ),
    "the file 'm' is mapped copy-on-write": (
        "import numpy as np\nopen('m', 'wb').write(bytes(8192)); a = np.memmap('m', mode='c')",
        "del a",
    ),
    "memory is shared with other processes through /dev/shm/": (
        "import mmap, os\nname = f'/dev/shm/nbagent-{os.getpid()}'\nwith open(name, 'w+b') as file:\n"
        "    file.truncate(4096); memory = mmap.mmap(file.fileno(), 4096)",
        "memory.close(); os.remove(name)",
    ),
    "a cell is running": (
        # Nobody waits for what an earlier cell left on the loop, but a cell of the kernel's own counts.
        "import asyncio, types\nservice = asyncio.get_running_loop()._selector.get_map()\n"
        "service = next(key.data[0]._callback.__self__ for key in service.values()\n"
        "               if type(getattr(key.data[0]._callback, '__self__', None)).__name__ == 'Service')\n"
        "service.running.add(1)",
        "service.running.discard(1)",
    ),
}


@pytest.mark.parametrize("why", OBSTACLES)
async def test_what_cannot_be_forked_is_named(opened, branched, why):
    session = await opened()
    make, unmake = OBSTACLES[why]
    assert (await session.execute(f"x = 1\n{make}")).status == "ok"
    for _ in range(2):
        with pytest.raises(CannotBranch, match=why):
            await session.branch()
    assert (await session.execute(unmake)).status == "ok"
    child = await branched(session)
    assert text((await child.execute("print(x)")).outputs) == "1\n"


async def test_tqdm_s_monitor_is_no_obstacle(opened, branched):
    session = await opened()
    cell = "import sys\nfrom tqdm import tqdm\nfor i in tqdm(range(3), file=sys.stdout): pass"
    assert (await session.execute(cell)).status == "ok"
    child = await branched(session)
    for one in (child, session):
        assert "3/3" in text((await one.execute(cell)).outputs)


async def test_a_fork_that_hangs_is_ended_and_told(opened):
    session = await opened()
    code = "import os, time\nx = hang = 1\nos.register_at_fork(after_in_child=lambda: hang and time.sleep(99))"
    assert (await session.execute(code)).status == "ok"
    start = time.monotonic()
    with pytest.raises(CannotBranch, match="did not fork within 2 s"):
        await session.branch()
    assert time.monotonic() - start < 5
    assert text((await session.execute("hang = False\nprint(x)", timeout=5)).outputs) == "1\n"
    await (await session.branch()).close()


async def test_a_branch_that_dies_is_told_with_its_last_words(opened):
    session = await opened()
    code = (
        "import os, sys\nhere = os.getpid()\nclass Bad(str):\n    def startswith(self, *_):\n"
        "        if os.getpid() != here:\n            os.write(2, b'last words')\n            {end}\n"
        "        return False\nsys.path.append(Bad('bad'))"
    )
    for end, told in (("os._exit(3)", "exit code 3"), ("raise ValueError('no')", "(?s)ValueError: no.*: last words$")):
        assert (await session.execute(code.format(end=end))).status == "ok"
        with pytest.raises(CannotBranch, match=told):
            await session.branch()
        assert (await session.execute("_ = sys.path.pop()")).outputs == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_kernel_lost_or_stopped_between_cells(opened, number):
    session = await opened()
    pid = int(text((await session.execute("import os\nx = 1\nprint(os.getpid())")).outputs))
    os.kill(pid, number)
    with pytest.raises(CannotBranch, match=r"signal SIGKILL|did not fork within 2 s"):
        await session.branch()
    if number == signal.SIGSTOP:
        os.kill(pid, signal.SIGCONT)
    result = await session.execute("'x' in globals()", timeout=10)
    kept = number == signal.SIGSTOP
    assert (result.outputs[0]["data"]["text/plain"], result.state_kept) == (str(kept), kept)


async def test_a_parent_closed_or_a_caller_gone_meanwhile(opened, monkeypatch):
    copying = asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow(*args: object) -> None:
        loop.call_soon_threadsafe(copying.set)
        time.sleep(0.5)

    monkeypatch.setattr(fork, "copy_session", slow)
    one, other = await opened(), await opened()
    gone = asyncio.create_task(one.branch())
    await copying.wait()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert (await one.execute("1", timeout=5)).status == "ok"
    copying.clear()
    ending = asyncio.create_task(other.branch())
    await copying.wait()
    await other.close()
    with pytest.raises(CannotBranch):
        await ending


async def test_files_that_are_too_many_bytes_or_too_deep(opened, monkeypatch):
    session = await opened()
    assert (await session.execute("open('big', 'wb').write(bytes(1 << 21))")).status == "ok"
    monkeypatch.setattr(snapshot.copy_session, "__defaults__", (1 << 20,))
    with pytest.raises(CannotBranch, match=r"hold more than 0\.000976562 GiB|hold more than 0\.0009"):
        await session.branch()
    monkeypatch.undo()
    deep = "import os\nhere = os.getcwd()\nfor _ in range(300):\n    os.mkdir('d'); os.chdir('d')\nos.chdir(here)"
    assert (await session.execute(deep)).status == "ok"
    with pytest.raises(CannotBranch, match="nested more than 200 deep"):
        await session.branch()
    assert (await session.execute("1")).status == "ok"


async def test_the_fake_branches_too():
    fake = FakeSession(lambda code: CellResult([], "ok", 0.0, execution_count=1))
    await fake.execute("1")
    (fake.workdir / "f").write_text("f")
    child = await fake.branch()
    assert isinstance(child, Session)
    assert (child.cells, await child.read("f")) == (["1"], b"f")
    await fake.close()
    await child.close()
