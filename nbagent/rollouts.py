"""Many rollouts at once, on one asyncio loop in a thread of its own, so that training never starves the kernels."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

from nbagent.branches import Branches
from nbagent.models.base import Model
from nbagent.pools import Pools
from nbagent.prompts import PromptBuilder
from nbagent.rollout import RolloutSettings, prompt_builder, roll
from nbagent.runfolder import RunFolder
from nbagent.tasks import Task
from nbagent.trajectory import Trajectory

T = TypeVar("T")
CONCURRENCY = 96
"""Rollouts at once: what one batch of a small model holds; each has a kernel of its own."""
CLOSE_S = 60.0
"""Seconds that cancelled rollouts have to end their kernels."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one task, from one version of the weights."""

    task: Task
    trajectories: Sequence[Trajectory]
    failed: Sequence[Trajectory] = ()
    """Rollouts without a reward: ended by a host-side failure, or ungraded. In no statistics and no loss."""
    counts: Mapping[str, float] = field(default_factory=dict)
    """What their source counted while it made them, under names of its own."""


@runtime_checkable
class RolloutSource(Protocol):
    """Where a trainer's rollouts come from; a queue that works ahead is one too."""

    def next_groups(self, n: int, version: int) -> list[Group]:
        """The next n groups, sampled by the weights of this version, or by older ones where the source works ahead."""
        ...


class Rollouts:
    """Runs rollouts for a caller that is not asynchronous; `concurrency` of them at once.

    Between two calls of `run`, and in calls of many, the containers of what comes next are started (nbagent.pools).

    Example:
        >>> with Rollouts() as rollouts:
        ...     made = rollouts.run([], model=None, settings=RolloutSettings())
        >>> made
        []
    """

    def __init__(self, concurrency: int = CONCURRENCY) -> None:
        self.concurrency = concurrency
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._calls: set[Future[Any]] = set()
        self._prompts: tuple[Model, tuple[int, bool], PromptBuilder] | None = None
        self._pools = Pools(concurrency)

    def __enter__(self) -> Rollouts:
        """Start the thread. Raises the limit on open files: a session takes several."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != hard:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="nbagent-rollouts", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what still runs, end all kernels, the loop and its thread."""
        if self._loop is None or self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop = self._thread = None

    def _serve(self) -> None:
        loop = self._loop
        assert loop is not None
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(self._pools.close())
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and wait for it. Ctrl-C cancels it and goes on up once it has cleaned up.

        Raises:
            RuntimeError: outside the `with` block.
            KeyboardInterrupt: after the work was cancelled.
        """
        if self._loop is None:
            work.close()
            raise RuntimeError("use Rollouts in a with block")
        ended = threading.Event()
        future = asyncio.run_coroutine_threadsafe(_then(work, ended), self._loop)
        self._calls.add(future)
        try:
            return future.result()
        except BaseException:
            # A future that is cancelled is done at once; its coroutine still has kernels to close.
            if future.cancel() or future.cancelled():
                ended.wait(CLOSE_S)
            raise
        finally:
            self._calls.discard(future)

    def cancel(self) -> None:
        """Cancel what other threads wait for in `call`, which raises concurrent.futures.CancelledError there."""
        for future in list(self._calls):
            future.cancel()

    def run(
        self,
        jobs: Sequence[tuple[Task, str]],
        model: Model,
        settings: RolloutSettings,
        run: RunFolder | None = None,
        version: int = 0,
        progress: Callable[[], None] | None = None,
        branches: Mapping[str, Branches] | None = None,
    ) -> list[Trajectory]:
        """Make the rollouts of `jobs`, pairs of a task and a rollout id.

        Args:
            jobs: what to make.
            model: who answers.
            settings: shared by all.
            run: where event logs go; None keeps them in memory.
            version: of the model's weights.
            progress: is called in the loop's thread whenever a rollout has ended.
            branches: by rollout id, where rollouts are branched; what comes of them is found in there. As many attempts
                as may come of all roots at once are no more than `concurrency`.

        Returns:
            Their trajectories, in the order of the jobs.

        Raises:
            UsageError: settings that no rollout could use.
            StorageError: the run folder cannot be written; what had ended is kept.
            KeyboardInterrupt: after all rollouts were cancelled and their kernels ended.
        """
        if not jobs:
            return []
        return self.call(self._run(jobs, model, settings, run, version, progress, branches or {}))

    def _builder(self, model: Model, settings: RolloutSettings) -> PromptBuilder:
        own = (settings.sampling.max_new_tokens, settings.images)
        if self._prompts is None or self._prompts[0] is not model or self._prompts[1] != own:
            self._prompts = (model, own, prompt_builder(model, settings))
        return self._prompts[2]

    async def _run(
        self,
        jobs: Sequence[tuple[Task, str]],
        model: Model,
        settings: RolloutSettings,
        run: RunFolder | None,
        version: int,
        progress: Callable[[], None] | None,
        branches: Mapping[str, Branches],
    ) -> list[Trajectory]:
        prompts = self._builder(model, settings)
        made: dict[int, Trajectory] = {}
        waiting = iter(enumerate(jobs))

        async def work() -> None:
            # Nothing is awaited between two rollouts: a model that counts them sees the next before it samples again.
            for index, (task, rollout_id) in waiting:
                own = branches.get(rollout_id)
                call.begins(task)
                made[index] = await roll(task, rollout_id, model, settings, run, version, prompts, call.pool, own)
                if progress is not None:
                    progress()

        each = max((own.rules.attempts for own in branches.values()), default=1)
        most = max(1, self.concurrency // each)
        tasks, name = [task for task, _ in jobs], run.name if run else ""
        async with self._pools.call(tasks, settings.backend, settings.session_limits, name, most) as call:
            workers = [asyncio.create_task(work()) for _ in range(min(most, len(jobs)))]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return [made[index] for index in range(len(jobs))]


async def _then(work: Coroutine[Any, Any, T], ended: threading.Event) -> T:
    try:
        return await work
    finally:
        ended.set()
