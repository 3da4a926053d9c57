"""Limits of a session: they hold, what was hit is named, and nothing is named that was not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kernel_probes import alive, text

from nbagent_kernels import CellResult, Limits, SessionSpec, cgroups
from nbagent_kernels.exhaustion import LimitWatch

inside = pytest.mark.asyncio(loop_scope="module")
both = pytest.mark.parametrize("backend", ["local", "fork"])
grouped = pytest.mark.skipif(not cgroups.places(), reason="this system grants no control groups")


@inside
@both
async def test_memory_of_one_process(opened):
    session = await opened(memory_bytes=2 << 30)
    result = await session.execute("x = 1\nbytearray(3 << 30)")
    assert (result.status, result.limit, result.state_kept) == ("error", "memory: 2 GiB", True)
    result = await session.execute("import numpy\nnumpy.zeros(1 << 40)")
    assert (result.outputs[-1]["ename"][-11:], result.limit) == ("MemoryError", "memory: 2 GiB")
    assert (await session.execute("x")).limit == ""


@inside
@both
async def test_open_files_and_size_of_files(opened):
    session = await opened(open_files=128, file_bytes=1 << 20)
    result = await session.execute("held = [open('/dev/null') for _ in range(200)]")
    assert (result.status, result.limit) == ("error", "open files: 128")
    result = await session.execute("with open('big', 'wb') as file:\n    file.write(bytes(2 << 20))")
    assert (result.status, result.limit) == ("error", "size of a file: 1 MiB")
    assert (session.workdir / "big").stat().st_size <= 1 << 20


@inside
@both
async def test_limits_cannot_be_raised_again(opened):
    session = await opened(open_files=128)
    result = await session.execute("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))")
    assert result.outputs[-1]["ename"] == "ValueError"


@inside
@both
@grouped
async def test_processes_and_threads(opened):
    session = await opened(processes=40)
    result = await session.execute(
        "import subprocess, threading, time\nheld = []\ntry:\n"
        "    while len(held) < 100: held.append(subprocess.Popen(['sleep', '100']))\n"
        "except OSError as error: print(error.errno)\n"
        "print(len(held) < 40)\n[child.kill() for child in held]\n[child.wait() for child in held]"
    )
    assert text(result.outputs).split() == ["11", "True"]
    assert result.limit == "processes: 40"
    assert (await session.execute("subprocess.run(['true'])")).limit == ""


@inside
@both
@grouped
async def test_memory_of_all_processes_together(opened):
    session = await opened(memory_bytes=1200 << 20)
    result = await session.execute(
        "import subprocess, sys\ncode = 'import time; x = bytes([1]) * (500 << 20); time.sleep(20)'\n"
        "hog = [sys.executable, '-c', code]\nheld = [subprocess.Popen(hog) for _ in range(3)]\n"
        "import time\nwhile all(child.poll() is None for child in held): time.sleep(.05)\n"
        "print(sorted({child.poll() for child in held} - {None}))\n[child.kill() for child in held]",
        30,
    )
    # Which one goes is the system's choice; it may be the kernel itself.
    assert result.limit == "memory: 1.17 GiB"
    assert text(result.outputs) == "[-9]\n" or (result.status, result.cause) == ("dead", "out of memory")


@inside
@both
@grouped
async def test_a_kernel_that_ran_out_of_memory_is_said_to_have(opened):
    session, other = await opened(memory_bytes=None), await opened()
    for folder in session._workspace.groups:
        for name in ("memory.limit_in_bytes", "memory.max"):
            if Path(folder, name).exists():
                Path(folder, name).write_text(str(200 << 20))
    result = await session.execute("x = b'x' * (400 << 20)")
    assert (result.status, result.cause, result.state_kept) == ("dead", "out of memory", False)
    assert result.limit == ""  # none was set
    result = await other.execute("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert (result.status, result.cause, result.limit) == ("dead", "signal SIGKILL", "")


def test_only_a_limit_that_is_set_is_named():
    def ended(ename: str, evalue: str) -> CellResult:
        return CellResult([{"output_type": "error", "ename": ename, "evalue": evalue, "traceback": []}], "error", 0.1)

    none = LimitWatch(Limits(memory_bytes=None, open_files=None, file_bytes=None, processes=None), None)
    some = LimitWatch(Limits(), None)
    for ename, evalue, named in (
        ("MemoryError", "", "memory: 4 GiB"),
        ("OSError", "[Errno 24] Too many open files: 'x'", "open files: 1024"),
        ("OSError", "[Errno 27] File too large", "size of a file: 1 GiB"),
        ("BlockingIOError", "[Errno 11] Resource temporarily unavailable", ""),
        ("RuntimeError", "can't start new thread", ""),
        ("OSError", "[Errno 23] Too many open files in system", ""),
        ("ValueError", "no", ""),
    ):
        assert some.hit(ended(ename, evalue)) == named
        assert none.hit(ended(ename, evalue)) == ""


HOST = """
import asyncio, sys
from nbagent_kernels import SessionSpec, open_session
async def main():
    session = await open_session(SessionSpec(preload=()), sys.argv[1])
    await session.execute("import os, subprocess; subprocess.Popen(['sleep', '1000'], start_new_session=True, env={})")
    print(*session._workspace.groups, flush=True)
    await asyncio.sleep(1000)
asyncio.run(main())
"""


@both
@grouped
def test_a_killed_host_leaves_no_group(backend):
    host = subprocess.Popen([sys.executable, "-c", HOST, backend], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    groups = [Path(folder) for folder in host.stdout.readline().split()]
    members = {int(pid) for group in groups for pid in (group / "cgroup.procs").read_text().split()}
    assert groups
    assert len(members) >= 2  # the kernel, and what carries no sign of its session
    host.kill()
    host.wait()
    host.stdout.close()
    end = time.monotonic() + 10
    while time.monotonic() < end and any(group.parent.exists() for group in groups):
        time.sleep(0.02)
    assert not any(group.parent.exists() for group in groups)
    assert not any(map(alive, members))


@inside
@grouped
async def test_groups_of_dead_processes_are_removed_by_the_next():
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [place / f"{cgroups.PREFIX}{dead.pid}-1" for place in cgroups.places()]
    for folder in left:
        (folder / "s1").mkdir(parents=True)
    own = cgroups.own_folders.__wrapped__(f"{os.getpid()}-{cgroups.started(os.getpid())}")
    assert all(folder.exists() for folder in own)
    assert not any(folder.exists() for folder in left)


@inside
@both
@grouped
async def test_the_group_goes_with_the_session_and_what_is_in_it(opened):
    session = await opened(SessionSpec(preload=()))
    result = await session.execute(
        "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True, env={}).pid)"
    )
    groups = [Path(folder) for folder in session._workspace.groups]
    assert all(text(result.outputs).strip() in (group / "cgroup.procs").read_text().split() for group in groups)
    await session.close()
    assert not any(group.exists() for group in groups)
    assert not alive(int(text(result.outputs)))
