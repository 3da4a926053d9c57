"""Many sessions at once, no more than the machine holds: bounded starts, admission by free memory, warm ones ready."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from types import TracebackType

from nbagent_kernels.capsule import quickly_copied
from nbagent_kernels.errors import KernelError, KernelStartError, SessionClosed
from nbagent_kernels.forkhost import PRELOAD
from nbagent_kernels.live import LiveSession
from nbagent_kernels.memory import available_bytes, kernels_bytes, total_bytes
from nbagent_kernels.session import open_session
from nbagent_kernels.types import SessionSpec
from nbagent_kernels.wire import Message, Wire, first, settle

FLOOR_BYTES = 1 << 30
"""Memory that is left free, or a tenth of the machine's where that is less."""
LEAST_BYTES = 64 << 20
"""What a session is expected to take, where less was measured: an idle one is about to be used."""
ROOMY_BYTES = 1 << 30
"""Free memory for each session to come above which nothing is measured, and that each warm one has to grow into."""
POLL_S = 0.25
"""Seconds between two looks at the memory while sessions wait for it."""
MEASURED_S = 5.0
"""Seconds for which a measurement holds."""
RATE_S = 10.0
"""Seconds over which starts are counted."""
RESEED_S = 10.0
_RESEED = (
    "__import__('random').seed({seed})\n"
    "(lambda numpy: numpy and numpy.random.seed({legacy}))(__import__('sys').modules.get('numpy'))"
)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PoolHealth:
    """How a pool is doing. As text it is one line."""

    size: int
    """Most sessions handed out at once."""
    open: int
    """Sessions handed out."""
    warm: int
    """Sessions ready to be handed out."""
    starting: int
    """Kernels being started."""
    waiting: int
    """Callers that wait for a session."""
    kernels_bytes: int
    """Memory of all kernels of this process, bytes (memory.kernels_bytes)."""
    available_bytes: int
    """Memory that is free, bytes."""
    deaths: int
    """Kernels that were lost while handed out: ended by themselves, killed for time, out of memory."""
    starts_per_s: float
    """Kernels started per second, over the last ten."""

    def __str__(self) -> str:
        return (
            f"{self.open}/{self.size} open, {self.warm} warm, {self.starting} starting, {self.waiting} waiting; "
            f"kernels take {self.kernels_bytes >> 20} MiB, {self.available_bytes >> 20} MiB free; {self.deaths} lost, "
            f"{self.starts_per_s:.1f} starts/s"
        )


