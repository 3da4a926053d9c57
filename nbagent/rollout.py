"""One rollout: a model, an environment and a context policy make one trajectory of one task."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

from nbagent.actions import action_format
from nbagent.attempt import Attempt, CountsRollouts, finish
from nbagent.blobs import Blobs
from nbagent.branches import Branches
from nbagent.env import EnvLimits, NotebookEnv, capsule_files
from nbagent.errors import UsageError
from nbagent.models.base import Model, SamplingParams
from nbagent.prompts import PromptBuilder
from nbagent.runfolder import RunFolder
from nbagent.tasks import Task
from nbagent.tools import TOOLS
from nbagent.trajectory import Recorder, Trajectory
from nbagent_context import Budget, Policy, policy
from nbagent_context.images import IMAGE_TOKENS
from nbagent_kernels import KernelPool, Limits

RETRY_S = 0.5
"""Seconds before the first new try after an infrastructure failure; doubled for each that follows."""


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
    artefact_bytes: int = 0
    """Bytes of files that an attempt wrote which are kept in the run folder; 0: none."""


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
    branches: Branches | None = None,
) -> Trajectory:
    """Make one trajectory, and where `branches` are wanted, all that come of it; those are found in there.

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
        branches: where this one is branched; None: nowhere.

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
    if branches is not None and run is not None:
        # Of an earlier try that was cut off; what they would share with this one is not what they shared with that.
        branches.set_aside = run.set_aside(rollout_id)
    try:
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
                    run=run.name if run else "",
                )
                attempt = Attempt(
                    rollout_id=rollout_id,
                    about=_about(env, budget, prompts, settings),
                    env=env,
                    fmt=fmt,
                    policy=chosen,
                    prompts=prompts,
                    budget=budget,
                    tools=tools,
                    model=model,
                    sampling=settings.sampling,
                    run_seed=settings.run_seed,
                    recorder=recorder,
                    version=version,
                    branches=branches,
                    artefacts=(run.artefacts, settings.artefact_bytes) if run and settings.artefact_bytes else None,
                )
                if branches is not None:
                    branches.begin(attempt)
                attempt.start(number)
                # What was branched goes on from what happened, so that is not made to happen otherwise.
                if not await finish(attempt) or attempt.branchings:
                    break
        if branches is not None:
            await branches.ended()
    finally:
        if branches is not None:
            await branches.close()
    return recorder.trajectory()


def _about(env: NotebookEnv, budget: Budget, prompts: PromptBuilder, settings: RolloutSettings) -> dict[str, Any]:
    task = env.task
    return {
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
        "brief": asdict(env.brief),
        "budget": {**asdict(budget), "exact": prompts.exact},
    }


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
