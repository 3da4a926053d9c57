"""One attempt at one task under way: the loop from the first prompt to the verdict, and how it ends and branches."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from nbagent.actions import ActionFormat
from nbagent.branches import Branches
from nbagent.env import NotebookEnv
from nbagent.errors import InfrastructureError, UsageError
from nbagent.models.base import Completion, Model, SamplingParams
from nbagent.normal_form import state_key
from nbagent.prompts import PromptBuilder
from nbagent.samples import CallKind
from nbagent.tasks import Outcome, Verdict
from nbagent.trajectory import Recorder, Trajectory
from nbagent_context import Budget, BudgetTooSmall, Memory, Policy, SummaryRequest, Window
from nbagent_kernels import KernelError

LOOK_TOKENS = 8
"""Tokens drawn to see how uncertain the next ones are."""
_log = logging.getLogger(__name__)


@runtime_checkable
class CountsRollouts(Protocol):
    """A model that is told which rollouts live, so that it can wait for all of them before it samples."""

    def enter(self) -> None:
        """A rollout begins."""
        ...

    def leave(self) -> None:
        """A rollout has ended."""
        ...


@dataclass(slots=True)
class Attempt:
    """What one attempt is made of, and what it does."""

    rollout_id: str
    about: dict[str, Any]
    """Of its `start` event, what branches share."""
    env: NotebookEnv
    fmt: ActionFormat
    policy: Policy
    prompts: PromptBuilder
    budget: Budget
    tools: Sequence[dict[str, Any]]
    model: Model
    sampling: SamplingParams
    run_seed: int
    recorder: Recorder
    version: int
    branches: Branches | None = None
    parent: dict[str, Any] | None = None
    """Of a branch: the rollout that it left, and the step before which it did."""
    artefacts: tuple[Path, int] | None = None
    """The run's folder of files that attempts wrote, and the bytes that are kept of this one's; None: none."""
    branchings: int = 0
    """Branchings on its way so far."""

    async def play(self) -> None:
        """From the first prompt, of a branch from where it began, to the verdict. This is the whole loop."""
        if self.parent is None:
            await self.env.reset()
        while self.env.verdict is None:
            seen = self._look()
            if isinstance(seen, SummaryRequest):
                await self._remember(seen)
                seen = self._look()
            if isinstance(seen, SummaryRequest):
                raise UsageError(
                    f"the context policy {type(self.policy).__name__} asks for a second summary before step "
                    f"{self.env.steps_taken}; one a step is allowed, or an attempt might never end"
                )
            if self.branches is not None and (self.parent is None or self.parent["step"] < self.step):
                await self.branches.before_step(self)
            completion = await self._sample(seen, "action", self.sampling, self.tools)
            await self.env.step(self.fmt.parse(completion))

    def _look(self) -> Window | SummaryRequest:
        env = self.env
        return self.policy.window(env.brief, env.notebook, env.history, env.notice, self.budget, self.prompts.count)

    async def _remember(self, request: SummaryRequest) -> None:
        """Have the model write the memory that a policy asks for, and put it into the history as it is."""
        longest = min(request.max_tokens, self.sampling.max_new_tokens)
        completion = await self._sample(request, "summary", replace(self.sampling, max_new_tokens=longest))
        self.env.history.append(Memory(completion.text.strip(), request.covers, self.env.steps_taken))

    async def _sample(
        self,
        seen: Window | SummaryRequest,
        kind: CallKind,
        sampling: SamplingParams,
        tools: Sequence[dict[str, Any]] = (),
    ) -> Completion:
        """One model call, logged."""
        env, recorder = self.env, self.recorder
        step, notice = env.steps_taken, env.notice
        prompt = self.prompts.build(seen, tools)
        state = state_key(env.notebook, recorder.digests, recorder.kernel)
        began = time.monotonic()
        if self.branches is not None:
            self.branches.called()
        completion = await self.model.sample(prompt, replace(sampling, seed=self._noise(kind)))
        self.prompts.check(prompt, completion)
        recorder.call(
            step,
            prompt,
            completion,
            version=self.version if completion.version is None else completion.version,
            seconds=time.monotonic() - began,
            elisions=seen.elisions,
            state_key=state,
            notice=notice,
            call_kind=kind,
        )
        return completion

    def _noise(self, kind: str) -> int:
        return noise_seed(self.run_seed, self.env.task.task_id, self.rollout_id, self.step, kind)

    def start(self, number: int = 0) -> None:
        """Log what the attempt is made of. `number`: of the try, after infrastructure failures."""
        self.recorder.record("start", rollout_id=self.rollout_id, attempt=number, parent=self.parent, **self.about)

    @property
    def step(self) -> int:
        """Number of the step to come."""
        return self.env.steps_taken

    @property
    def calls_left(self) -> int:
        """Most actions that it may still take; 0 once it has ended."""
        return 0 if self.env.closed else self.env.remaining_steps

    @property
    def replayed(self) -> bool:
        """Its kernel was made by running the cells again."""
        return self.env.replayed

    def chance(self, what: str) -> float:
        """A number from [0, 1) that is the same in every run."""
        return self._noise(what) / 2**63

    async def entropy(self) -> float:
        """The mean of −log p over the next LOOK_TOKENS tokens, drawn for this alone: unbiased for their entropy."""
        seen = self._look()
        assert isinstance(seen, Window)
        sampling = replace(self.sampling, max_new_tokens=LOOK_TOKENS, seed=self._noise("look"))
        completion = await self.model.sample(self.prompts.build(seen, self.tools), sampling)
        if not completion.logprobs:
            raise UsageError("branching by entropy needs a model that gives log-probs; branch at random")
        return -sum(completion.logprobs) / len(completion.logprobs)

    async def branch(self, rollout_id: str) -> Attempt:
        """Another rollout that goes on from here. Raises KernelError, OSError."""
        recorders: list[Recorder] = []
        # A state that cannot be branched leaves no log, so the log is begun when it was.
        env = await self.env.branch(lambda kind, **fields: recorders[0].record(kind, **fields))
        try:
            path = self.recorder.path.with_name(f"{rollout_id}.jsonl") if self.recorder.path else None
            recorders.append(self.recorder.branch(path, self.rollout_id, self.step))
            parent = {"rollout": self.rollout_id, "step": self.step}
            other = replace(self, rollout_id=rollout_id, env=env, recorder=recorders[0], parent=parent)
            other.start()
        except BaseException:
            await env.close()
            raise
        return other

    async def abandon(self) -> None:
        """End what was branched and never begun; no log is left."""
        await _close(self.env, self.rollout_id)
        self.recorder.close()
        if self.recorder.path is not None:
            self.recorder.path.unlink()

    def enter(self) -> None:
        """It is about to run on."""
        if isinstance(self.model, CountsRollouts):
            self.model.enter()

    async def run(self) -> Trajectory:
        """Run on to the end; what fails on the host's side is not tried again, for its state is gone."""
        try:
            await finish(self)
        finally:
            if isinstance(self.model, CountsRollouts):
                self.model.leave()
        return self.recorder.trajectory()


