"""One rollout: a model, an environment and a context policy make one trajectory of one task."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, Protocol, runtime_checkable

from nbagent.actions import ActionFormat, action_format
from nbagent.blobs import Blobs
from nbagent.env import EnvLimits, NotebookEnv, capsule_files
from nbagent.errors import InfrastructureError, UsageError
from nbagent.models.base import Completion, Model, SamplingParams
from nbagent.normal_form import state_key
from nbagent.prompts import PromptBuilder
from nbagent.runfolder import RunFolder
from nbagent.samples import CallKind
from nbagent.tasks import Outcome, Task, Verdict
from nbagent.tools import TOOLS
from nbagent.trajectory import Recorder, Trajectory
from nbagent_context import Budget, BudgetTooSmall, Memory, Policy, SummaryRequest, Window, policy
from nbagent_context.images import IMAGE_TOKENS
from nbagent_kernels import KernelError, KernelPool, Limits

RETRY_S = 0.5
"""Seconds before the first new try after an infrastructure failure; doubled for each that follows."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """What all rollouts of a run share."""

    action_format: str = "hermes"
    """How the model writes its actions: hermes, fenced or native."""
    policy: str = "drop"
    """Name of the context policy."""
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the context policy."""
    limits: EnvLimits = field(default_factory=EnvLimits)
    """Steps and seconds of one attempt."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Length and temperature; its seed is not used, every call has its own."""
    backend: str = "fork"
    """Where cells run."""
    session_limits: Limits | None = None
    """What a kernel may use; None: the kernels' own defaults."""
    run_seed: int = 0
    """Seed of all sampling noise of the run."""
    infrastructure_retries: int = 2
    """New tries after an infrastructure failure; more would hide a host that is broken."""
    keep_events: bool = True
    """Keep events in memory beside the log; without, a trajectory is read back from its log when asked for."""
    images: bool = False
    """Show images to an endpoint that sees them."""


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
class _Attempt:
    """What one attempt is made of."""

    env: NotebookEnv
    fmt: ActionFormat
    policy: Policy
    prompts: PromptBuilder
    budget: Budget
    tools: Sequence[dict[str, Any]]
    model: Model
    sampling: SamplingParams
    seed: Callable[[int, CallKind], int]
    recorder: Recorder
    version: int

    async def play(self) -> None:
        """From the first prompt to the verdict. This is the whole loop."""
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
        state = state_key(env.notebook, recorder.digests)
        began = time.monotonic()
        completion = await self.model.sample(prompt, replace(sampling, seed=self.seed(step, kind)))
        self.prompts.check(prompt, completion)
        recorder.call(
            step,
            prompt,
            completion,
            version=self.version,
            seconds=time.monotonic() - began,
            elisions=seen.elisions,
            state_key=state,
            notice=notice,
            call_kind=kind,
        )
        return completion