class KernelPool:
    """Hands out sessions, first come, first served; each is used once and closed.

    A caller waits while `size` sessions are out, while `starts` kernels are starting, or while one more would take the
    free memory below the floor. With none open one is always let through: nothing else could end the wait.
    Branches of a session count as their own memory, not as sessions of the pool.

    Args:
        size: most sessions handed out at once.
        warm: sessions held ready on top of these; see `keep_warm`. One serves a spec that differs from `spec` in
            capsule and seed only; the seed only where `reseeds` says so.
        backend: where they run.
        spec: of the warm sessions, and of those acquired without one.
        starts: most kernels being started at once; None: twice the processors, at least four.
        floor_bytes: memory to leave free; None: the lesser of 1 GiB and a tenth of the machine's.
        patience_s: seconds after which a caller that waits for memory is let through all the same, with a warning;
            None: never. For callers whose sessions would not close while others wait.

    Example:
        >>> async def both() -> list[str]:
        ...     async with KernelPool(2) as pool:
        ...         async with pool.session() as a, pool.session() as b:
        ...             return [(await session.execute("1")).status for session in (a, b)]
    """

    def __init__(
        self,
        size: int,
        warm: int = 0,
        backend: str = "fork",
        spec: SessionSpec | None = None,
        *,
        starts: int | None = None,
        floor_bytes: int | None = None,
        patience_s: float | None = None,
    ) -> None:
        self.size, self.warm, self.backend, self.spec = size, warm, backend, spec or SessionSpec()
        self._floor = min(FLOOR_BYTES, total_bytes() // 10) if floor_bytes is None else floor_bytes
        self._patience_s = patience_s
        self._starts = asyncio.Semaphore(starts or max(4, 2 * (os.cpu_count() or 1)))
        self._processors = os.cpu_count() or 1
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._closed = False
        self._handed: set[LiveSession] = set()
        self._spare: deque[LiveSession] = deque()
        self._warming: list[asyncio.Task[LiveSession | None]] = []
        """Warm sessions that are coming up and that nobody has claimed."""
        self._ending: set[asyncio.Task[None]] = set()
        self._coming = self._waiting = self._starting = self._lost = 0
        self._started: deque[float] = deque()
        self._measured = (0.0, 0)

    async def __aenter__(self) -> KernelPool:
        """Begin to warm up, in the background."""
        self._refill()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        await self.close()

    @contextlib.asynccontextmanager
    async def session(self, spec: SessionSpec | None = None) -> AsyncIterator[LiveSession]:
        """A session for the length of a block."""
        session = await self.acquire(spec)
        try:
            yield session
        finally:
            await self.release(session)

    async def acquire(self, spec: SessionSpec | None = None) -> LiveSession:
        """A session, when there is room. Its `close` gives the room back.

        Raises:
            SessionClosed: the pool is closed.
            KernelStartError: no kernel came up.
        """
        wanted = spec or self.spec
        self._waiting += 1
        try:
            async with self._turn:  # asyncio's locks are fair
                ready = await self._admit(wanted)
                self._coming += 1
        finally:
            self._waiting -= 1
            if self._closed:
                self._changed.set()
        try:
            session = await (self._assign(ready, wanted) if ready is not None else self._start(wanted))
            if self._closed:
                await session.close()
                raise SessionClosed("the pool is closed; open another one")
            self._handed.add(session)
            session.when_closed(self._back)
            return session
        finally:
            self._coming -= 1
            self._changed.set()
            self._refill()

    def keep_warm(self, warm: int) -> None:
        """Hold so many sessions ready from now on; fewer where memory is not plenty.

        While sessions are out, half of the processors start them, less what callers start, and none does while a caller
        waits for room. A caller takes over one that is coming up rather than to start another beside it.
        """
        self.warm = warm
        self._refill()

    async def release(self, session: LiveSession) -> None:
        """Close a session; the next caller has its room."""
        await session.close()

    async def health(self) -> PoolHealth:
        """How the pool is doing now."""
        now = time.monotonic()
        while self._started and now - self._started[0] > RATE_S:
            self._started.popleft()
        return PoolHealth(
            size=self.size,
            open=len(self._handed),
            warm=len(self._spare),
            starting=self._starting,
            waiting=self._waiting,
            kernels_bytes=await asyncio.to_thread(kernels_bytes),
            available_bytes=available_bytes(),
            deaths=self._lost + sum(session.losses for session in self._handed),
            starts_per_s=len(self._started) / RATE_S,
        )

    async def close(self) -> None:
        """End all sessions, those handed out too; callers that wait get SessionClosed. Idempotent."""
        self._closed = True
        self._changed.set()
        for task in self._warming:
            task.cancel()
        await asyncio.gather(*self._warming, *self._ending, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in (*self._handed, *self._spare)))
        self._spare.clear()
        while self._coming or self._waiting:
            self._changed.clear()
            await self._changed.wait()

    def _back(self, session: LiveSession) -> None:
        self._handed.discard(session)
        self._lost += session.losses
        self._changed.set()
        self._refill()

    async def _admit(self, wanted: SessionSpec) -> LiveSession | asyncio.Task[LiveSession | None] | None:
        """Wait for room; a fitting warm session, one that is coming up, or None where one is to be started."""
        since: float | None = None
        while True:
            if self._closed:
                self._changed.set()
                raise SessionClosed("the pool is closed; open another one")
            short = False
            if len(self._handed) + self._coming < self.size:
                if (ready := self._fitting(wanted)) is not None:
                    return ready
                if not (self._handed or self._coming) or await self._room():
                    return None
                short = True
                if self._spare:
                    await self._spare.popleft().close()
                    continue
            now = time.monotonic()
            if short and since is None:
                since = now
                _log.warning("waiting for memory: %s", self._shortage())
            elif short and self._patience_s is not None and since is not None and now - since > self._patience_s:
                _log.warning("no longer waiting for memory: %s", self._shortage())
                return None
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if short else None):
                    await self._changed.wait()

    def _shortage(self) -> str:
        there = len(self._handed) + self._coming
        return f"sessions open or coming up: {there}, free: {available_bytes() >> 20} MiB"

    async def _room(self) -> bool:
        """Whether one more session leaves the floor free, those that are still starting counted as if they were up."""
        coming = self._coming + len(self._warming) + 1
        spare = available_bytes() - self._floor
        if spare >= coming * ROOMY_BYTES:
            return True
        when, taken = self._measured
        if time.monotonic() - when > MEASURED_S:
            taken = await asyncio.to_thread(kernels_bytes)
            self._measured = time.monotonic(), taken
        # What is coming up counts here too: in a burst the server's own memory would else be one session's.
        each = taken // (len(self._handed) + len(self._spare) + coming)
        return spare >= coming * max(each, LEAST_BYTES)

    async def _start(self, spec: SessionSpec) -> LiveSession:
        async with self._starts:
            self._starting += 1
            try:
                session = await open_session(spec, self.backend)
            finally:
                self._starting -= 1
        assert isinstance(session, LiveSession)
        self._started.append(time.monotonic())
        return session

    def _refill(self) -> None:
        """Warm up what is missing, as far as nobody waits for the processors that this takes."""
        if self._closed or (self._waiting and len(self._handed) + self._coming < self.size):
            return
        idle = not (self._handed or self._coming)
        free = self._processors if idle else max(1, self._processors // 2) - self._coming
        missing = self.warm - len(self._spare) - len(self._warming)
        for _ in range(min(missing, free - len(self._warming))):
            task = asyncio.create_task(self._warm_up())
            self._warming.append(task)
            task.add_done_callback(self._warmed)

    async def _warm_up(self) -> LiveSession | None:
        growing = self._coming + len(self._warming) + len(self._spare)
        if available_bytes() - self._floor < growing * ROOMY_BYTES:
            return None
        try:
            return await self._start(self._warm_spec())
        except KernelError as error:
            _log.warning("no warm session: %s", error)
            return None

    def _warmed(self, task: asyncio.Task[LiveSession | None]) -> None:
        """Hold ready what has come up, unless somebody has claimed it meanwhile."""
        if task not in self._warming:
            return
        self._warming.remove(task)
        if not task.cancelled() and (session := task.result()) is not None:
            self._spare.append(session)
            self._changed.set()
            self._refill()

    def _warm_spec(self) -> SessionSpec:
        """In a container nothing is imported before the first kernel unless asked for: here there is time for it."""
        if self.backend == "docker" and self.spec.preload is None and self.spec.language == "python":
            return replace(self.spec, preload=PRELOAD)
        return self.spec

    def _fitting(self, wanted: SessionSpec) -> LiveSession | asyncio.Task[LiveSession | None] | None:
        """A warm session that can become one of this spec, taken out, or one coming up; ended ones are let go."""
        if replace(wanted, capsule=self.spec.capsule, seed=self.spec.seed) != self.spec:
            return None
        if self.spec.capsule not in (None, wanted.capsule):
            return None
        if wanted.seed != self.spec.seed and not reseeds(self.spec, self.backend):
            return None
        for _ in range(len(self._spare)):
            session = self._spare.popleft()
            if session.wire is None or session.wire.dead.done():
                closing = asyncio.create_task(session.close())
                self._ending.add(closing)
                closing.add_done_callback(self._ending.discard)
            elif session.takes(wanted.capsule):
                return session
            else:
                self._spare.append(session)
        if self._warming and (self.spec.capsule == wanted.capsule or quickly_copied(wanted.capsule)):
            return self._warming.pop(0)
        return None

    async def _assign(self, ready: LiveSession | asyncio.Task[LiveSession | None], wanted: SessionSpec) -> LiveSession:
        session = await _come_up(ready) if isinstance(ready, asyncio.Task) else ready
        if session is None:
            return await self._start(wanted)
        try:
            if wanted.seed != self.spec.seed and session.wire is not None:
                await _reseed(session.wire, wanted.seed)
            await session.assign(wanted)
        except BaseException:
            await session.close()
            raise
        return session


def reseeds(spec: SessionSpec, backend: str) -> bool:
    """Whether a started session of a spec can be given another seed: kernels that are forked can.

    A process keeps its PYTHONHASHSEED, and nothing here knows how other languages seed themselves.
    """
    return spec.language == "python" and spec.kernel is None and backend in ("fork", "docker")


async def _come_up(claimed: asyncio.Task[LiveSession | None]) -> LiveSession | None:
    """The session of a warm-up that somebody has claimed; nobody else would close it where that one is cancelled."""
    try:
        return await claimed
    except asyncio.CancelledError:
        if claimed.done() and not claimed.cancelled() and (session := claimed.result()) is not None:
            await session.close()
        raise


async def _reseed(wire: Wire, seed: int) -> None:
    """Seed an unused forked kernel as its start would have. Raises KernelStartError."""
    request, seeded = secrets.token_hex(8), asyncio.get_running_loop().create_future()

    def take(message: Message) -> bool:
        """The reply comes before the idle status."""
        if message.parent == request and message.kind == "status":
            settle(seeded)
        return False

    wire.listen(take)
    code = _RESEED.format(seed=seed, legacy=seed % (1 << 32))
    wire.request(request, {"code": code, "silent": True, "store_history": False, "allow_stdin": False})
    done = await first(seeded, wire.dead, timeout=RESEED_S)
    wire.listen(None)
    if not done or wire.dead.done():
        raise KernelStartError("a warm kernel could not be seeded")
