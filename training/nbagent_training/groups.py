"""Batches: the rows of an update with their advantages (advantages.py) and weights (weights.py). No torch.

A group's attempts are the leaves of a tree (tree.py). Statistics are taken once an attempt, never once a row, so
neither the number of turns nor a split of rows changes them. Attempts that ran into a limit stay in the statistics and
may be masked from the loss (DAPO, Yu et al. 2025, arXiv 2503.14476); what failed on the host's side is in
neither. Calls of a group without variance carry no gradient: they are dropped, the group is counted.

A call is a row, also where its prompt only continues the one before: the trainer computes once what rows share
(microbatches.py), so rows merged under a mask would have the same gradient and save nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbagent.errors import UsageError
from nbagent.rollouts import Group
from nbagent.samples import CallKind, StepSample, samples
from nbagent_training.advantages import ESTIMATORS, Advantages
from nbagent_training.tree import Key, Tree, leaf_of
from nbagent_training.weights import token_weights

if TYPE_CHECKING:  # the recipe knows the models made from scratch, and they know torch
    from nbagent_training.recipe import Grpo


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One model call with what the loss needs."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Behaviour log-probs."""
    advantage: float
    """A_{i,t}."""
    weight: float
    """Each completion token's share of the batch's loss."""
    version: int = 0
    """Version of the weights that sampled it."""
    kind: CallKind = "action"
    """What the call wrote."""
    token_advantages: tuple[float, ...] = ()
    """One per completion token, in place of the row's; empty: all have the row's."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one update and how they came about."""

    rows: list[TrainingRow]
    """Rows with a gradient, in the order of the samples."""
    stats: dict[str, float]
    """reward, reward_std (means over attempts and over groups), groups, groups_live, groups_too_hard,
    groups_too_easy, group_size, trajectories, branchings, rows, summaries, truncated, advantage_mean, advantage_std,
    advantage_min, advantage_max (over rows), completion_tokens; of groups by state: states, states_met_once; and what
    the groups' source counted, summed up."""


def batch_of(groups: Sequence[Group], settings: Grpo) -> Batch:
    """The rows of an update.

    Args:
        groups: each compared within itself; attempts without a reward are in nothing.
        settings: grouping, statistics and normalisation.

    Raises:
        UsageError: calls without token ids, or branched attempts under a grouping that knows no branches.
    """
    counted: dict[str, float] = defaultdict(float)
    trees = []
    for group in groups:
        for name, count in group.counts.items():
            counted[name] += count
        leaves = [
            leaf_of(made.rollout_id, made.reward, made.truncated, samples(made))
            for made in group.trajectories
            if made.reward is not None
        ]
        trees += [Tree(leaves)] if leaves else []
    batch = batch_of_trees(trees, settings)
    batch.stats.update(counted)
    return batch


def batch_of_trees(trees: Sequence[Tree], settings: Grpo) -> Batch:
    """The rows of the tasks' trees. Raises UsageError: a tree with branches under a grouping that knows none."""
    if settings.grouping not in ("trajectory", "branch") and any(tree.branchings for tree in trees):
        raise UsageError(
            f"grpo.grouping: these attempts were branched, which {settings.grouping} knows nothing of; take branch"
        )
    found = [(tree, ESTIMATORS[settings.grouping](tree, settings)) for tree in trees]
    live = [(tree, advantages) for tree, advantages in found if any(any(own.values()) for own in advantages)]
    weights = token_weights([tree for tree, _ in live], settings)
    # A divergence or an entropy bonus has a gradient without an advantage too.
    bare = settings.loss.kl_coef > 0 or settings.loss.entropy_coef > 0
    rows = [
        row for (tree, advantages), own in zip(live, weights, strict=True) for row in _rows(tree, advantages, own, bare)
    ]
    return Batch(
        rows, {**_stats(trees, [tree for tree, _ in live]), **_row_stats(rows), **_state_stats(trees, settings)}
    )


def _rows(tree: Tree, advantages: Advantages, weights: Sequence[dict[Key, float]], bare: bool) -> list[TrainingRow]:
    """A row for each call in the loss; one that attempts share has their summed weight and their mean advantage.

    `bare`: those whose advantage is 0 too.
    """
    parts: dict[Key, list[tuple[float, float]]] = {}
    calls: dict[Key, list[StepSample]] = {}
    for leaf, own, weight in zip(tree.leaves, advantages, weights, strict=True):
        for key, rows in leaf.calls.items():
            calls.setdefault(key, rows)
            if weight[key]:
                parts.setdefault(key, []).append((weight[key], own[key]))
    made = []
    for key, rows in calls.items():
        own_parts = parts.get(key, [])
        total = sum(weight for weight, _ in own_parts)
        # The mean of one is not always itself in floating point.
        advantage = (
            own_parts[0][1]
            if len(own_parts) == 1
            else sum(weight * advantage for weight, advantage in own_parts) / (total or 1.0)
        )
        if not total or (advantage == 0 and not bare):
            continue
        made += [
            TrainingRow(r.prompt_ids, r.completion_ids, r.logprobs, advantage, total, r.version, r.kind) for r in rows
        ]
    return made


def _stats(trees: Sequence[Tree], live: Sequence[Tree]) -> dict[str, float]:
    leaves = [(tree.share(leaf), leaf) for tree in trees for leaf in tree.leaves]
    count = len(leaves)
    calls = {key: rows for _, leaf in leaves for key, rows in leaf.calls.items()}
    dead = [tree for tree in trees if tree not in live]
    return {
        "reward": sum(share * leaf.reward for share, leaf in leaves) / count if count else 0.0,
        "reward_std": sum(tree.deviation for tree in trees) / len(trees) if trees else 0.0,
        "groups": float(len(trees)),
        "groups_live": float(len(live)),
        "groups_too_easy": float(sum(tree.mean > 0 for tree in dead)),
        "groups_too_hard": float(sum(tree.mean <= 0 for tree in dead)),
        "group_size": count / len(trees) if trees else 0.0,
        "trajectories": float(count),
        "branchings": float(sum(tree.branchings for tree in trees)),
        "summaries": float(sum(rows[0].kind == "summary" for rows in calls.values())),
        "truncated": float(sum(leaf.truncated for _, leaf in leaves)),
        "completion_tokens": float(sum(len(row.completion_ids) for rows in calls.values() for row in rows)),
    }


def _row_stats(rows: Sequence[TrainingRow]) -> dict[str, float]:
    values = [row.advantage for row in rows] or [0.0]
    mean = sum(values) / len(values)
    return {
        "rows": float(len(rows)),
        "advantage_mean": mean,
        "advantage_std": (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5,
        "advantage_min": min(values),
        "advantage_max": max(values),
    }


def _state_stats(trees: Sequence[Tree], settings: Grpo) -> dict[str, float]:
    """How many states were met, and by one attempt only: those say nothing."""
    if settings.grouping != "state":
        return {}
    met = [defaultdict[str, set[int]](set) for _ in trees]
    for states, tree in zip(met, trees, strict=True):
        for place, leaf in enumerate(tree.leaves):
            for step in leaf.steps:
                states[leaf.calls[step[-1]][0].state_key].add(place)
    return {
        "states": float(sum(len(states) for states in met)),
        "states_met_once": float(sum(len(places) == 1 for states in met for places in states.values())),
    }