def noise_seed(run_seed: int, task_id: str, rollout_id: str, step: int, kind: str = "action") -> int:
    """Seed of one call's noise, 63 bits: SHA-256 of what the call is. The same call has the same noise in every run."""
    call = str(step) if kind == "action" else f"{step} {kind}"
    key = "\0".join((str(run_seed), task_id, rollout_id, call)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


async def finish(attempt: Attempt) -> bool:
    """Play to the end and record it; True where a host-side failure asks for another try."""
    env, recorder, rollout_id = attempt.env, attempt.recorder, attempt.rollout_id
    verdict: Verdict | None
    error, again = "", False
    try:
        try:
            await attempt.play()
            verdict = env.verdict
            if attempt.artefacts is not None:
                await _keep(env, attempt.artefacts[0] / rollout_id, attempt.artefacts[1])
        except BudgetTooSmall as small:
            verdict = Verdict(Outcome.NO_ANSWER, f"the prompt of step {env.steps_taken} does not fit: {small}")
            _log.warning("%s: %s", rollout_id, verdict.reason)
        except UsageError:
            raise
        except (InfrastructureError, KernelError) as failure:
            if recorder.failure is not None:
                raise recorder.failure from failure
            error, again = f"{type(failure).__name__}: {failure}", True
            verdict = Verdict(Outcome.INFRASTRUCTURE, error)
            _log.warning("%s: %s", rollout_id, error)
        except Exception as bug:
            error = f"{type(bug).__name__}: {bug}"
            verdict = Verdict(Outcome.INFRASTRUCTURE, error)
            _log.exception("%s: not the agent's doing and not the host's; recorded, and the run goes on", rollout_id)
        finally:
            await _close(env, rollout_id)
        assert verdict is not None
        recorder.record(
            "end",
            outcome=verdict.outcome.value,
            reason=verdict.reason,
            reward=verdict.outcome.reward,
            n_steps=env.steps_taken,
            truncated=env.answer is None and not error,
            seconds=round(recorder.seconds, 6),
            error=error,
        )
    finally:
        await asyncio.to_thread(recorder.close)
    return again


async def _keep(env: NotebookEnv, folder: Path, max_bytes: int) -> None:
    """Keep what was written; the outcome stands even where that fails."""
    try:
        await env.keep(folder, max_bytes)
    except InfrastructureError as failure:
        _log.warning("%s: its files were not kept: %s", folder.name, failure)


async def _close(env: NotebookEnv, rollout_id: str) -> None:
    """End the session; the outcome stands even where that fails."""
    try:
        await env.close()
    except (InfrastructureError, KernelError) as failure:
        _log.warning("%s: its session did not close well: %s", rollout_id, failure)
