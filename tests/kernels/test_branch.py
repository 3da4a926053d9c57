"""Branches: a second session that continues from the live state of another."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from pathlib import Path

import pytest
from kernel_probes import alive, text

from nbagent_kernels import CannotBranch, Session
from nbagent_kernels.workspace import process_root

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def backend():
    return "fork"


async def told(session: Session, code: str, timeout: float | None = 20) -> str:
    """What a cell that must go well prints."""
    result = await session.execute(code, timeout)
    assert result.status == "ok", result
    return text(result.outputs).strip()


async def test_variables_go_along_and_part(opened, branched):
    parent = await opened()
    await told(parent, "data = {'a': [1, 2]}\ndef total(): return sum(data['a'])")
    child = await branched(parent)
    assert await told(child, "data['a'].append(3); print(total())") == "6"
    await told(parent, "data['a'].append(10)")
    assert (await told(parent, "print(total())"), await told(child, "print(total())")) == ("13", "6")
    assert child.spec == parent.spec


async def test_files_are_copied_and_part(opened, branched):
    parent = await opened()
    await told(parent, "import os\nos.makedirs('a/b'); open('a/b/f', 'w').write('old'); here = os.getcwd()")
    child = await branched(parent)
    assert child.workdir != parent.workdir
    await told(child, "open('a/b/f', 'w').write('child'); open('new', 'w').write('n')")
    assert (await parent.read("a/b/f"), await child.read("a/b/f")) == (b"old", b"child")
    assert [entry.path for entry in await parent.list()] == ["a"]
    await told(parent, "open('a/b/f', 'w').write('parent')")
    assert await child.read("a/b/f") == b"child"


async def test_places_are_the_branch_s_own(opened, branched):
    parent = await opened()
    await told(
        parent,
        "import os, sys, tempfile\nfrom pathlib import Path\nos.mkdir('sub'); os.chdir('sub')\n"
        "here, path = os.getcwd(), Path('x').resolve()\n"
        "files = {'all': [here + '/a', 'b', 3]}\nos.environ['MINE'] = 'kept'; sys.path.append(here)\n"
        "tempfile.gettempdir()",
    )
    child = await branched(parent)
    said = await told(
        child,
        "print(os.getcwd(), here, path, sys.path[-1], tempfile.gettempdir(), os.environ['HOME'], os.environ['TMPDIR'])",
    )
    folder = child.workdir.parent
    sub = str(child.workdir / "sub")
    assert said.split() == [sub, sub, f"{sub}/x", sub, f"{folder}/tmp", f"{folder}/home", f"{folder}/tmp"]
    assert await told(child, "print(os.environ['MINE'], *files['all'])") == f"kept {sub}/a b 3"
    assert await told(parent, "print(here, files['all'][0])") == "{0} {0}/a".format(parent.workdir / "sub")


async def test_open_files_are_the_branch_s_own_at_the_same_place(opened, branched):
    parent = await opened()
    await told(
        parent,
        "import os, tempfile\nopen('r', 'w').write('0123456789')\n"
        "reader = open('r'); _ = reader.read(3)\nraw = os.open('r', os.O_RDONLY); os.read(raw, 5); twin = os.dup(raw)\n"
        "log = open('log', 'a'); log.write('both ')\nout = open('out', 'w'); out.write('flushed '); out.flush()\n"
        "nameless = tempfile.TemporaryFile('w+'); nameless.write('n'); nameless.flush()\n"
        "gone = open('gone', 'w+'); gone.write('g'); gone.flush(); os.remove('gone')\n"
        "outside = os.open(os.__file__, os.O_RDONLY); os.read(outside, 3)",
    )
    child = await branched(parent)
    cell = (
        "log.write('{0}'); log.flush(); out.write('{0}'); out.flush()\n"
        "nameless.write('{0}'); nameless.seek(0); gone.write('{0}'); gone.seek(0)\n"
        "print(reader.read(2), os.read(raw, 2), os.read(twin, 2), os.read(outside, 4), nameless.read(), gone.read())"
    )
    seen = f"34 b'56' b'78' {Path(os.__file__).read_bytes()[3:7]} n{{0}} g{{0}}"
    assert await told(child, cell.format("child")) == seen.format("child")
    assert await told(parent, cell.format("parent")) == seen.format("parent")
    assert [await session.read(name) for session in (child, parent) for name in ("log", "out")] == [
        b"both child",
        b"flushed child",
        b"both parent",
        b"flushed parent",
    ]


async def test_mapped_files_and_shared_memory_are_the_branch_s_own(opened, branched):
    parent = await opened()
    await told(
        parent,
        "import mmap, numpy as np\nfrom multiprocessing import get_context\n"
        "written = np.memmap('m', dtype='i4', mode='w+', shape=5000); written[:] = 1; written.flush()\n"
        "shown = np.memmap('m', dtype='i4', mode='r')\nmemory = mmap.mmap(-1, 5000); memory[:3] = b'abc'\n"
        "lock = get_context('fork').Lock()",
    )
    child = await branched(parent)
    assert await told(child, "print(written[4999], shown[4999], memory[:3]); written[:] = 2; written.flush()") == (
        "1 1 b'abc'"
    )
    await told(child, "memory[:3] = b'def'; lock.acquire()")
    assert await told(parent, "print(written[0], shown[0], memory[:3], lock.acquire(timeout=1))") == "1 1 b'abc' True"
    assert await told(child, "print(shown[0], memory[:3])") == "2 b'def'"
    assert (await parent.read("m"))[:4] == b"\1\0\0\0"


async def test_links_holes_modes_and_what_is_no_file(opened, branched, tmp_path):
    (tmp_path / "outside").write_text("o")
    parent = await opened()
    await told(
        parent,
        "import os, socket\nopen('f', 'w').write('f'); os.chmod('f', 0o750); os.utime('f', (1, 2)); os.link('f', 'g')\n"
        f"os.symlink('f', 'near'); os.symlink(os.path.abspath('f'), 'far'); os.symlink({str(tmp_path)!r}, 'out')\n"
        "os.mkfifo('pipe'); s = socket.socket(socket.AF_UNIX); s.bind('s'); s.close()\n"
        "hole = open('hole', 'wb'); hole.truncate(1 << 29); hole.seek(1 << 28); hole.write(b'x' * 4096); hole.close()",
    )
    child = await branched(parent)
    work = child.workdir
    assert {path.name for path in work.iterdir()} == {"f", "g", "near", "far", "out", "hole"}
    assert [(work / name).readlink() for name in ("near", "far", "out")] == [Path("f"), work / "f", tmp_path]
    status = (work / "f").stat()
    assert (status.st_mode & 0o777, status.st_mtime, status.st_nlink) == (0o750, 2, 2)
    hole = (work / "hole").stat()
    assert (hole.st_size, hole.st_blocks) == (1 << 29, (parent.workdir / "hole").stat().st_blocks)


async def test_files_of_a_file_system_that_tells_no_holes_are_copied_whole(opened, branched, monkeypatch):
    parent = await opened()
    await told(parent, "f = open('f', 'wb'); f.truncate(1 << 22); f.seek(1 << 21); f.write(b'x' * 5000); f.close()")

    def seek(fd: int, at: int, whence: int) -> int:
        raise OSError(errno.EINVAL, "as gVisor has it")

    monkeypatch.setattr(os, "lseek", seek)
    child = await branched(parent)
    monkeypatch.undo()
    assert (child.workdir / "f").read_bytes() == bytes(1 << 21) + b"x" * 5000 + bytes((1 << 21) - 5000)


async def test_random_states_go_on_as_in_the_parent(opened, branched):
    parent = await opened()
    await told(parent, "import random, numpy as np\nrng = np.random.default_rng(5); random.random(); np.random.rand()")
    child = await branched(parent)
    draw = "print(random.random(), np.random.rand(), rng.random())"
    assert await told(child, draw) == await told(parent, draw)


async def test_the_counter_plots_errors_and_output_work_on(opened, branched):
    parent = await opened()
    await told(parent, "import matplotlib.pyplot as plt\ndef bad(): return 1 / 0")
    child = await branched(parent)
    plot = await child.execute("plt.plot([1, 2]);")
    assert plot.execution_count == 2
    assert "image/png" in plot.outputs[0]["data"]
    error = await child.execute("bad()")
    assert (error.status, error.outputs[0]["ename"]) == ("error", "ZeroDivisionError")
    assert "bad()" in "".join(error.outputs[0]["traceback"])
    assert set((await told(child, "import os, subprocess\nos.system('echo b')\nprint('c')")).split()) == {"b", "c"}
    assert (await parent.execute("1")).execution_count == 2


async def test_what_waits_on_the_loop_goes_on_in_both(opened, branched):
    parent = await opened()
    await told(parent, "import asyncio\ntask = asyncio.create_task(asyncio.sleep(0.2, 'slept'))")
    child = await branched(parent)
    assert [await told(session, "print(await task)") for session in (child, parent)] == ["slept", "slept"]


async def test_time_limits_and_interrupts_hit_one_of_them(opened, branched):
    parent = await opened()
    await told(parent, "import time\nx = 1")
    child = await branched(parent)
    waiting = asyncio.create_task(parent.execute("time.sleep(1.5); print('whole')"))
    for code in ("time.sleep(60)", "while True: pass", "await __import__('asyncio').sleep(60)"):
        result = await child.execute(code, timeout=0.2)
        assert (result.status, result.state_kept) == ("timeout", True)
    running = asyncio.create_task(child.execute("print('on', flush=True); time.sleep(60)"))
    await asyncio.sleep(0.2)
    await child.interrupt()
    assert (await running).outputs[-1]["ename"] == "KeyboardInterrupt"
    assert text((await waiting).outputs) == "whole\n"
    assert await told(child, "print(x)") == "1"


async def test_branches_of_branches_and_many_siblings(opened, branched):
    parent = await opened()
    await told(parent, "line = ['parent']")
    session = parent
    for depth in range(4):
        session = await branched(session)
        await told(session, f"line.append({depth})")
    assert await told(session, "print(line)") == "['parent', 0, 1, 2, 3]"
    siblings = await asyncio.gather(*(branched(parent) for _ in range(8)))
    said = await asyncio.gather(*(told(one, f"line.append({i}); print(line)") for i, one in enumerate(siblings)))
    assert said == [f"['parent', {i}]" for i in range(8)]
    assert await told(parent, "print(line)") == "['parent']"


@pytest.mark.parametrize("first", ["parent", "child"])
async def test_each_outlives_the_other(opened, branched, first):
    parent = await opened()
    await told(parent, "x = 1\nopen('f', 'w').write('f')")
    child = await branched(parent)
    ended, left = (parent, child) if first == "parent" else (child, parent)
    await ended.close()
    assert not ended.workdir.exists()
    assert await told(left, "print(x, open('f').read())") == "1 f"


@pytest.mark.parametrize("killed", ["parent", "child"])
async def test_a_death_is_one_s_own(opened, branched, killed):
    parent = await opened()
    await told(parent, "import os, subprocess\nx = 1")
    child = await branched(parent)
    ended, left = (parent, child) if killed == "parent" else (child, parent)
    detached = int(await told(ended, "print(subprocess.Popen(['sleep', '99'], start_new_session=True).pid)"))
    result = await ended.execute("os.kill(os.getpid(), 9)", timeout=10)
    assert (result.status, result.cause, result.state_kept) == ("dead", "signal SIGKILL", False)
    assert not alive(detached)
    assert await told(left, "print(x)") == "1"
    assert await told(ended, "import os\nprint('x' in globals(), os.getcwd())") == f"False {ended.workdir}"


async def test_the_server_s_death_is_everybody_s_and_told(opened, branched):
    parent = await opened()
    server = int(await told(parent, "import os\nprint(os.getppid())"))
    child = await branched(parent)
    assert int(await told(child, "print(os.getppid())")) == server
    running = asyncio.create_task(child.execute("import time\ntime.sleep(60)"))
    await asyncio.sleep(0.2)
    os.kill(server, signal.SIGKILL)
    start = time.monotonic()
    result = await running
    assert time.monotonic() - start < 2
    assert (result.status, result.state_kept) == ("dead", False)
    assert "fork server ended (signal SIGKILL)" in result.cause
    with pytest.raises(CannotBranch, match="the fork server ended"):
        await parent.branch()
    idle = await parent.execute("import os\nprint(os.getppid())")
    assert (idle.status, idle.state_kept) == ("ok", False)
    assert "fork server ended (signal SIGKILL)" in idle.cause
    assert text(idle.outputs).strip() == await told(child, "import os\nprint(os.getppid())") != str(server)


async def test_restart_in_a_branch_keeps_its_files(opened, branched):
    parent = await opened()
    await told(parent, "x = 1")
    child = await branched(parent)
    await told(child, "open('mine', 'w').write('m')")
    await child.restart()
    assert await told(child, "print('x' in globals(), open('mine').read())") == "False m"
    grandchild = await branched(child)
    assert await told(grandchild, "print(open('mine').read())") == "m"


async def test_nothing_is_left_behind(opened, branched):
    def left() -> tuple[int, set[str], set[int]]:
        folders = {path.name for path in process_root().iterdir()}
        children = {int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()}
        return len(list(Path("/proc/self/fd").iterdir())), folders, children

    parent = await opened()
    server = int(await told(parent, "import os\nprint(os.getppid())"))
    child = await branched(parent)  # opens what is opened once
    await child.close()
    own = "print(len(os.listdir('/proc/self/fd')), len(os.listdir('/proc/self/task')))"
    before, within = left(), await told(parent, own)
    for _ in range(3):
        child = await branched(parent)
        grandchild = await branched(child)
        assert await told(grandchild, own) == within
        await child.close()
        await grandchild.close()
    assert left() == before
    assert await told(parent, own) == within
