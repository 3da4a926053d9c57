"""What is particular to backend `docker`: the container's end, whose doing it was, its files, and warm ones."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import container
from kernel_probes import alive, text

from nbagent_kernels import KernelPool, Limits, Session, SessionSpec, open_session
from nbagent_kernels.container import OWNER_LABEL
from nbagent_kernels.engineclient import client
from nbagent_kernels.errors import EngineFailed
from nbagent_kernels.filestream import Frames, receive_tree
from nbagent_kernels.live import LiveSession
from nbagent_kernels.memory import kernels_bytes
from nbagent_kernels.sandbox import Sandbox

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]


@pytest.fixture
def backend():
    return "docker"


def inside(session: Session) -> Sandbox:
    assert isinstance(session, LiveSession)
    assert isinstance(session._workspace, Sandbox)
    return session._workspace


def identity(session: Session) -> str:
    """The engine's id of a session's container."""
    server = inside(session).server
    assert server is not None
    return server.container.id


async def test_a_container_is_bounded_labelled_and_removed(opened):
    session = await opened(memory_bytes=1 << 30, processes=100)
    found = await asyncio.to_thread(client().api.inspect_container, identity(session))
    host, config = found["HostConfig"], found["Config"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (1 << 30, 1 << 30, 100)
    assert "no-new-privileges:true" in host["SecurityOpt"]
    assert not [mount for mount in found["Mounts"] if mount["RW"]]
    assert int(config["User"].partition(":")[0]) >= 1 << 20
    assert config["Labels"][OWNER_LABEL].startswith(f"{os.getpid()}-")
    assert (await session.execute("import os\nprint(os.getpid())")).status == "ok"
    name = identity(session)
    await session.close()
    assert name not in [entry["Id"] for entry in await asyncio.to_thread(client().api.containers, all=True)]


def end_server(session: Session) -> None:
    """End the fork server as only the host can: by a signal that does not come through the engine."""
    server = inside(session).server
    assert server is not None
    try:
        os.kill(server.container.pid, signal.SIGKILL)
    except PermissionError:
        pytest.skip("only root can signal a process in a container")


async def test_a_sandbox_whose_server_ended_gets_a_new_one(opened, tmp_path):
    capsule = tmp_path / "capsule"
    capsule.mkdir()
    (capsule / "a.csv").write_text("a\n")
    session = await opened(SessionSpec(preload=(), capsule=capsule))
    branch = await session.branch()
    await session.execute("x = 1; open('own', 'w').write('x')")
    before = identity(session)
    cell = asyncio.create_task(session.execute("import time; time.sleep(60)"))
    await asyncio.sleep(0.3)
    end_server(session)
    result = await cell
    assert (result.status, result.state_kept) == ("dead", False)
    assert "ended the sandbox's fork server" in result.cause
    assert [entry.path for entry in await session.list()] == ["a.csv"]
    after = await session.execute("'x' in globals()")
    assert (after.status, after.outputs[0]["data"]["text/plain"]) == ("ok", "False")
    assert identity(session) != before
    other = await branch.execute("print(1)")
    assert (other.status, other.state_kept) == ("ok", False)
    await branch.close()


async def test_what_the_engine_ended_is_the_hosts_failure(opened):
    session = await opened()
    cell = asyncio.create_task(session.execute("import time\ntime.sleep(60)"))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(client().api.kill, identity(session))
    with pytest.raises(EngineFailed):
        await cell
    assert (await session.execute("1")).status == "ok"


async def test_memory_is_bounded_for_all_together(opened):
    session = await opened(memory_bytes=1 << 30)
    result = await session.execute(
        "with open('filled', 'wb') as file:\n    for _ in range(60): file.write(b'0' * (10 << 20))\n"
        "held = bytearray(600 << 20)"
    )
    assert (result.status, result.cause, result.limit) == ("dead", "out of memory", "memory: 1 GiB")
    assert (await session.execute("import os\nprint(os.path.getsize('filled'))")).status == "ok"


async def test_links_lead_nowhere_and_large_capsule_files_are_shared(opened, tmp_path):
    capsule = tmp_path / "capsule"
    (capsule / "sub").mkdir(parents=True)
    (capsule / "sub" / "big").write_bytes(b"x" * (9 << 20))
    session = await opened(SessionSpec(preload=(), capsule=capsule))
    result = await session.execute(
        "import os\nprint(os.readlink('sub/big'), len(open('sub/big', 'rb').read()))\n"
        "os.symlink('/etc/passwd', 'out'); os.mkfifo('pipe'); open('own', 'w').write('own')\n"
        "try: open('sub/big', 'w')\nexcept OSError as error: print(error.strerror)"
    )
    assert text(result.outputs) == "/data/sub/big 9437184\nRead-only file system\n"
    with pytest.raises(PermissionError):
        await session.read("out")
    assert len(await session.read("sub/big", 100)) == 100
    assert await session.export(tmp_path / "copy") == (9 << 20) + 3
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*")) == ["big", "own", "sub"]
    with pytest.raises(OSError, match="larger"):
        await session.export(tmp_path / "small", max_bytes=100)


@pytest.mark.parametrize(
    "entries",
    [
        [{"kind": "file", "name": "../x"}],
        [{"kind": "folder", "name": ".."}],
        [{"kind": "link", "name": "x", "to": "/etc"}],
        [{"kind": "file", "name": "a\0b"}],
        [{"kind": "device", "name": "x"}],
        [{"kind": "folder"}],
        [{"kind": "folder", "name": "d"}] * 300,
        [{"kind": "error", "type": "SystemExit", "args": ["x"]}],
    ],
)
async def test_a_tree_that_is_none_is_refused(entries, tmp_path):
    ours, theirs = socket.socketpair()
    host, sandbox = Frames(ours), Frames(theirs)

    def send() -> None:
        with contextlib.suppress(OSError):
            for entry in entries:
                sandbox.say(entry)
        sandbox.close()

    sender = threading.Thread(target=send)
    sender.start()
    folder = tmp_path / "in"
    folder.mkdir()
    target = os.open(folder, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match=r"."):
            receive_tree(host, target, 1000, links=False)
    finally:
        os.close(target)
        host.close()
        sender.join()
    assert list(tmp_path.iterdir()) == [folder]


async def test_a_warm_container_takes_capsule_and_seed(tmp_path):
    capsule = tmp_path / "capsule"
    capsule.mkdir()
    (capsule / "a.csv").write_text("a\n")
    spec = SessionSpec(container=container("python"), preload=("json",))
    draw = "import os, random\n(os.listdir(), random.random())"
    async with KernelPool(2, warm=1, backend="docker", spec=spec) as pool:
        while (await pool.health()).warm < 1:
            await asyncio.sleep(0.05)
        warm = await pool.acquire(replace(spec, seed=7, capsule=capsule))
        cold = await open_session(replace(spec, seed=7, capsule=capsule), "docker")
        drawn = [(await session.execute(draw)).outputs[0]["data"]["text/plain"] for session in (warm, cold)]
        await cold.close()
        assert drawn[0] == drawn[1]
        assert "a.csv" in drawn[0]


READ_FRESH = """
import os, sys
left = 200 << 20
for folder, _, names in os.walk(sys.prefix):
    for name in names:
        if os.path.islink(os.path.join(folder, name)):
            continue
        file = os.open(os.path.join(folder, name), os.O_RDONLY)
        size = os.fstat(file).st_size
        if size > 1 << 20 and left > 0:
            left -= size
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            for _ in range(2):  # twice, so that its pages count as being in use
                os.lseek(file, 0, 0)
                while os.read(file, 1 << 20):
                    pass
        os.close(file)
