"""What code in a kernel tries, and does not get."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest
from kernel_probes import alive, text

from nbagent_kernels import SessionSpec
from nbagent_kernels.confine import landlock_abi
from nbagent_kernels.confinement import gaps

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(landlock_abi() < 6, reason="this system's Landlock has not all that is tested here"),
]
both = pytest.mark.parametrize("backend", ["local", "fork"])
namespaces = pytest.mark.skipif(landlock_abi() > 0 and bool(gaps()), reason="this system grants no namespaces")

TRY = """
def attempt(action):
    try:
        print('got', action())
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
REFUSED = {"EACCES", "EPERM", "EXDEV"}
"""EXDEV is Landlock's word for a link or a move across its borders."""


async def tried(session, *actions: str) -> list[str]:
    """What became of each expression: `got` and its value, or the error's symbol."""
    code = (
        TRY
        + "\nimport ctypes, errno, os, signal, socket, subprocess, sys\n"
        + "\n".join(f"attempt(lambda: {a})" for a in actions)
    )
    result = await session.execute(code, 30)
    assert result.status == "ok", result.outputs
    lines = text(result.outputs).splitlines()
    assert len(lines) == len(actions), lines
    return lines


@both
async def test_files_of_the_host_and_of_other_sessions(opened, tmp_path):
    (tmp_path / "secret").write_text("key")
    session, other = await opened(), await opened()
    await other.execute("open('mine', 'w').write('other')")
    with tempfile.NamedTemporaryFile(dir=Path.home(), prefix=".nbagent-test-") as hidden:
        refused = await tried(
            session,
            f"open({str(tmp_path / 'secret')!r}).read()",
            f"open({str(tmp_path / 'new')!r}, 'w')",
            f"open({str(tmp_path / 'secret')!r}, 'r+')",
            f"os.truncate({str(tmp_path / 'secret')!r}, 0)",
            f"os.remove({str(tmp_path / 'secret')!r})",
            f"os.rename({str(tmp_path / 'secret')!r}, 'stolen')",
            f"os.link({str(tmp_path / 'secret')!r}, 'linked')",
            f"os.symlink({str(tmp_path / 'secret')!r}, 'link') or open('link').read()",
            f"os.listdir({str(tmp_path)!r})",
            f"open({hidden.name!r}).read()",
            f"os.listdir({str(Path.home())!r})",
            f"open({str(other.workdir / 'mine')!r}).read()",
            f"os.listdir({str(other.workdir.parent.parent)!r})",
            f"open({str(session.workdir.parent / 'new')!r}, 'w')",
            "open('/etc/shadow').read()",
            "os.listdir('/etc/ssh')",
            "os.listdir('/')",
            "os.mkdir('/tmp/nbagent-outside')",
            "os.mkfifo('/var/tmp/nbagent-outside')",
        )
    assert set(refused) <= REFUSED
    assert (tmp_path / "secret").read_text() == "key"


@both
async def test_devices_and_kernel_settings(opened):
    session = await opened()
    disks = [
        f"open('/dev/{name}', 'rb').read(1)" for name in ("mem", "kmsg", "vda", "sda") if Path(f"/dev/{name}").exists()
    ]
    refused = await tried(
        session,
        *disks,
        "os.mknod('disk', 0o60600, os.makedev(254, 0))",
        "open('/proc/sys/kernel/hostname', 'w')",
        "open('/proc/self/oom_score_adj', 'w')",
        "open('/sys/kernel/mm/ksm/run', 'w')",
    )
    assert set(refused) <= REFUSED