def noise_seed(run_seed: int, task_id: str, rollout_id: str, step: int, kind: CallKind = "action") -> int:
    """Seed of one call's noise, 63 bits: SHA-256 of what the call is. The same call has the same noise in every run."""
    call = str(step) if kind == "action" else f"{step} {kind}"
    key = "\0".join((str(run_seed), task_id, rollout_id, call)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def prompt_builder(model: Model, settings: RolloutSettings) -> PromptBuilder:
    """The prompt builder of a model; one for many rollouts, since it caches what it encodes."""
    return PromptBuilder(
        model.tokenizer,
        model.context_length,
        settings.sampling.max_new_tokens,
        counter=getattr(model, "counter", None),
        image_tokens=IMAGE_TOKENS if settings.images else 0,
    )


@cache
def _policy(name: str, options: str) -> Policy:
    # Policies are pure functions, so one serves all rollouts; looking up entry points reads every package's metadata.
    try:
        return policy(name, **json.loads(options))
    except ValueError as error:
        raise UsageError(str(error)) from None


async def roll(
    task: Task,
    rollout_id: str,
    model: Model,
    settings: RolloutSettings,
    run: RunFolder | None = None,
    version: int = 0,
    prompts: PromptBuilder | None = None,
    kernels: KernelPool | None = None,
) -> Trajectory:
    """Make one trajectory.

    A host-side failure is tried again with a fresh environment, then it is the outcome. Any other exception is a bug
    of ours or of a verifier: it is logged with its traceback and recorded with its class, and the run goes on.

    Args:
        task: the question.
        rollout_id: unique in the run; see `nbagent.runfolder.rollout_id`.
        model: who answers.
        settings: shared by the run's rollouts.
        run: where the event log goes; None keeps it in memory.
        version: of the model's weights.
        prompts: shared by the run's rollouts; None makes one.
        kernels: shared by the run's rollouts; None opens a session without asking whether there is room.

    Raises:
        UsageError: settings that no rollout could use.
        StorageError: the run folder cannot be written, which would end every other rollout too.
    """
    prompts = prompts or prompt_builder(model, settings)
    fmt = action_format(settings.action_format, task.language)
    chosen = _policy(settings.policy, json.dumps(dict(settings.policy_options), sort_keys=True))
    tools = fmt.available(TOOLS) if fmt.sends_schemas else ()
    budget = prompts.budget(tools)
    blobs = run.blobs if run else Blobs()
    path = run.rollout_path(rollout_id) if run else None
    with _counted(model):
        for number in range(settings.infrastructure_retries + 1):
            if number:
                await asyncio.sleep(RETRY_S * 2 ** (number - 1))
            recorder = Recorder(blobs, path, settings.keep_events)
            env = NotebookEnv(
                task,
                fmt=fmt,
                limits=settings.limits,
                backend=settings.backend,
                session_limits=settings.session_limits,
                record=recorder.record,
                kernels=kernels,
            )
            attempt = _Attempt(
                env=env,
                fmt=fmt,
                policy=chosen,
                prompts=prompts,
                budget=budget,
                tools=tools,
                model=model,
                sampling=settings.sampling,
                seed=lambda step, kind: noise_seed(settings.run_seed, task.task_id, rollout_id, step, kind),
                recorder=recorder,
                version=version,
            )
            recorder.record("start", **_start(attempt, rollout_id, number, settings))
            if not await _finish(attempt, rollout_id):
                break
    return recorder.trajectory()


def _start(attempt: _Attempt, rollout_id: str, number: int, settings: RolloutSettings) -> dict[str, Any]:
    env, task = attempt.env, attempt.env.task
    return {
        "rollout_id": rollout_id,
        "attempt": number,
        "task_id": task.task_id,
        "question": task.question,
        "family": task.family,
        "language": task.language,
        "seed": task.seed,
        "backend": settings.backend,
        "action_format": settings.action_format,
        "policy": {"name": settings.policy, "options": dict(settings.policy_options)},
        "limits": asdict(settings.limits),
        "session_limits": asdict(settings.session_limits) if settings.session_limits else None,
        "files": capsule_files(task.capsule),
        "parent": None,
        "brief": asdict(env.brief),
        "budget": {**asdict(attempt.budget), "exact": attempt.prompts.exact},
    }


async def _finish(attempt: _Attempt, rollout_id: str) -> bool:
    """Play to the end and record it; True where a host-side failure asks for another try."""
    env, recorder = attempt.env, attempt.recorder
    verdict: Verdict | None
    error, again = "", False
    try:
        try:
            await attempt.play()
            verdict = env.verdict
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


async def _close(env: NotebookEnv, rollout_id: str) -> None:
    """End the session; the outcome stands even where that fails."""
    try:
        await env.close()
    except (InfrastructureError, KernelError) as failure:
        _log.warning("%s: its session did not close well: %s", rollout_id, failure)


@contextmanager
def _counted(model: Model) -> Iterator[None]:
    if not isinstance(model, CountsRollouts):
        yield
        return
    model.enter()
    try:
        yield
    finally:
        model.leave()