assert left <= 0
"""


async def test_a_pool_counts_what_containers_take(monkeypatch):
    spec = SessionSpec(container=container("python"), preload=(), limits=Limits(memory_bytes=1 << 30))

    async def taken() -> int:
        """Less the fork servers that other tests left for those after them."""
        everything = (await pool.health()).kernels_bytes
        with monkeypatch.context() as without:
            without.setattr("nbagent_kernels.memory.containers", {})
            return everything - kernels_bytes()

    async with KernelPool(1, backend="docker", spec=spec) as pool:
        session = await pool.acquire()
        before = await taken()
        assert 5 << 20 < before < 200 << 20
        await session.execute("held = b'x' * (150 << 20)\nwith open('f', 'wb') as f: f.write(held)")
        held = await taken()
        assert 295 << 20 < held - before < 350 << 20
        # Files of the image that are read for the first time count in the container's group, until somebody needs room.
        assert (await session.execute(READ_FRESH)).status == "ok"
        assert abs(await taken() - held) < 40 << 20
        monkeypatch.setattr("nbagent_kernels.cgroups.MOUNT", Path("/nowhere"))
        assert abs(await taken() - (1 << 30)) < 1 << 20
    assert await taken() < 1 << 20


HOST = """
import asyncio, sys
from nbagent_images import profile
from nbagent_kernels import SessionSpec, open_session
from nbagent_kernels.types import ContainerSettings

