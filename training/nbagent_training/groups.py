"""Groups and advantages of step samples. No torch.

Grouping `trajectory`: the G rollouts of one task form a group; statistics are taken once per trajectory, never per
row, so neither the number of turns nor a split of rows changes them. For rollout i of task x with T_i calls:

    A_{i,t} = γ^(T_i − t) · (R_i − μ_x) / (σ_x + ε),   t = 1 … T_i

(GRPO: Shao et al. 2024, arXiv 2402.03300, section 4.1; the discount over model calls as in "transitions" training).
The loss of a batch of N trajectories is (1/N) Σ_i (1/L_i) Σ_t w_t Σ_k ℓ_{i,t,k} with L_i = Σ_t w_t · |y_{i,t}|, where
|y_{i,t}| counts the completion tokens of call t: every trajectory weighs the same, however many turns it took
(`rollout_token_mean`). w_t is 1 for an action and `summary_weight` for a memory that the policy asked for. A memory has
its trajectory's advantage (SUPO, Lu et al. 2025, arXiv 2510.06727, eq. 3); a weight of its own keeps the few summary
tokens from being drowned by the many of actions (FoldAct, arXiv 2512.22733).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nbagent.rollouts import Group
from nbagent.samples import CallKind, StepSample, samples

if TYPE_CHECKING:  # the recipe knows the models made from scratch, and they know torch
    from nbagent_training.recipe import Grpo

Sigma = Literal["group", "none"]
EPSILON = 1e-4


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
    """w_t / (N · L_i): each completion token's share of the batch's loss."""
    version: int = 0
    """Version of the weights that sampled it."""
    kind: CallKind = "action"
    """What the call wrote."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The rows of one update and how they came about."""

    rows: list[TrainingRow]
    """Rows with a gradient, in the order of the samples."""
    stats: dict[str, float]
    """reward, reward_std, groups, groups_live, groups_too_hard, groups_too_easy, trajectories, rows, summaries,
    truncated."""


def group_statistics(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (n − 1) of one group's returns; the deviation of a single one is 0."""
    mean = sum(rewards) / len(rewards)
    if len(rewards) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))


def batch_of(groups: Sequence[Group], settings: Grpo) -> Batch:
    """The rows of an update: the groups' model calls with their advantages and weights.

    Args:
        groups: without infrastructure failures.
        settings: grouping, discount, sigma and weights.
    """
    rows = [row for group in groups for trajectory in group.trajectories for row in samples(trajectory)]
    batch = trajectory_batch(
        rows,
        gamma=settings.gamma,
        sigma=settings.sigma,
        mask_truncated=settings.mask_truncated,
        summary_weight=settings.summary_weight,
    )
    batch.stats["completion_tokens"] = float(sum(len(row.completion_ids) for row in rows))
    return batch


def trajectory_batch(
    calls: Sequence[StepSample],
    *,
    gamma: float = 1.0,
    sigma: Sigma = "group",
    mask_truncated: bool = False,
    summary_weight: float = 1.0,
) -> Batch:
    """Advantages and weights under grouping `trajectory`.

    Args:
        calls: all rows of all valid trajectories; infrastructure failures have none and so enter nothing.
        gamma: discount per remaining model call.
        sigma: `group` divides by the group's deviation, `none` does not (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).
        mask_truncated: truncated trajectories stay in the statistics but get no loss (DAPO, Yu et al. 2025,
            arXiv 2503.14476, section 3.4).
        summary_weight: of a memory's tokens, relative to an action's; 0 leaves memories out of the loss.

    Groups whose returns are all equal carry no gradient: they are dropped and counted.
    """
    trajectories: dict[str, dict[str, list[StepSample]]] = defaultdict(lambda: defaultdict(list))
    for sample in calls:
        trajectories[sample.task_id][sample.rollout_id].append(sample)
    live: dict[str, tuple[float, float]] = {}
    easy = hard = 0
    returns: list[float] = []
    deviations: list[float] = []
    for task_id, rollouts in trajectories.items():
        rewards = [rows[0].reward for rows in rollouts.values()]
        mean, deviation = group_statistics(rewards)
        returns += rewards
        deviations.append(deviation)
        if deviation > 0:
            live[task_id] = (mean, deviation)
        elif mean > 0:
            easy += 1
        else:
            hard += 1
    kinds = {"action": 1.0, "summary": summary_weight}
    lengths = {
        (task_id, rollout_id): sum(kinds[row.kind] * len(row.completion_ids) for row in rows)
        for task_id in live
        for rollout_id, rows in trajectories[task_id].items()
    }
    rows = []
    for sample in calls:
        if sample.task_id not in live:
            continue
        mean, deviation = live[sample.task_id]
        scale = deviation + EPSILON if sigma == "group" else 1.0
        advantage = gamma ** (sample.n_steps - 1 - sample.step) * (sample.reward - mean) / scale
        masked = mask_truncated and sample.truncated
        if masked or advantage == 0 or not kinds[sample.kind]:
            continue
        weight = kinds[sample.kind] / (len(lengths) * lengths[(sample.task_id, sample.rollout_id)])
        rows.append(
            TrainingRow(
                sample.prompt_ids,
                sample.completion_ids,
                sample.logprobs,
                advantage,
                weight,
                sample.version,
                sample.kind,
            )
        )
    count = len(returns)
    stats = {
        "reward": sum(returns) / count if count else 0.0,
        "reward_std": sum(deviations) / len(deviations) if deviations else 0.0,
        "groups": float(len(trajectories)),
        "groups_live": float(len(live)),
        "groups_too_easy": float(easy),
        "groups_too_hard": float(hard),
        "trajectories": float(count),
        "rows": float(len(rows)),
        "summaries": float(sum(sample.kind == "summary" for sample in calls)),
        "truncated": float(sum(r[0].truncated for group in trajectories.values() for r in group.values())),
    }
    return Batch(rows, stats)
