"""Scores within a training run: every held-out task once, the attempts kept as trajectories and notebooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import nbformat

from nbagent.models.base import Model
from nbagent.replay import notebook_at
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.score import Attempt, Score, read_score, score_trajectories
from nbagent.tasks import Task


def score_stage(
    name: str,
    tasks: Sequence[Task],
    rollouts: Rollouts,
    model: Model,
    settings: RolloutSettings,
    run: RunFolder,
    progress: Callable[[], None] | None = None,
) -> Score:
    """One attempt at each task; written to `scores/NAME.json`, and read from there when it was done before.

    Attempts that an interrupted run finished are not made again.
    """
    path = run.path / "scores" / f"{name}.json"
    if path.exists():
        return read_score(path)
    ids = {task.task_id: rollout_id(name, task.task_id, 0) for task in tasks}
    done = run.done_ids()
    jobs = [(task, ids[task.task_id]) for task in tasks if ids[task.task_id] not in done]
    for _ in range(len(tasks) - len(jobs)):
        if progress:
            progress()
    rollouts.run(jobs, model, settings, run, progress=progress)
    attempts = []
    for task in tasks:
        trajectory = run.load(ids[task.task_id])
        attempts.append(Attempt.of(trajectory))
        nbformat.write(notebook_at(trajectory, kind="history"), run.notebooks / f"{ids[task.task_id]}.ipynb")
    score = score_trajectories(
        attempts,
        name=name,
        model=model.name,
        settings={
            "temperature": settings.sampling.temperature,
            "policy": settings.policy,
            "action_format": settings.action_format,
            "max_steps": settings.limits.max_steps,
            "backend": settings.backend,
            "seed": settings.run_seed,
        },
    )
    path.parent.mkdir(exist_ok=True)
    score.write(path)
    return score
