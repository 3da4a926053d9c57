"""Backend `docker`: kernels forked inside a hardened container, one container for each root session.

A session's branches are further kernels of the same fork server, in the same container and under the same uid: they are
kept from the host and from other sessions, not from each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from nbagent_kernels.capsule import entries, quickly_copied, shareable
from nbagent_kernels.container import DATA, WORK, Container
from nbagent_kernels.containerserver import ContainerServer
from nbagent_kernels.errors import KernelError, KernelStartError, SessionClosed
from nbagent_kernels.files import LISTED
from nbagent_kernels.filestream import Frames, receive_tree, send_file
from nbagent_kernels.leftovers import clear_in_background
from nbagent_kernels.live import Backend, LiveSession
from nbagent_kernels.spawned import spawn
from nbagent_kernels.types import FileEntry, SessionSpec
from nbagent_kernels.wire import Wire
from nbagent_kernels.workspace import BRANCHES, HOME, TMP, Workspace, next_number

ROOT = Path(WORK, "1")
"""Folder of a session that is no branch."""
READ_BYTES = 1 << 20
SERVER_START_S = 120.0
"""Seconds that a fork server may take to import what the spec names."""


async def open_docker(spec: SessionSpec) -> LiveSession:
    """Open a session in a container of its own.

    Raises:
        EngineFailed: there is no engine, or it refuses.
        KernelStartError: no kernel came up.
    """
    clear_in_background()
    return await LiveSession(spec, BACKEND).open()


class Sandbox(Workspace):
    """A session's folders in a container, which it has alone or shares with the session it branched off from."""

    def __init__(self, within: Workspace | None = None) -> None:
        self.number = next_number()
        self.folder = ROOT if within is None else Path(WORK, f"b{self.number}")
        self.work, self.home, self.tmp = (self.folder / name for name in ("work", HOME, TMP))
        self.writable = (self.work, self.home, self.tmp, self.folder / BRANCHES)
        self.shared: tuple[Path, ...] = ()
        self.group = None
        self.server: ContainerServer | None = None
        """The fork server in the container; None before the start."""
        self._spec = SessionSpec()
        self._starting = asyncio.Lock()
        """Held while a container is made, and at the end: two calls after a loss would make two."""
        self._removed = False
        self._sharing = [self]
        if isinstance(within, Sandbox):
            self.server, self.shared, self._sharing = within.server, within.shared, within._sharing
            self.group = within.group
            self._sharing.append(self)

    @property
    def groups(self) -> Sequence[str]:
        """None that a kernel must be put into: it is in the container's from its begin."""
        return ()

    def oom_kills(self) -> int:
        """Out-of-memory kills in the container so far."""
        return self.group.oom_kills() if self.group is not None else 0

    async def running(self, spec: SessionSpec) -> ContainerServer:
        """The fork server; in a new container, with the capsule as it was, where there is none. Raises KernelError."""
        self._spec = spec
        async with self._starting:
            if self._removed:
                raise SessionClosed("the session is closed; open another one")
            if self.server is None or self.server.ended:
                await self._begin(spec)
            assert self.server is not None
            return self.server

    async def _begin(self, spec: SessionSpec) -> None:
        await self.leave()
        container = Container(spec, tuple(spec.preload or ()))
        await container.start()
        self.server = ContainerServer(container)
        self.group = self.server.counters
        self._sharing = [self]
        try:
            await self.server.ready(spec.limits.start_s if not spec.preload else SERVER_START_S)
            await self.fill(spec.capsule, share=True)
        except BaseException:
            await self.server.end()
            raise

    async def fill(self, capsule: Path | None, share: bool = False) -> None:
        """Put the capsule's content into the working directory; with `share`, large files as links to the capsule.

        Raises KernelStartError.
        """
        assert self.server is not None
        self._spec = replace(self._spec, capsule=capsule)
        shared: list[Path] = []

        def send(frames: Frames) -> None:
            """The capsule, entry by entry."""
            try:
                send_entries(frames)
                frames.say({"kind": "end"})
            except BrokenPipeError:
                pass  # what it says then is why it takes no more
            frames.hear()

        def send_entries(frames: Frames) -> None:
            """Large files that anybody may read as links."""
            for entry in entries(capsule) if capsule is not None else ():
                kind, name, source = entry
                if kind != "file":
                    frames.say({"kind": kind, "name": name})
                elif share and capsule is not None and shareable(entry, capsule):
                    inside = PurePosixPath(DATA, os.path.relpath(source, os.path.realpath(capsule)))
                    frames.say({"kind": "link", "name": name, "to": str(inside)})
                    shared.append(Path(inside))
                else:
                    with open(source, "rb") as file:  # noqa: PTH123
                        send_file(frames, name, iter(lambda: file.read(READ_BYTES), b""))

        try:
            await self.server.files({"verb": "make", "folder": str(self.folder)}, send)
        except OSError as error:
            if error.strerror == os.strerror(errno.ENOSPC) or self.oom_kills():
                raise KernelStartError(self._too_small(capsule)) from error
            raise KernelStartError(f"capsule {capsule}: {error.strerror or error}") from error
        self.shared = tuple(shared)

    def _too_small(self, capsule: Path | None) -> str:
        settings, memory = self._spec.container, self._spec.limits.memory_bytes
        work = settings.work_bytes if settings is not None else 0
        return (
            f"capsule {capsule}: it does not fit into a sandbox with {work >> 20} MiB of files and "
            f"{(memory or 0) >> 20 or 'unbounded'} MiB of memory, in which files count; give it more (nbagent: "
            "--backend docker,work=GIB,memory=GIB), or let anybody read it (chmod -R o+rX), then big files stay outside"
        )

    async def list(self, path: str) -> list[FileEntry]:
        """See Session.list."""

        def take(frames: Frames) -> list[FileEntry]:
            """The entries."""
            return [listed(*entry) for entry in frames.hear()["entries"][:LISTED]]

        return await (await self._server()).files({**self._request("list"), "path": path}, take)

    async def read(self, path: str, max_bytes: int) -> bytes:
        """See Session.read."""

        def take(frames: Frames) -> bytes:
            """The content, part by part."""
            frames.hear()
            content = bytearray()
            while (chunk := frames.receive()) and len(content) <= max_bytes:
                content += chunk
            return bytes(content[:max_bytes])

        return await (await self._server()).files({**self._request("read"), "path": path, "max_bytes": max_bytes}, take)

    async def export(self, dest: Path, max_bytes: int) -> int:
        """See Session.export."""

        def take(frames: Frames) -> int:
            """The tree, made in `dest`."""
            dest.mkdir(parents=True, exist_ok=True)
            target = os.open(dest, os.O_RDONLY | os.O_DIRECTORY)
            try:
                return receive_tree(frames, target, max_bytes, links=False)
            finally:
                os.close(target)

        return await (await self._server()).files({**self._request("export"), "max_bytes": max_bytes}, take)

    async def remove(self) -> None:
        """Remove the folders; the container when no session is in it any more."""
        if self.server is not None and not self.server.ended and len(self._sharing) > 1 and self.folder != ROOT:
            with contextlib.suppress(OSError):  # it ends with the container at the latest
                await self.server.files(self._request("remove"), Frames.hear)
        async with self._starting:
            self._removed = True
            await self.leave()

    async def give_up(self, server: ContainerServer | None) -> None:
        """Have no part in this server's container any more; the next kernel begins in a new one."""
        async with self._starting:
            if self.server is server:
                await self.leave()
                self.server = None

    async def leave(self) -> None:
        """Have no part in the container any more; the last one ends it."""
        if self in self._sharing:
            self._sharing.remove(self)
        if self.server is not None and not self._sharing:
            await self.server.end()

    def takes(self, capsule: Path | None) -> bool:
        """Small ones."""
        return quickly_copied(capsule)

    @property
    def failure(self) -> KernelError | None:
        """Why the container ended, where that was the engine's doing."""
        return self.server.failed if self.server is not None else None

    def _request(self, verb: str) -> dict[str, object]:
        return {"verb": verb, "folder": str(self.folder), "shared": [str(path) for path in self.shared]}

    async def _server(self) -> ContainerServer:
        """A fork server that lives: code that ended its own gets a new one, with the capsule as it was."""
        if self.failure is not None:
            raise self.failure
        return await self.running(self._spec)


