"""The recipe of a run that learns from a finished run's rollouts and makes none. No torch."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nbagent.errors import RecipeError, UsageError
from nbagent.models.opening import is_remote
from nbagent.recipe import load_recipe
from nbagent.runfolder import RunFolder
from nbagent.score_run import ScoreRecipe
from nbagent_training.loss_settings import changed
from nbagent_training.recipe import TrainRecipe
from nbagent_training.recorded import check_kind, recorded

PASSES = 2
"""Over the rows, where nothing else was named: after more the ratios of most tokens are clipped."""


def offline_recipe(path: Path, recipe: TrainRecipe | None = None) -> TrainRecipe:
    """A recipe changed so that GRPO takes the rollouts of a finished run.

    Args:
        path: the run's folder.
        recipe: how to train; None takes the model, agent and temperature of a run of `nbagent score`, and no scoring.

    Where the recipe corrects nothing for other weights having sampled, the ratio is taken against the recorded
    log-probs.

    Raises:
        UsageError: no run is there, one of another kind, or one that names no model that can be trained; or the recipe
            has something that does not go with recorded rollouts.
    """
    run = RunFolder.open(path)
    check_kind(run)
    given = recipe.model_dump() if recipe is not None else _of_score(run)
    grpo = given["grpo"]
    loss = grpo.setdefault("loss", {})
    if loss.get("old", "trainer") == "trainer" and loss.get("correction", "none") == "none":
        loss["old"] = "sampler"
    grpo["from_run"] = str(path)
    try:
        return TrainRecipe.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key, why = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise RecipeError(f"--from {path}: {key + ': ' if key else ''}{why}") from None


def passed_over(recipe: TrainRecipe) -> list[str]:
    """What a recipe says of how rollouts are made, which says nothing where they are there already."""
    of_tasks = changed(recipe.tasks, "train", "n_train", "filter")
    of_grpo = changed(recipe.grpo, "group_size", "curriculum", "branch")
    return [*(f"tasks.{name}" for name in of_tasks), *(f"grpo.{name}" for name in of_grpo)]


def _of_score(run: RunFolder) -> dict[str, Any]:
    if "grpo" in check_kind(run):
        raise UsageError(
            f"{run.path}: is a training run, whose rollouts are of many versions of its weights; name a recipe whose "
            "model.folder is the one to begin with"
        )
    score = load_recipe(run.recipe, ScoreRecipe)
    if is_remote(score.model):
        raise UsageError(f"{run.path}: its model {score.model} is an endpoint, which gave no token ids to train on")
    if not score.temperature:
        raise UsageError(f"{run.path}: its rollouts are greedy, so those of a task are all alike; score with --n 8")
    groups = recorded(run)
    live = sum(group.mixed for group in groups)
    if not live:
        raise UsageError(f"{run.path}: in none of its {len(groups)} groups do rewards differ: nothing to learn from")
    tasks_per_update = min(12, live)
    return {
        "seed": score.seed,
        "tasks": {"n_heldout": 0},
        "model": {"folder": score.model},
        "agent": score.agent.model_dump(),
        "grpo": {
            "temperature": score.temperature,
            "tasks_per_update": tasks_per_update,
            "updates": ceil(PASSES * live / tasks_per_update),
        },
    }