@both
async def test_processes_outside_are_neither_signalled_nor_looked_into(opened, monkeypatch):
    monkeypatch.setenv("FAKE_API_KEY", "sk-outside")
    child = subprocess.Popen(["sleep", "1000"], env={**os.environ, "FAKE_API_KEY": "sk-outside"})
    try:
        session, other = await opened(), await opened()
        pid = int(text((await other.execute("import os; print(os.getpid())")).outputs))
        refused = []
        for target in (os.getpid(), child.pid, pid):
            refused += await tried(
                session,
                f"os.kill({target}, 0)",
                f"os.kill({target}, signal.SIGSTOP)",
                f"signal.pidfd_send_signal(os.pidfd_open({target}), 0)",
                f"open('/proc/{target}/environ').read()",
                f"open('/proc/{target}/mem', 'rb').read(1)",
                f"os.readlink('/proc/{target}/fd/0')",
                f"os.readlink('/proc/{target}/cwd')",
                f"open('/proc/{target}/root/etc/passwd').read()",
            )
        assert set(refused) <= REFUSED
        traced = await tried(session, f"ctypes.CDLL(None).ptrace(16, {child.pid}, None, None)")
        assert traced == ["got -1"]
        found = await session.execute(
            "import glob\nhits = []\nfor name in glob.glob('/proc/*/environ'):\n"
            "    try: hits += [name] if b'sk-' + b'outside' in open(name, 'rb').read() else []\n"
            "    except OSError: pass\nhits"
        )
        assert found.outputs[0]["data"]["text/plain"] == "[]"
        assert alive(child.pid)
    finally:
        child.kill()
        child.wait()


@both
async def test_signals_within_the_session_and_from_the_host_work(opened):
    session = await opened()
    result = await session.execute(
        "import os, signal, subprocess\nchild = subprocess.Popen(['sleep', '1000'])\n"
        "os.kill(child.pid, signal.SIGTERM)\nprint(child.wait())"
    )
    assert text(result.outputs) == "-15\n"
    result = await session.execute("import time; time.sleep(60)", 0.3)
    assert (result.status, result.state_kept) == ("timeout", True)


@both
@namespaces
async def test_the_network(opened):
    server = socket.create_server(("127.0.0.1", 0))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    datagrams.setblocking(False)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind(f"\0nbagent-test-{os.getpid()}")
    abstract.listen()
    try:
        session = await opened()
        (tcp, udp, far, name, raw) = await tried(
            session,
            f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)",
            f"socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {datagrams.getsockname()[1]}))",
            "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
            f"socket.socket(socket.AF_UNIX).connect('\\0nbagent-test-{os.getpid()}')",
            "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        )
        assert tcp == "ECONNREFUSED"
        assert udp == "got 1"
        with pytest.raises(BlockingIOError):  # it went into the session's own network
            datagrams.recv(1)
        assert far == "ENETUNREACH"
        assert name in ("ECONNREFUSED", "EPERM")
        assert raw == "EPERM"
        own = await session.execute(
            "import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
            "socket.create_connection(server.getsockname()).sendall(b'mine')\nserver.accept()[0].recv(4)"
        )
        assert own.outputs[0]["data"]["text/plain"] == "b'mine'"
    finally:
        for end in (server, datagrams, abstract):
            end.close()


@both
async def test_the_network_where_it_is_asked_for(opened):
    with socket.create_server(("127.0.0.1", 0)) as server:
        session = await opened(SessionSpec(preload=(), network=True))
        said = await tried(session, f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5).close()")
        assert said == ["got None"]


@both
@namespaces
async def test_shared_memory_and_terminals_are_the_sessions_own(opened):
    session, other = await opened(), await opened()
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="nbagent-test-"):
        await other.execute("open('/dev/shm/theirs', 'w').write('x')")
        result = await session.execute(
            "import multiprocessing, os, pty\n"
            "pool = multiprocessing.get_context('fork').Pool(2); print(pool.map(abs, [-1, -2])); pool.terminate()\n"
            "print([name for name in os.listdir('/dev/shm') if not name.startswith('sem.')])\n"
            "ends = os.openpty(); print(os.ttyname(ends[1])); print(os.readlink('/proc/self/ns/ipc'))"
        )
    assert result.status == "ok", result.outputs
    *said, queues = text(result.outputs).splitlines()
    assert said == ["[1, 2]", "[]", "/dev/pts/0"]
    assert queues != str(Path("/proc/self/ns/ipc").readlink())
    assert not Path("/dev/shm/theirs").exists()