def listed(name: object, size: object, is_dir: object) -> FileEntry:
    """An entry of a folder as a sandbox says it. Raises ValueError: no file has such a name or size."""
    if type(name) is not str or type(size) is not int or not 0 <= size < 1 << 63:
        raise ValueError(f"an entry that is none: {str(name)[:40]!r}")
    return FileEntry(name.encode("utf-8", "replace").decode(), size, bool(is_dir))


async def _prepare(spec: SessionSpec, workspace: Workspace) -> None:
    assert isinstance(workspace, Sandbox)
    await workspace.running(spec)


async def _bound(spec: SessionSpec, workspace: Workspace) -> None:
    """The container bounds its branches too."""


async def _start(spec: SessionSpec, workspace: Workspace) -> Wire:
    assert isinstance(workspace, Sandbox)
    server = workspace.server
    try:
        return await _kernel(spec, workspace)
    except KernelStartError:
        if server is None or server is not workspace.server:
            raise
        # What cells left in there, such as processes up to the limit, keeps new kernels from starting.
        await workspace.give_up(server)
        return await _kernel(spec, workspace)


async def _kernel(spec: SessionSpec, workspace: Sandbox) -> Wire:
    server = await workspace.running(spec)
    if spec.language == "python" and spec.kernel is None:
        return await server.fork(spec, workspace)
    return await spawn(server, spec, workspace)


BACKEND = Backend(Sandbox, _prepare, _bound, _start)
