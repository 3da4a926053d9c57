"""Recorded rollouts: groups for GRPO and examples for supervised training, from a run that is over. No torch.

**GRPO on stale rows.** The rows were sampled by other weights than those that are trained, a little more so with each
update. What stays right: prompts, completions and log-probs are the recorded ids and numbers, never encoded again; a
group's baseline is the mean of its own rollouts, which one policy made. What does not: the gradient is that of the
recorded policy's tokens, so each token needs its importance ratio, current over recorded probability. With
`[grpo.loss] old = "sampler"` (what `nbagent train --from` sets) the clipped ratio is taken against the recorded
log-probs, and a token that moved out of the clip range adds nothing more: the rows are used until the policy has moved
about that far, and no further. `correction = "truncate"` weighs them instead, and lets the policy move on. Neither
corrects which prompts were met, since earlier actions led there. So begin from the weights that made the rollouts, or
near them; a pass or two over the rows is what they bear; the ratio's statistics tell how far it has gone.

**Supervised training on own rollouts** that a verifier called right (rejection sampling; RFT, Yuan et al. 2023, arXiv
2308.01825) needs no ratio: they are examples.
"""

from __future__ import annotations

import random
import tomllib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from nbagent.errors import UsageError
from nbagent.rollouts import Group
from nbagent.runfolder import RunFolder
from nbagent.samples import StepSample, samples
from nbagent.score_run import ScoreRecipe
from nbagent.tasks import Task
from nbagent.trajectory import Trajectory
from nbagent_training.groups import batch_of
from nbagent_training.lineage import Lineage, practised_in
from nbagent_training.practice import check_rewards

if TYPE_CHECKING:  # the recipe knows the models made from scratch, and they know torch
    from nbagent_training.recipe import Grpo

Keep = Literal["correct", "all"]
Order = Literal["shortest", "random"]


@dataclass(frozen=True, slots=True)
class RecordedGroup:
    """The rollouts that are compared with each other: of a score all those of a task, of a training run one group."""

    task_id: str
    question: str
    version: int = 0
    """Update of the training run that practised them; 0 in a score. Where rollouts ran ahead, older weights than the
    update's made some of them."""
    place: int = 0
    """Among the groups of that update."""
    rollout_ids: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    """In the order of the ids."""
    called: list[str] = field(default_factory=list)
    """Those of the ids whose rollouts asked the model, never none. The others, whose first prompt did not fit, are
    nothing to learn, but are among what is compared."""

    @property
    def mixed(self) -> bool:
        """Rewards differ; where they are all equal, groupings `trajectory` and `branch` have no gradient."""
        return len(set(self.rewards)) > 1


def recorded(run: RunFolder) -> list[RecordedGroup]:
    """The rollouts of a finished run that may be trained on, branches among them.

    Of a training run only practice counts: its other rollouts are those of held-out tasks. A group of which no rollout
    asked the model is left out.

    Raises:
        UsageError: there are none.
    """
    sampled = check_kind(run)
    groups: dict[tuple[str, str, int, int], RecordedGroup] = {}
    for trajectory in run.trajectories():
        group_of = practised_in(trajectory.rollout_id) if "grpo" in sampled else (0, 0)
        if trajectory.reward is None or group_of is None:
            continue
        key = trajectory.task_id, trajectory.question, *group_of
        group = groups.setdefault(key, RecordedGroup(*key))
        group.rollout_ids.append(trajectory.rollout_id)
        group.rewards.append(trajectory.reward)
        if any(event["kind"] == "call" for event in trajectory.events):
            group.called.append(trajectory.rollout_id)
    if not (found := [group for group in groups.values() if group.called]):
        raise UsageError(
            f"{run.path}: holds no rollout with a reward; give a run of `nbagent score` or `nbagent train`"
        )
    return found


def check_kind(run: RunFolder) -> dict[str, Any]:
    """The recipe of a run whose rollouts may be learned from.

    Raises:
        UsageError: it is a run of another kind, such as one of the benchmark, whose tasks are there to be scored.
    """
    recipe = tomllib.loads(run.recipe.read_text(encoding="utf-8"))
    if "grpo" not in recipe and (other := sorted(recipe.keys() - ScoreRecipe.model_fields.keys())):
        raise UsageError(
            f"{run.path}: its recipe is of another kind (it has {other[0]!r}); only rollouts of `nbagent train`, "
            "`nbagent score` and `nbagent profile` are learned from; give such a run"
        )
    return recipe


def check_recorded(
    run: RunFolder, groups: Sequence[RecordedGroup], heldout: Sequence[Task], grouping: str = ""
) -> dict[str, Task]:
    """The groups' tasks, by id and question joined by a line end.

    Raises:
        UsageError: one is a held-out task, may not be trained on (under this grouping), or is not found where it was.
    """
    kept_out = {(task.task_id, task.question) for task in heldout}
    tasks: dict[str, Task] = {}
    for group in groups:
        if (group.task_id, group.question) in kept_out:
            raise UsageError(
                f"{run.path}: its rollouts are of task {group.task_id}, which this recipe holds out for scoring"
            )
        if _name(group) not in tasks:
            tasks[_name(group)] = run.open_task(group.task_id, group.question)
    check_rewards(list(tasks.values()), grouping)
    return tasks


def _name(group: RecordedGroup) -> str:
    return f"{group.task_id}\n{group.question}"


