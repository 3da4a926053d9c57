"""Run a score: every task n times, skipping the attempts that an earlier run of the same recipe finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from nbagent.agent import Agent
from nbagent.errors import ModelError, StorageError, UsageError
from nbagent.execute_notebook import write_notebook
from nbagent.models.base import Model
from nbagent.models.opening import open_model
from nbagent.progress import progress_bar
from nbagent.recipe import Recipe
from nbagent.replay import notebook_at
from nbagent.report import build_report
from nbagent.rollout import RolloutSettings, prompt_builder
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.score import SCORE_FILE, Score, score_trajectories
from nbagent.tasks import Outcome, Task, open_tasks
from nbagent.trajectory import Trajectory
from nbagent_context import policy

LEAST_PROMPT = 64
"""Tokens under which no question fits into a prompt."""
Job = tuple[Task, str]
"""A task and the id of one attempt at it."""


@runtime_checkable
class KnowsTheEnd(Protocol):
    """A model that can tell when no further call will succeed: its cap on cost is reached, its server is not there."""

    stopped: ModelError | None
    """Why; None while calls may succeed."""


class ScoreRecipe(Recipe):
    """What a score depends on; the same recipe may resume a run, another may not."""

    tasks: str
    """Location of the task set."""
    model: str
    """A model folder, `vllm:FOLDER`, or `openai:URL#MODEL`."""
    n: int = Field(1, ge=1)
    """Attempts per task; for the same number of attempts, more tasks tell more than more attempts."""
    limit: int | None = None
    """Only the first so many tasks; None: all."""
    temperature: float = Field(1.0, ge=0)
    """Of sampling; 0 takes the likeliest token."""
    seed: int = 0
    """Seed of all sampling noise."""
    agent: Agent = Agent()
    """How the agent acts."""

    def settings(self) -> RolloutSettings:
        """The settings of its rollouts."""
        return self.agent.rollouts(self.temperature, self.seed)


def run_score(
    tasks: Sequence[Task],
    model: Model,
    settings: RolloutSettings,
    run: RunFolder,
    *,
    n: int = 1,
    name: str = "",
    prefix: str = "",
    fingerprint: Mapping[str, Any] | None = None,
    details: Mapping[str, Any] | None = None,
    concurrency: int = 8,
    rollouts: Rollouts | None = None,
) -> Score:
    """Attempt every task n times and score it; attempts that are in the run folder already are not made again.

    Args:
        tasks: what to attempt.
        model: what attempts it.
        settings: how.
        run: where attempts go, event logs and notebooks.
        n: attempts per task.
        name: the score's name.
        prefix: first part of the rollout ids, which tells scores in one run folder apart.
        fingerprint: of the task set, kept in the score.
        details: kept in the score as its settings.
        concurrency: attempts under way at once, where `rollouts` is not given.
        rollouts: what makes them; None makes one for this score alone, and closes the model afterwards.

    Raises:
        ModelError: the model failed in every attempt of a batch, or reached its cap on cost; what was done is kept.
        StorageError: the disk is full or gone.
        KeyboardInterrupt: with a word on what was saved and how to go on.
    """
    jobs = [(task, rollout_id(*([prefix] if prefix else []), task.task_id, i)) for task in tasks for i in range(n)]
    trajectories = make_attempts(jobs, model, settings, run, concurrency=concurrency, rollouts=rollouts)
    for trajectory in trajectories:
        write_notebook(notebook_at(trajectory), run.notebooks / f"{trajectory.rollout_id}.ipynb")
    return score_trajectories(trajectories, name=name, model=model.name, tasks=fingerprint, settings=details)


def make_attempts(
    jobs: Sequence[Job],
    model: Model,
    settings: RolloutSettings,
    run: RunFolder,
    *,
    concurrency: int = 8,
    rollouts: Rollouts | None = None,
) -> list[Trajectory]:
    """Make the attempts that are not in the run folder yet; all of them, in the order of the jobs.

    Args:
        jobs: what to attempt.
        model: what attempts it.
        settings: how.
        run: where attempts go.
        concurrency: attempts under way at once, where `rollouts` is not given.
        rollouts: what makes them; None makes one for these alone, and closes the model afterwards.

    Raises:
        ModelError: the model failed in every attempt of a batch, or reached its cap on cost; what was done is kept.
        StorageError: the disk is full or gone.
        KeyboardInterrupt: with a word on what was saved and how to go on.
    """
    done = run.done_ids()
    left = [job for job in jobs if job[1] not in done]
    try:
        if rollouts is not None:
            _attempt(left, len(jobs), model, settings, run, rollouts)
        elif left:
            with Rollouts(concurrency) as own:
                try:
                    _attempt(left, len(jobs), model, settings, run, own)
                finally:
                    own.call(model.close())
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_how_to_go_on(run, jobs)) from None
    except (StorageError, ModelError) as error:
        raise type(error)(f"{error}; {_how_to_go_on(run, jobs)}") from error
    return [run.load(job[1]) for job in jobs]


def _attempt(
    jobs: Sequence[Job],
    total: int,
    model: Model,
    settings: RolloutSettings,
    run: RunFolder,
    rollouts: Rollouts,
) -> None:
    with progress_bar("attempts", total, total - len(jobs)) as advance:

        def progress() -> None:
            advance()
            # Raised from here it ends the other rollouts as well; those that had ended are kept.
            if isinstance(model, KnowsTheEnd) and model.stopped is not None:
                raise model.stopped

        for batch in _batches(jobs, model, rollouts.concurrency):
            _stop_if_hopeless(rollouts.run(batch, model, settings, run, progress=progress))


def _batches(jobs: Sequence[Job], model: Model, concurrency: int) -> Iterator[Sequence[Job]]:
    """All at once where the model is in this process; else few enough to notice soon that a server is gone."""
    size = len(jobs) if model.tokenizer is not None else 4 * concurrency
    for start in range(0, len(jobs), max(1, size)):
        yield jobs[start : start + size]


def _stop_if_hopeless(made: Sequence[Trajectory]) -> None:
    failed = [trajectory for trajectory in made if trajectory.outcome is Outcome.INFRASTRUCTURE]
    if made and len(failed) == len(made):
        raise ModelError(f"all of {len(made)} attempts failed for a cause on the host's side: {failed[0].error}")


def _how_to_go_on(run: RunFolder, jobs: Sequence[Job]) -> str:
    done = run.done_ids()
    saved = sum(name in done for _, name in jobs)
    return f"{saved} of {len(jobs)} attempts are saved in {run.path}; the same command with --resume goes on"


def score_command(
    recipe: ScoreRecipe, out: Path, remote: Mapping[str, Any], *, concurrency: int = 8, resume: bool = False
) -> Score:
    """What `nbagent score` does: checks everything that can be checked first, then runs, scores and reports.

    Args:
        recipe: what to score and how.
        out: the run folder.
        remote: settings of an `openai:` model; empty for a local one.
        concurrency: attempts under way at once.
        resume: go on with the run in `out`.

    Raises:
        UsageError: a task set, model folder or run folder that cannot be used.
    """
    try:
        policy(recipe.agent.policy, **recipe.agent.policy_options)
    except ValueError as error:
        raise UsageError(f"--policy: {error}") from None
    source = open_tasks(recipe.tasks, None)
    tasks = list(source.tasks())[: recipe.limit]
    if not tasks:
        raise UsageError(f"{recipe.tasks}: holds no tasks")
    model = open_model(
        recipe.model, **({**remote, "native_tools": recipe.agent.action_format == "native"} if remote else {})
    )
    check_room(model, recipe.settings())
    run = RunFolder.create(out, recipe, resume=resume)
    fingerprint = source.fingerprint()
    run.add_tasks(fingerprint)
    details = recipe.model_dump(mode="json", exclude={"tasks", "model"})
    score = run_score(
        tasks,
        model,
        recipe.settings(),
        run,
        n=recipe.n,
        fingerprint=fingerprint,
        details=details,
        concurrency=concurrency,
    )
    score.write(run.path / SCORE_FILE)
    build_report(run.path)
    return score


def check_room(model: Model, settings: RolloutSettings, named: str = "--max-new-tokens") -> None:
    """Raises UsageError where the answers' room, which the user knows as `named`, leaves none for a prompt."""
    left = prompt_builder(model, settings).budget().tokens
    if left < LEAST_PROMPT:
        raise UsageError(
            f"{named} {settings.sampling.max_new_tokens}: leaves {max(left, 0)} of the "
            f"{model.context_length} tokens of {model.name} for the prompt; give a smaller number"
        )