@both
async def test_what_is_documented_as_not_covered(opened, tmp_path):
    (tmp_path / "secret").write_text("four")
    service = socket.socket(socket.AF_UNIX)
    service.bind(str(tmp_path / "service"))
    service.listen()
    try:
        session = await opened()
        said = await tried(
            session,
            f"os.stat({str(tmp_path / 'secret')!r}).st_size",
            f"os.chmod({str(tmp_path / 'secret')!r}, 0o640)",
            f"open('/proc/{os.getpid()}/cmdline').read() != ''",
            f"socket.socket(socket.AF_UNIX).connect({str(tmp_path / 'service')!r})",
            f"(libc := ctypes.CDLL(None)).inotify_add_watch(libc.inotify_init(), {os.fsencode(tmp_path)!r}, 256) > 0",
        )
    finally:
        service.close()
    assert said == ["got 4", "got None", "got True", "got None", "got True"]
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o640


@both
async def test_no_way_back(opened):
    session = await opened()
    status = await session.execute(
        "import subprocess\nprint(subprocess.run(['grep', '-E', 'CapEff|CapPrm|NoNewPrivs', '/proc/self/status'],"
        "capture_output=True, text=True).stdout)"
    )
    words = dict(line.split(":\t") for line in text(status.outputs).splitlines() if line)
    assert words["NoNewPrivs"] == "1"
    # Root keeps the power to read what is another user's (CAP_DAC_READ_SEARCH): Landlock decides what that is.
    assert int(words["CapEff"], 16) == int(words["CapPrm"], 16) == (4 if os.geteuid() == 0 else 0)
    libc = "ctypes.CDLL(None, use_errno=True)"
    said = await tried(
        session,
        f"{libc}.mount(b'none', b'/tmp', b'tmpfs', 0, None)",
        f"{libc}.umount2(b'/dev/shm', 2)",
        "subprocess.run(['unshare', '-Urm', 'cat', '/etc/shadow'], capture_output=True).returncode > 0",
    )
    assert said == ["got -1", "got -1", "got True"]


@pytest.mark.parametrize("backend", ["fork"])
async def test_a_branch_has_no_way_to_its_parents_files(opened):
    session = await opened()
    await session.execute("open('mine', 'w').write('parent')")
    branch = await session.branch()
    inner = await branch.branch()
    try:
        assert await tried(branch, "open('mine').read()") == ["got parent"]
        await branch.execute("open('mine', 'w').write('branch')")
        for child in (branch, inner):
            refused = await tried(
                child,
                f"open({str(session.workdir / 'mine')!r}).read()",
                f"open({str(session.workdir / 'new')!r}, 'w')",
                f"os.kill({await pid_of(session)}, 0)",
                "open('/etc/shadow').read()",
            )
            assert refused == ["EACCES", "EACCES", "EPERM", "EACCES"]
        assert await tried(inner, f"open({str(branch.workdir / 'mine')!r}).read()") == ["EACCES"]
        assert (session.workdir / "mine").read_text() == "parent"
        folder = branch.workdir.parent
        await branch.close()
        assert await tried(inner, "open('mine').read()") == ["got parent"]
        assert inner.workdir.exists()
    finally:
        await inner.close()
        await branch.close()
    assert not folder.exists()


@pytest.mark.parametrize("backend", ["fork"])
@pytest.mark.slow
async def test_branches_deeper_than_landlock_has_layers(opened):
    sessions = [await opened()]
    try:
        for _ in range(18):
            sessions.append(await sessions[-1].branch())
        said = await tried(sessions[-1], f"open({str(sessions[0].workdir / 'x')!r}, 'w')", "open('x', 'w').write('y')")
        assert said == ["EACCES", "got 1"]
    finally:
        for session in sessions:
            await session.close()


async def pid_of(session) -> int:
    return int(text((await session.execute("import os; print(os.getpid())")).outputs))
