"""One hardened container: made, started, spoken to, removed. The engine's calls block and run in threads.

A container has no network, no capability, a read-only root, a uid of its own, and two sized tmpfs. It shares two
folders with the host, both read-only for it: the fork server's files, and one with a socket of the host's, to which the
fork server connects once. The engine's log takes what is written to it until the fork server is ready, before which
none but our own code runs. So nothing that an agent's code does can write to the host's disk.

The fork server is the container's first process: nothing inside can signal it, and with it the container ends.
"""

from __future__ import annotations

import asyncio
import compileall
import concurrent.futures
import contextlib
import functools
import itertools
import os
import secrets
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nbagent_kernels import engineclient
from nbagent_kernels.cgroups import started
from nbagent_kernels.engineclient import client, engine_errors, remove_container
from nbagent_kernels.environment import FIXED
from nbagent_kernels.errors import EngineFailed, EngineSilent, KernelStartError
from nbagent_kernels.forkhost import HASH_SEED, RUN
from nbagent_kernels.memory import containers
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.workspace import process_root

PYTHON = "/opt/venv/bin/python"
KERNEL_FILES, SOCKETS, WORK, DATA, WHEELS = "/nbagent", "/run/nbagent", "/work", "/data", "/wheels"
"""Places inside; the capsule is at DATA."""
SANDBOX_LABEL, RUN_LABEL = "nbagent.sandbox", "nbagent.run"
OWNER_LABEL, MACHINE_LABEL = "nbagent.owner", "nbagent.machine"
"""Labels of every container: that it is ours; the run; the process it belongs to, as PID-STARTED (cgroups.is_over says
whether that has ended), and what that pid counts on: the boot and the pid namespace."""
STARTS_AT_ONCE = 8
"""Containers being started at once: an engine that is asked for many gets slower for all."""
ENDED_S, POLL_S = 2.0, 0.02
"""Seconds for the engine to notice that a container has ended, and between two looks."""
LOOK_S = 0.5
"""Seconds between two looks whether a container that has not called yet is still there."""
OOM_S = 1.0
"""Seconds before its end in which the system must have killed for want of memory, for that to be the cause."""
KILLED = "137"
"""Exit status, as the engine has it, of what SIGKILL ended."""
SHM_BYTES = 64 << 20
FILES = ("forkserver.py", "forked*.py", "confine.py", "contained*.py", "filestream.py", "files.py", "removal.py")
ALSO = ("snapshot.py", "errors.py", "types.py")

_numbers = itertools.count(1)
_lock = threading.Lock()
_starting = concurrent.futures.ThreadPoolExecutor(STARTS_AT_ONCE, "nbagent-starts")
_ending = concurrent.futures.ThreadPoolExecutor(STARTS_AT_ONCE, "nbagent-ends")