async def main():
    settings = ContainerSettings(sys.argv[1], profile(), run="tests")
    session = await open_session(SessionSpec(container=settings), "docker")
    result = await session.execute("import os\\nopen('f', 'w').write('x' * 9)\\nprint(os.getuid() >= 1 << 20)")
    branch = await session.branch()
    files = await branch.read("f"), [entry.path for entry in await session.list()]
    print(session._workspace.server.container.pid, result.outputs[0]["text"].strip(), *files, flush=True)
    if len(sys.argv) > 2:
        await asyncio.sleep(600)
    await branch.close()
    await session.close()

asyncio.run(main())
"""


async def test_a_killed_host_leaves_no_process():
    settings = container("python")
    command = [sys.executable, "-c", HOST, settings.image, "stay"]
    host = await asyncio.to_thread(subprocess.Popen, command, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    pid = int((await asyncio.to_thread(host.stdout.readline)).split()[0])
    assert alive(pid)
    host.send_signal(signal.SIGKILL)
    await asyncio.to_thread(host.wait)
    host.stdout.close()
    for _ in range(200):
        if not alive(pid):
            break
        await asyncio.sleep(0.05)
    assert not alive(pid)


@pytest.fixture
def member(tmp_path):
    """Runs Python as a user who is in the group docker and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, pwd.getpwnam("nobody").pw_uid, -1)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    # Root's own folder is nobody else's: in a mount namespace another one lies there, with the interpreter in it.
    steps = [f"mkdir {tmp_path}/python", f"mount --bind {sys.base_prefix} {tmp_path}/python"]
    steps += ["mount -t tmpfs -o mode=755 none /root", f"mkdir -p {sys.base_prefix}"]
    steps += [f"mount --bind {tmp_path}/python {sys.base_prefix}"]
    docker = grp.getgrnam("docker").gr_gid
    if Path("/var/run/docker.sock").stat().st_gid != docker:
        pytest.skip("the engine's socket is not the group docker's: it was started with another --group")
    groups = f"--reuid=nobody --regid=nogroup --groups={docker}"
    steps = (steps if sys.base_prefix.startswith("/root/") else []) + [f'exec setpriv {groups} "$@"']

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-m", "sh", "-c", " && ".join(steps), "sh", sys.executable, *arguments],
            env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home)},
            cwd="/",
            capture_output=True,
            text=True,
        )

    return run


async def test_a_user_of_the_group_docker_needs_no_root(member):
    done = await asyncio.to_thread(member, "-c", HOST, container("python").image)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[1:] == ["True", "b'xxxxxxxxx'", "['f']"]


@pytest.mark.slow
async def test_such_a_user_has_the_whole_contract(member):
    contract = Path(__file__).with_name("test_conformance.py")
    done = await asyncio.to_thread(
        member, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(contract), "-k", "docker and not branch"
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed, 1 skipped, " in done.stdout, done.stdout  # what this user cannot do is to signal a kernel
