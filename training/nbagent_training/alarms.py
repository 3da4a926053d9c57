"""Alarms: what tends to go wrong in reinforcement learning, said in plain words when its numbers appear.

Each check is a pure function of the metrics so far. A metric that a line lacks is passed over, and a check without
enough lines is silent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the recipe knows the models made from scratch, and they know torch
    from nbagent_training.recipe import TrainRecipe

History = Sequence[Mapping[str, Any]]
"""Metrics of successive updates, oldest first."""
Check = Callable[[History], str]
"""What is wrong and what to try, or ''."""
WINDOW = 10
"""Updates whose mean is judged: single updates of a few dozen rollouts are too noisy."""
SURE = 3
"""Values of what is wrong at any time of a run: enough that it is no single odd update."""
QUIET = 10
"""Updates for which an alarm must have been off before it is said again."""


def entropy_collapse(history: History) -> str:
    """The mean entropy of the last 10 updates is under a tenth of the first 10 updates' mean.

    Entropy falls while a policy learns, by a factor of about three in the demo; a tenth leaves groups without
    differences. No absolute threshold: a model that was warmed up on few patterns begins low.
    """
    first, last = _ends(history, "entropy")
    if first and last < first / 10:
        return (
            f"entropy collapse: entropy fell from {first:.3g} to {last:.3g}, groups will stop to differ; "
            "lower grpo.lr, or raise the entropy bonus or the upper clip"
        )
    return ""


def no_mixed_groups(history: History) -> str:
    """Three updates running without one group that has a gradient: nothing was learned.

    One such update happens by chance where few groups are mixed; three are the tasks' doing. What counts is
    `groups_live`: under grouping `rollout`, or `state` with gamma < 1 or penalties, groups of equal returns teach too.
    """
    last = [line for line in history if _live(line) is not None][-SURE:]
    if len(last) < SURE or any(_live(line) for line in last):
        return ""
    easy = sum(line.get("share_all_1", 0.0) for line in last) / SURE
    hard = sum(line.get("share_all_0", 0.0) for line in last) / SURE
    return (
        f"no mixed groups: for {SURE} updates no group had a gradient (all right: {easy:.0%}, all wrong: {hard:.0%}), "
        f"so nothing was learned; take {'harder' if easy > hard else 'easier'} tasks, or larger groups"
    )


def _live(line: Mapping[str, Any]) -> float | None:
    """Groups with a gradient, or the share of mixed ones; None where a line knows neither or had no group at all."""
    live: float | None = line.get("groups_live", line.get("share_mixed"))
    return live if line.get("groups", 1.0) else None


def gap_growing(history: History) -> str:
    """The sampler-trainer gap: the mean of 3 updates is over 0.05, or that of 10 over 0.02 and twice its beginning.

    The gap is the mean of |log p_sampler - log p_trainer| over sampled tokens, so 0.02 is a mean probability error of
    about 2 %, where others report trouble (1-2 % and rising), and at 5 % they stop trusting the samples at all. A gap
    that is steady and small is the price of a sampler in lower precision; one that grows is a bug or stale weights.
    A sync that never worked shows in the first updates, so the upper bound waits for no beginning to compare with.
    Where other weights sampled on purpose the gap is how far the policy has moved, which says nothing of a sync; there
    the check is left out (`checks_of`).
    """
    first, last = _ends(history, "logp_gap")
    newest = _values(history, "logp_gap")[-SURE:]
    if len(newest) == SURE and _mean(newest) > 0.05:
        said = f"the mean log-prob gap of {SURE} updates is {_mean(newest):.3g}"
    elif last > 0.02 and last > 2 * first:
        said = f"the mean log-prob gap is {last:.3g} (it began at {first:.3g})"
    else:
        return ""
    return (
        f"sampler-trainer gap: {said}; check the weight sync and the sampler's precision, and set grpo.loss.correction"
    )


def lengths_running_away(history: History) -> str:
    """Completion tokens per trajectory have doubled against the first 10 updates while reward rose by less than .05.

    Longer answers that pay are learning; longer ones that do not are the length bias of the loss, and end in
    truncation.
    """
    first, last = _ends(history, "trajectory_tokens_mean")
    reward_first, reward_last = _ends(history, "reward")
    if first and last > 2 * first and reward_last < reward_first + 0.05:
        return (
            f"lengths running away: {last:.0f} tokens per trajectory, {first:.0f} at the beginning, and reward did not "
            "rise with them; look at a few notebooks, and at the loss's normalisation"
        )
    return ""


def reward_collapse(history: History, keep_every: int = 0) -> str:
    """The mean reward of the last 10 updates is under half the best 10 updates' mean, which was at least .05.

    Half is far outside the noise of some hundred rollouts a mean; under .05 there is nothing to lose. `keep_every` is
    the recipe's, by which it is said what there is to go back to.
    """
    rewards = _values(history, "reward")
    if len(rewards) < 2 * WINDOW:
        return ""
    best = max(_mean(rewards[i : i + WINDOW]) for i in range(len(rewards) - WINDOW + 1))
    last = _mean(rewards[-WINDOW:])
    if best >= 0.05 and last < best / 2:
        kept = (
            f"Checkpoints of every {keep_every} updates are kept, and the newest two"
            if keep_every
            else "Only the newest two checkpoints are kept"
        )
        return (
            f"reward collapse: reward is {last:.3f}, it was {best:.3f}; stop, and train anew with a smaller grpo.lr. "
            f"{kept}: where one is from before the fall, `nbagent export RUN --checkpoint grpo/checkpoint-N` makes the "
            "model folder to begin with"
        )
    return ""


def truncation_high(history: History) -> str:
    """More than a quarter of the last 10 updates' trajectories ended by a limit.

    They count as wrong whatever they were about to answer, so the reward then measures the limit.
    """
    values = _values(history, "truncated_share")[-WINDOW:]
    if len(values) == WINDOW and _mean(values) > 0.25:
        return (
            f"truncation: {_mean(values):.0%} of trajectories ran into a limit; raise agent.max_steps or "
            "agent.max_new_tokens"
        )
    return ""


def infrastructure_failures(history: History) -> str:
    """More than 5 % of the last 5 updates' rollouts failed on the host's side.

    They are left out, not counted as wrong; but what fails is seldom a fair sample (long ones run out of memory
    first), and the run stops where the share passes failures.limit.
    """
    last = history[-5:]
    attempts = sum(line.get("attempts", 0.0) for line in last)
    failed = sum(line.get("infrastructure", 0.0) for line in last)
    if attempts and failed / attempts > 0.05:
        return (
            f"infrastructure failures: {failed / attempts:.0%} of the last {len(last)} updates' rollouts failed on the "
            "host's side; the log names the causes"
        )
    return ""


def gradient_exploding(history: History) -> str:
    """Before clipping, the gradient's norm exceeded ten times the median of the 20 updates before in 3 of the last 5.

    A single peak is clipped and harmless, and updates with one mixed group have large norms by nature.
    """
    norms = _values(history, "grad_norm")
    if len(norms) < 25:
        return ""
    usual = median(norms[-25:-5])
    if usual > 0 and sum(norm > 10 * usual for norm in norms[-5:]) >= 3:
        return (
            f"gradient exploding: its norm is {norms[-1]:.3g}, the median before was {usual:.3g}; lower grpo.lr, and "
            "look for rows with extreme ratios"
        )
    return ""


ALARMS: tuple[Check, ...] = (
    entropy_collapse,
    no_mixed_groups,
    gap_growing,
    lengths_running_away,
    reward_collapse,
    truncation_high,
    infrastructure_failures,
    gradient_exploding,
)


def checks_of(recipe: TrainRecipe) -> list[Check]:
    """The checks that say what is true of a run with this recipe.

    A teacher's advantages do not come from rewards: groups without a difference teach as the others do. Recorded
    rollouts, and those that run ahead, were made by other weights, so that a gap is as it should be; `ratio_max` and
    `clip_high_share` tell how far the policy has moved.
    """
    idle: set[Check] = set()
    if recipe.distill.teacher:
        idle.add(no_mixed_groups)
    if recipe.grpo.from_run or recipe.sampler.staleness:
        idle.add(gap_growing)
    worded: dict[Check, Check] = {reward_collapse: partial(reward_collapse, keep_every=recipe.grpo.keep_every)}
    return [worded.get(check, check) for check in ALARMS if check not in idle]


def begun(history: History, checks: Sequence[Check] = ALARMS) -> list[str]:
    """What alarms begin to say with the newest line: those on now that were off for the QUIET updates before it."""
    return [
        words
        for check in checks
        if (words := check(history))
        and not any(check(history[:end]) for end in range(max(1, len(history) - QUIET), len(history)))
    ]


def _values(history: History, name: str) -> list[float]:
    return [float(line[name]) for line in history if name in line]


def _ends(history: History, name: str) -> tuple[float, float]:
    """Means of the first and the last WINDOW values; zeros where the two would overlap."""
    values = _values(history, name)
    if len(values) < 2 * WINDOW:
        return 0.0, 0.0
    return _mean(values[:WINDOW]), _mean(values[-WINDOW:])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
