"""Advantages of model calls, one estimator per grouping. No torch.

Each takes the tree of a task and gives, for each leaf, one number a call; 0 carries no gradient. Notation: leaf i of
the task has return R_i and T_i calls, t = 1 … T_i; μ and σ are the tree's mean and deviation; ε = 1e-4 keeps a small σ
from making a large advantage. Under `sigma = "none"` nothing is divided (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783),
and under `baseline = "leave_one_out"` a group's mean is taken over the others (RLOO, Ahmadian et al. 2024,
arXiv 2402.14740), n/(n − 1) times as far away; σ stays the whole group's, for that of the others would differ from row
to row and with it the scale of what is compared. A group whose values are all equal, or that has one member, gives 0.
Rewards of single steps are in `state`, `rollout` and `step_index`; `trajectory` and `branch` compare returns alone.

Process term, off by default: q_{i,t} is −`malformed_penalty` where the text was no action, −`failed_penalty` where the
tool call failed, else 0. Where a return is compared, clip(R_i + q_{i,t}, 0, 1) stands in its place, and the statistics
stay those of the returns (FoldGRPO, Sun et al. 2025, arXiv 2510.11967): so bounded, a penalty never makes a step of a
failed attempt worse than the attempt. Where steps have rewards of their own it is added to them: r_{i,t} = q_{i,t} +
what the task gives for step t, and R_i more at the last step.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nbagent.samples import StepSample
from nbagent_training.tree import Key, Leaf, Segment, Tree

if TYPE_CHECKING:  # the recipe knows the models made from scratch, and they know torch
    from nbagent_training.recipe import Grpo

EPSILON = 1e-4
Advantages = list[dict[Key, float]]
"""For each leaf of a tree, its calls' advantages."""


def outcome(tree: Tree, settings: Grpo) -> Advantages:
    """Groupings `trajectory` and `branch`: returns against what else became of the same state.

    `trajectory` (GRPO, Shao et al. 2024, arXiv 2402.03300, over whole attempts):

        A_{i,t} = γ^(T_i − t) · (R_i − μ) / (σ + ε)

    `branch`: call c of the segment of an alternative with value V (mean return of its subtree), whose node has the
    alternatives' values V_1 … V_K, n attempts in the tree:

        A_c = γ^(T − t) · w (V − mean_k V_k) / (σ + ε),   w = K/(K − 1) · (n − 1)/n;   leave_one_out: w = K/(K − 1)

    Siblings continue from one state, so their mean estimates that state's value; shared calls are rows once, and have
    the mean of their subtree for return (as the local advantages of TreeRL, Hou et al. 2025, arXiv 2506.11902, which
    adds those against the whole tree).

    Why w: alternatives are drawn apart, so Σ_k V_k ∇log π_k / K less any baseline of the others is in expectation the
    gradient of the node's value. A mean that holds V_k itself takes 1/K of it off again: (K − 1)/K is left, three
    quarters where four alternatives are compared, half where two roots are, so that calls before a branching would
    learn less than those after it. K/(K − 1) undoes that at each node; (n − 1)/n is what the mean of n attempts leaves
    of it, the same for all nodes. So attempts that were never branched, or all at their first step, have K = n, w = 1
    and the numbers of `trajectory`. n may hang on what attempts did, where one is over before it is branched; under
    `leave_one_out` nothing does. With K = 1 there is nothing to compare with: 0.

    The process term moves V, not the baseline. γ multiplies good and bad alike: it only weakens early calls. A memory
    is a call as any other (SUPO, Lu et al. 2025, arXiv 2510.06727, eq. 3).
    """
    found: Advantages = [{} for _ in tree.leaves]
    places = {id(leaf): place for place, leaf in enumerate(tree.leaves)}
    scale = tree.deviation + EPSILON if settings.sigma == "group" else 1.0
    for segment in tree.segments:
        base = _node_baseline(segment, len(tree.leaves), settings)
        for leaf in segment.leaves:
            for key in segment.calls:
                rows = leaf.calls[key]
                q = _process(rows, settings)
                value = min(max(segment.value + q, 0.0), 1.0) if q else segment.value
                remaining = rows[0].n_steps - 1 - rows[0].step
                advantage = settings.gamma**remaining * (value - base) / scale if tree.deviation else 0.0
                found[places[id(leaf)]][key] = advantage
    return found