def check_ids(trajectory: Trajectory, tokenizer: Any) -> None:
    """Raises UsageError where the ids are not this tokenizer's: those of the first call do not spell its text."""
    call = next(event for event in trajectory.events if event["kind"] == "call")
    ids = call["completion_ids"]
    if ids is not None and (max(ids) >= len(tokenizer) or call["text"] not in tokenizer.decode(ids)):
        raise UsageError(
            f"{trajectory.rollout_id}: its token ids are not this model's; train the model that made the rollouts, or "
            "one with the same tokenizer"
        )


class Recorded:
    """A RolloutSource over a finished run: no rollout is made.

    Groups that carry no gradient under the recipe are left out: those whose rewards are all equal, under groupings
    `trajectory` and `branch`; under the others such groups may have one, by the rewards of their steps, penalties or a
    discount. What is left comes in a new random order in every pass, which depends on the seed and the update's number
    alone.

    Attributes:
        n_left_out: groups without a gradient.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Any,
        into: RunFolder,
        recipe: Grpo,
        *,
        seed: int,
        heldout: Sequence[Task] = (),
    ) -> None:
        """Look through the rollouts.

        Args:
            path: the finished run's folder.
            tokenizer: of the model that is trained.
            into: the run that is trained now.
            recipe: how advantages come about, and the temperature at which log-probs are computed in training; the
                recorded ones are at their run's.
            seed: of the order.
            heldout: tasks that must not be learned.

        Raises:
            UsageError: rollouts that may not be trained on (under this grouping), without ids, of another tokenizer or
                temperature; or no group has a gradient.
        """
        self.run = RunFolder.open(path)
        self.lineage = Lineage(into)
        self.seed = seed
        sampled = check_kind(self.run)
        was = sampled.get("temperature", sampled.get("grpo", {}).get("temperature", recipe.temperature))
        if was != recipe.temperature:
            raise UsageError(f"{path}: was sampled at temperature {was:g}; set grpo.temperature to it")
        found = recorded(self.run)
        self._tasks = check_recorded(self.run, found, heldout, recipe.grouping)
        self._groups = [group for group in found if batch_of([self._load(group)], recipe).stats["groups_live"]]
        self.n_left_out = len(found) - len(self._groups)
        if not self._groups:
            raise UsageError(
                f"{path}: under grpo.grouping {recipe.grouping} none of its {len(found)} groups has a gradient: "
                "nothing to learn from"
            )
        for group in self._groups:
            check_ids(self.run.load(group.called[0]), tokenizer)

    def __len__(self) -> int:
        """Groups of one pass."""
        return len(self._groups)

    def next_groups(self, n: int, version: int) -> list[Group]:
        """The n groups of update `version`."""
        chosen = []
        for place in range(version * n, (version + 1) * n):
            turn, index = divmod(place, len(self))
            order = list(range(len(self)))
            random.Random(f"{self.seed} pass {turn}").shuffle(order)
            chosen.append(self._load(self._groups[order[index]]))
        return chosen

    def _load(self, group: RecordedGroup) -> Group:
        return Group(self._tasks[_name(group)], [self.run.load(name) for name in group.rollout_ids])


def own_examples(
    path: Path,
    tokenizer: Any,
    *,
    keep: Keep,
    per_task: int,
    order: Order,
    seed: int,
    heldout: Sequence[Task] = (),
) -> list[list[StepSample]]:
    """Trajectories to learn from by supervision, each as its calls with the ids as they were sampled.

    Args:
        path: a finished run's folder.
        tokenizer: of the model that learns.
        keep: `correct` takes those with reward 1, `all` takes every one with a reward.
        per_task: at most so many of a task, so that easy tasks do not crowd out the others.
        order: which of a task come first: those that wrote the fewest tokens, or any.
        seed: of the random order.
        heldout: tasks that must not be learned.

    Two of a task that wrote the same tokens count once, and so do the calls that branches share.

    Raises:
        UsageError: rollouts that may not be trained on, without ids, or of another tokenizer; or none is left.
    """
    run = RunFolder.open(path)
    found = recorded(run)
    check_recorded(run, found, heldout)
    by_task = defaultdict[tuple[str, str], dict[tuple[tuple[int, ...], ...], list[StepSample]]](dict)
    for group in found:
        check_ids(run.load(group.called[0]), tokenizer)
        for name, reward in zip(group.rollout_ids, group.rewards, strict=True):
            if name in group.called and (keep == "all" or reward == 1):
                rows = samples(run.load(name))
                written = tuple(row.completion_ids for row in rows)
                by_task[group.task_id, group.question].setdefault(written, rows)
    chosen: list[list[StepSample]] = []
    for key, distinct in sorted(by_task.items()):
        examples = list(distinct.values())
        if order == "shortest":
            examples.sort(key=lambda rows: sum(len(row.completion_ids) for row in rows))
        else:
            random.Random(f"{seed} {key[0]}").shuffle(examples)
        shared: set[tuple[str, int]] = set()
        for rows in examples[:per_task]:
            chosen.append([row for row in rows if (row.origin, row.step) not in shared])
            shared.update((row.origin, row.step) for row in rows)
    if not chosen:
        raise UsageError(f'{path}: no rollout there is right, so there is nothing to learn from; set keep = "all"')
    return chosen