class Container:
    """One container and the host's end of its control socket.

    Attributes:
        control: connected to the fork server inside.
        pid: the fork server's, in the host's namespace.
        id: the engine's.
    """

    def __init__(self, spec: SessionSpec, modules: tuple[str, ...]) -> None:
        if spec.container is None:
            raise KernelStartError("backend docker needs a container in the spec: SessionSpec(container=…)")
        self._spec, self._settings, self._modules = spec, spec.container, modules
        self.id = ""
        self._since = f"{time.time():.6f}"
        self.pid = 0
        self.control: socket.socket | None = None
        self._abandoned = threading.Event()
        self._making: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._making.set_result(None)
        self._folder = process_root() / f"c{next(_numbers)}"
        self._folder.mkdir(mode=0o755)
        self._folder.chmod(0o755)  # whatever the umask

    async def start(self) -> None:
        """Make it, start it and take the fork server's call; an engine that is restarted is waited for.

        Raises:
            KernelStartError: the engine refuses it, or it does not call.
            EngineFailed: no engine was there, or it went for good, or it went after the container was made.
        """
        try:
            await self._start()
        except BaseException:
            await self.remove()
            raise

    async def _start(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(str(self._folder / "s"))
            (self._folder / "s").chmod(0o666)
            door.listen(1)
            door.setblocking(False)
            await self._made()
            try:
                async with asyncio.timeout(self._spec.limits.start_s):
                    self.control = await self._called(door)
            except TimeoutError:
                said = await self.said()
                raise KernelStartError(
                    f"the sandbox did not answer within {self._spec.limits.start_s:g} s{said}"
                ) from None
        (self._folder / "s").unlink()
        peer = self.control.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid = struct.unpack("3i", peer)[0]
        containers[self.id] = self.pid, self._spec.limits.memory_bytes or 0

    async def _made(self) -> None:
        """Have the engine make and start it; waits here, where it holds no thread, for one that went silent."""
        silent_since = None
        while True:
            self._making = _starting.submit(self._create_and_start)
            try:
                return await asyncio.wrap_future(self._making)
            except EngineSilent:
                now = time.monotonic()
                silent_since = now if silent_since is None else silent_since
                if self.id or not engineclient.answered() or now > silent_since + engineclient.BACK_S:
                    raise
            engineclient.say_waiting()
            await asyncio.sleep(engineclient.KNOCK_S)

    async def _called(self, door: socket.socket) -> socket.socket:
        """The fork server's call. Raises KernelStartError where the container ends before it."""
        loop = asyncio.get_running_loop()
        call = asyncio.ensure_future(loop.sock_accept(door))
        try:
            while not (await asyncio.wait([call], timeout=LOOK_S))[0]:
                over = await loop.run_in_executor(_ending, self._over)
                if over and not call.done():
                    raise KernelStartError(f"the sandbox {over}{await self.said()}")
            return call.result()[0]
        finally:
            call.cancel()
            await asyncio.wait([call])

    async def why_ended(self, started: bool) -> str:
        """What became of it, in words; with what it wrote where it had not `started` yet.

        Raises EngineFailed where the engine, or somebody through it, ended it.
        """
        why = await asyncio.get_running_loop().run_in_executor(_ending, self._why_ended)
        return why if started else f"{why}{await self.said()}"

    async def said(self) -> str:
        """The end of what it wrote before it was ready."""
        return await asyncio.get_running_loop().run_in_executor(_ending, self._said)

    async def remove(self) -> None:
        """Kill it and remove it, with its folder on the host. Idempotent; goes on where the caller is cancelled."""
        self._abandoned.set()
        if self.control is not None:
            self.control.close()
        containers.pop(self.id, None)
        removed: concurrent.futures.Future[None] = concurrent.futures.Future()

        def remove(_: object) -> None:
            """In a thread, once nothing makes it any more."""
            try:
                _ending.submit(self._remove).add_done_callback(lambda _: removed.set_result(None))
            except RuntimeError:  # the interpreter ends and takes no more work
                self._remove()
                removed.set_result(None)

        self._making.add_done_callback(remove)
        await asyncio.shield(asyncio.wrap_future(removed))

    def _create_and_start(self) -> None:
        if self._abandoned.is_set():
            return
        name = f"nbagent-{secrets.token_hex(8)}"
        mounts = self._mounts()
        try:
            with engine_errors():
                api = client().api
                config = api.create_host_config(mounts=mounts, **self._host_config())
                self.id = api.create_container(name=name, host_config=config, **self._arguments())["Id"]
        except EngineSilent as error:
            if error.reached:
                engineclient.remember(name)
            raise
        _ending.submit(engineclient.make_good)
        if not self._abandoned.is_set():
            with engine_errors():
                api.start(self.id)

    def _arguments(self) -> dict[str, Any]:
        server = (f"{KERNEL_FILES}/forkserver.py", f"{SOCKETS}/s", "/tmp", ",".join(self._modules))
        return {
            "image": self._settings.image,
            "command": [PYTHON, "-c", RUN, *server],
            "user": ":".join([str((1 << 20) + secrets.randbelow(1 << 30))] * 2),
            "working_dir": WORK,
            "environment": {**FIXED, "HOME": "/tmp", "PYTHONHASHSEED": str(HASH_SEED)},
            "labels": labels(self._settings.run),
        }

    def _mounts(self) -> list[Mapping[str, Any]]:
        """What it shares with the host. Raises KernelStartError: a folder is not there, or ours cannot be made."""
        try:
            shared = {SOCKETS: self._folder, KERNEL_FILES: kernel_files()}
        except OSError as error:
            raise KernelStartError(f"the sandbox's files could not be made: {error}") from error
        given = {"capsule": (DATA, self._spec.capsule), "wheels": (WHEELS, self._settings.wheels)}
        for what, (inside, folder) in given.items():
            if folder is not None:
                if not folder.is_dir():
                    raise KernelStartError(f"{what} {folder}: there is no such folder")
                shared[inside] = folder.resolve()
        # A bind in the short form would make what is missing, as root.
        return [
            {"Type": "bind", "Source": str(folder), "Target": inside, "ReadOnly": True}
            for inside, folder in shared.items()
        ]

    def _host_config(self) -> dict[str, Any]:
        limits, settings = self._spec.limits, self._settings
        files = max(limits.open_files or 1 << 20, 4096)
        return {
            "network_mode": "none",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true", f"seccomp={settings.seccomp}"],
            "pids_limit": limits.processes,
            "mem_limit": limits.memory_bytes,
            "memswap_limit": limits.memory_bytes,
            "nano_cpus": int(settings.cpus * 1e9),
            "tmpfs": {WORK: tmpfs(settings.work_bytes), "/tmp": tmpfs(settings.tmp_bytes)},
            "shm_size": SHM_BYTES,
            "ulimits": [{"Name": "nofile", "Soft": files, "Hard": files}, {"Name": "core", "Soft": 0, "Hard": 0}],
            "ipc_mode": "private",
            "init": False,
            "runtime": settings.runtime,
            "log_config": {"Type": "local", "Config": {"max-size": "1m", "max-file": "1", "compress": "false"}},
        }

    def _why_ended(self) -> str:
        with engine_errors():
            late = time.monotonic() + ENDED_S
            while "die" not in (told := engineclient.events(self.id, self._since)) and time.monotonic() < late:
                time.sleep(POLL_S)
            if "die" in told and "oom" not in told:
                time.sleep(POLL_S)  # what was killed for want of memory may be told after what it meant
                told = engineclient.events(self.id, self._since)
            running = client().api.inspect_container(self.id)["State"]["Running"]
        # Code inside cannot make the engine send a signal, and an engine that saw no death was not there for it.
        if "kill" in told or not ("die" in told or running):
            raise EngineFailed("the Docker engine, or somebody through it, ended the sandbox")
        died, starved = told.get("die", {}), told.get("oom", {})
        killed = died.get("Actor", {}).get("Attributes", {}).get("exitCode") == KILLED
        # Of processes that ended for want of memory long before, the session has been told.
        if killed and starved and died["timeNano"] - starved["timeNano"] < OOM_S * 1e9:
            return "out of memory, which ended the whole sandbox"
        return "its code ended the sandbox's fork server"

    def _over(self) -> str:
        """How it has ended, in words; '' while it runs."""
        with engine_errors():
            state = client().api.inspect_container(self.id)["State"]
        return "" if state["Running"] else f"ended at its start, with status {state['ExitCode']}"

    def _said(self) -> str:
        with contextlib.suppress(Exception):
            words = client().api.logs(self.id, tail=20).decode("utf-8", "replace").strip()[-2000:]
            return f"; it wrote: {words}" if words else ""
        return ""

    def _remove(self) -> None:
        identity, self.id = self.id, ""
        if identity:
            remove_container(identity)
        shutil.rmtree(self._folder, ignore_errors=True)


def tmpfs(size: int) -> str:
    """Options of a tmpfs; files may be programs, as compiled packages are."""
    return f"rw,exec,nosuid,nodev,size={size},mode=1777"


@functools.cache
def machine() -> str:
    """What process ids count on: the boot of the machine and the pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def labels(run: str) -> dict[str, str]:
    """Labels of a container of this process."""
    owner = f"{os.getpid()}-{started(os.getpid())}"
    return {SANDBOX_LABEL: "session", RUN_LABEL: run, OWNER_LABEL: owner, MACHINE_LABEL: machine()}


def kernel_files() -> Path:
    """A folder with the fork server's files, which any user inside may read; made once per process."""
    folder = process_root() / "kernel"
    with _lock:
        if not folder.exists():
            made = Path(tempfile.mkdtemp(prefix="kernel.", dir=process_root()))
            try:
                for pattern in (*FILES, *ALSO):
                    for file in Path(__file__).parent.glob(pattern):
                        shutil.copyfile(file, made / file.name)
                        (made / file.name).chmod(0o644)
                compileall.compile_dir(made, quiet=2)  # of use where the image's Python is this one
                made.chmod(0o755)
                made.rename(folder)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
    return folder