def state(tree: Tree, settings: Grpo) -> Advantages:
    """Grouping `state` (GiGPO, Feng et al. 2025, arXiv 2505.10978): attempts that met the same notebook and kernel.

        A_{i,t} = (R_i − μ) / (σ + ε) + ω · (G_{i,t} − mean_s G) / (σ_s + ε)

    s is the state that call t saw (nbagent.normal_form.state_key: the normalised notebook, and what had run since the
    kernel's last start), G_{i,t} = Σ_{k ≥ t} γ^(k − t) r_{i,k} the return from there, ω
    `state_weight`. An attempt that meets a state more than once counts once in its statistics, with the mean of its
    visits (GiGPO counts every visit, so that going round in circles would move the baseline). Alone in a state: 0.
    """
    found = outcome(tree, settings.model_copy(update={"gamma": 1.0}))
    visits: dict[str, dict[int, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    for place, leaf in enumerate(tree.leaves):
        for number, (step, value) in enumerate(zip(leaf.steps, returns_to_go(leaf, settings), strict=True)):
            visits[leaf.calls[step[-1]][0].state_key][place].append((number, value))
    for met in visits.values():
        means = [sum(value for _, value in seen) / len(seen) for seen in met.values()]
        spread = deviation(means)
        if not spread:
            continue
        scale = spread + EPSILON if settings.sigma == "group" else 1.0
        for place, mean in zip(met, means, strict=True):
            base = _baseline(mean, means, settings)
            for number, value in met[place]:
                for key in tree.leaves[place].steps[number]:
                    found[place][key] += settings.state_weight * (value - base) / scale
    return found


def rollout(tree: Tree, settings: Grpo) -> Advantages:
    """Grouping `rollout`, for tasks with step rewards: the steps of one attempt against each other.

        A_{i,t} = (r_{i,t} − mean_t r_i) / (σ_i + ε)

    REINFORCE on step rewards with their mean as baseline. The mean holds rewards that step t had an influence on, so
    it is no baseline in the strict sense: what a step does for those after it is taken off again. Of tasks that reward
    no steps, a right attempt of four calls would have −½, −½, −½, 3/2 and unlearn what led to its answer, so these are
    refused (practice.py). Penalties do not stand in for step rewards: all that is learned then is to avoid them.
    """
    return [_spread(leaf, _compared(rewards(leaf, settings), settings)) for leaf in tree.leaves]


def step_index(tree: Tree, settings: Grpo) -> Advantages:
    """Grouping `step_index`: step t of each attempt against step t of the others (turn-level groups, as in MT-GRPO,
    Zeng et al. 2025, arXiv 2505.11821).

        A_{i,t} = (G_{i,t} − mean_{j: T_j ≥ t} G_{j,t}) / (σ_t + ε)

    Biased where the number of steps varies: who is in the group of step t was decided by the attempts' own choice to
    stop, so a step is compared with those of attempts that went on as long. How many baselines are taken off then
    depends on the actions, which for a baseline must not be. The states of one index may have nothing in common.
    """
    returns = [returns_to_go(leaf, settings) for leaf in tree.leaves]
    by_step: list[list[float]] = [[] for _ in returns]
    for number in range(max(map(len, returns))):
        there = [place for place, values in enumerate(returns) if len(values) > number]
        for place, advantage in zip(
            there, _compared([returns[place][number] for place in there], settings), strict=True
        ):
            by_step[place].append(advantage)
    return [_spread(leaf, steps) for leaf, steps in zip(tree.leaves, by_step, strict=True)]


ESTIMATORS: dict[str, Callable[[Tree, Grpo], Advantages]] = {
    "trajectory": outcome,
    "branch": outcome,
    "state": state,
    "rollout": rollout,
    "step_index": step_index,
}


def deviation(values: Sequence[float]) -> float:
    """Sample standard deviation (n − 1); 0 of one value, and of values that are all equal."""
    if len(values) < 2 or min(values) == max(values):
        return 0.0
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def rewards(leaf: Leaf, settings: Grpo) -> list[float]:
    """r_{i,t} of each step: the process term, what the task gives for the step, and the return at the last."""
    given = [_process(rows, settings) + rows[0].step_reward for rows in (leaf.calls[step[-1]] for step in leaf.steps)]
    return [*given[:-1], given[-1] + leaf.reward] if given else []


def returns_to_go(leaf: Leaf, settings: Grpo) -> list[float]:
    """G_{i,t} = r_{i,t} + γ G_{i,t+1} of each step."""
    found: list[float] = []
    after = 0.0
    for reward in reversed(rewards(leaf, settings)):
        after = reward + settings.gamma * after
        found.append(after)
    return found[::-1]


def _process(rows: Sequence[StepSample], settings: Grpo) -> float:
    if rows[0].malformed:
        return -settings.malformed_penalty
    return -settings.failed_penalty if rows[0].failed else 0.0


def _baseline(value: float, values: Sequence[float], settings: Grpo) -> float:
    """The mean, or that of the others; the value itself where it is alone."""
    if settings.baseline == "mean" or len(values) < 2:
        return sum(values) / len(values)
    return (sum(values) - value) / (len(values) - 1)


def _node_baseline(segment: Segment, n: int, settings: Grpo) -> float:
    """b with V − b = w (V − mean_k V_k), see `outcome`; V itself where it is alone."""
    values, own = segment.siblings, segment.value
    if settings.baseline == "leave_one_out" or len(values) < 2:
        return _baseline(own, values, settings)
    weight = len(values) * (n - 1) / (n * (len(values) - 1))
    return weight * sum(values) / len(values) + (1 - weight) * own


def _compared(values: Sequence[float], settings: Grpo) -> list[float]:
    """The advantages of a group."""
    spread = deviation(values)
    if not spread:
        return [0.0] * len(values)
    scale = spread + EPSILON if settings.sigma == "group" else 1.0
    return [(value - _baseline(value, values, settings)) / scale for value in values]


def _spread(leaf: Leaf, steps: Sequence[float]) -> dict[Key, float]:
    """Steps' advantages given to their calls: a memory has that of the step before which it was written."""
    return {key: value for step, value in zip(leaf.steps, steps, strict=True) for key in step}
