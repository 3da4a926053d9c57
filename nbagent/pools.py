"""Kernels for the calls of `Rollouts.run`: pools that are kept from one call to the next.

A trainer calls once an update. The containers of the next update start while rollouts of this one run, and while it
learns from them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from nbagent.backends import container_of, kernels_of, limits_of
from nbagent.tasks import Task
from nbagent_kernels import KernelPool, Limits, SessionSpec
from nbagent_kernels.capsule import quickly_copied
from nbagent_kernels.pool import reseeds

PATIENCE_S = 60.0
"""Seconds a rollout waits for memory before its kernel starts all the same: a model in lockstep waits for it meanwhile,
and so do the rollouts whose kernels would have to end first."""
REST_S = 1.0
"""Seconds after a call before sessions for the next one are started: whoever ends after a call starts none in vain."""


class Pools:
    """The pools of one `Rollouts`; lives on its loop. Each hands out `size` sessions at once."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: dict[tuple[str, str, str, Limits | None], Kept] = {}

    @contextlib.asynccontextmanager
    async def call(
        self, tasks: Sequence[Task], backend: str, limits: Limits | None, run: str, most: int
    ) -> AsyncIterator[Call]:
        """Kernels for one call. One that fails or is cancelled leaves no session behind, warm or not.

        Args:
            tasks: one for each rollout.
            backend: where cells run.
            limits: of a session; None: the kernels' own.
            run: name of the run, as a label of containers.
            most: rollouts at once.
        """
        language = next((task.language for task in tasks if task.language == "python"), tasks[0].language)
        key = backend, language, run, limits
        for other in [kept for name, kept in self._kept.items() if name != key and not kept.calls]:
            await self._drop(other)
        if key not in self._kept:
            container = container_of(backend, language, run)
            spec = SessionSpec(language=language, limits=limits_of(backend, limits), container=container)
            pool = KernelPool(self._size, 0, kernels_of(backend), spec, patience_s=PATIENCE_S)
            self._kept[key] = Kept(pool)
        kept = self._kept[key]
        call = Call(kept, tasks, most)
        kept.calls.append(call)
        try:
            yield call
        except BaseException:
            kept.calls.remove(call)
            if not kept.calls:
                await self._drop(kept)
            raise
        kept.calls.remove(call)
        kept.n_calls += 1
        asyncio.get_running_loop().call_later(REST_S, kept.rest, call.n_warm)

    async def close(self) -> None:
        """End all sessions."""
        for kept in list(self._kept.values()):
            await self._drop(kept)

    async def _drop(self, kept: Kept) -> None:
        self._kept = {name: other for name, other in self._kept.items() if other is not kept}
        await kept.pool.close()


class Kept:
    """A pool and its use."""

    def __init__(self, pool: KernelPool) -> None:
        self.pool = pool
        self.calls: list[Call] = []
        """Those under way."""
        self.n_calls = 0
        """Calls that are over."""
        # Forked kernels need none: they are there in milliseconds.
        self.warmable = pool.backend == "docker" and reseeds(pool.spec, pool.backend)

    def rest(self, warm: int) -> None:
        """Between two calls: start what the next one begins with."""
        if not self.calls:
            self.pool.keep_warm(warm)


class Call:
    """A call under way: its pool, and which of its rollouts are still to begin."""

    def __init__(self, kept: Kept, tasks: Sequence[Task], most: int) -> None:
        self._kept = kept
        self._most = most
        language = kept.pool.spec.language
        capsules = {task.capsule for task in tasks if task.language == language} if kept.warmable else set()
        self._language, self._capsules = language, {capsule for capsule in capsules if quickly_copied(capsule)}
        self._left = sum(self._fits(task) for task in tasks)
        self.n_warm = min(self._left, most)
        """Warm sessions that such a call can begin with."""

    @property
    def pool(self) -> KernelPool:
        """Where sessions come from."""
        return self._kept.pool

    def begins(self, task: Task) -> None:
        """A rollout is about to take its session; what it leaves to be held ready is started once it has it.

        Where calls repeat, the next one's are started as well.
        """
        if self._fits(task):
            self._left -= 1
            ahead = self.n_warm if self._kept.n_calls else 0
            self.pool.warm = min(self._left + ahead, self._most)

    def _fits(self, task: Task) -> bool:
        return task.language == self._language and task.capsule in self._capsules
