"""Intervals and pass@k: what a score says beyond its number.

One attempt per task: Wilson's score interval. Several attempts per task: a bootstrap over tasks, because
attempts at one task are not independent. Two models on the same tasks: the mean of the per-task differences,
bootstrapped over tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

Method = Literal["wilson", "bootstrap", "bound"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its interval, all on the scale of the values (0 to 1 for shares).

    Example:
        >>> wilson(9, 10).value
        0.9
    """

    value: float
    """The point estimate; NaN never occurs, an estimate over nothing is an error."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Tasks it rests on."""
    method: Method
    """wilson; bootstrap (over tasks); bound (every task gave the same, see `constant_bound`)."""
    level: float = 0.95
    """Confidence level."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """After minus before, on the same tasks."""

    difference: Estimate
    """Mean over tasks of (after − before), with its interval."""
    before: float
    """Mean over these tasks before."""
    after: float
    """Mean over these tasks after."""
    better: int
    """Tasks whose value rose."""
    worse: int
    """Tasks whose value fell."""
    p_value: float | None
    """Exact McNemar p, two-sided; None where a task has a value other than 0 and 1."""


def _z(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    return NormalDist().inv_cdf(0.5 + level / 2)


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """Wilson's score interval of a proportion, without continuity correction.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209–212; recommended for small n by Brown, Cai and
    DasGupta, Stat. Sci. 16 (2001) 101–133.

    Raises:
        ValueError: n < 1, or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: not a proportion")
    z, p = _z(level), successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(p, low, high, n, "wilson", level)


def constant_bound(value: float, n: int, support: tuple[float, float], level: float = 0.95) -> Estimate:
    """An interval where all n tasks gave the same value, so that resampling them would claim certainty.

    Wilson's upper bound u for 0 of n limits the share of tasks in the population that would differ; these may
    lie anywhere in the support (a, b), so the mean lies in [v − (v − a)u, v + (b − v)u]. For v = 0 or 1 in
    (0, 1) this is Wilson's interval itself.
    """
    u = wilson(0, n, level).high
    a, b = support
    return Estimate(value, value - (value - a) * u, value + (b - value) * u, n, "bound", level)


def bootstrap_mean(
    values: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
    support: tuple[float, float] = (0.0, 1.0),
) -> Estimate:
    """Mean of per-task values with the percentile interval of a bootstrap over tasks.

    The task is the unit that is drawn, so that attempts at one task stay together. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), ch. 13. Deterministic in `seed`.

    Args:
        values: one value per task, inside `support`.
        seed: seed of the draws.
        resamples: bootstrap samples.
        level: confidence level.
        support: least and greatest value a task can have.

    Raises:
        ValueError: no values.
    """
    task_values = np.asarray(values, dtype=float)
    if task_values.size == 0:
        raise ValueError("no tasks to average over")
    if np.all(task_values == task_values[0]):
        return constant_bound(float(task_values[0]), len(task_values), support, level)
    rng = np.random.default_rng(seed)
    # Drawing how often each distinct value comes up is the same draw as drawing tasks, and far cheaper.
    distinct, counts = np.unique(task_values, return_counts=True)
    draws = rng.multinomial(len(task_values), counts / len(task_values), size=resamples)
    means = draws @ distinct / len(task_values)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(task_values.mean()), float(low), float(high), len(task_values), "bootstrap", level)


def pass_at_k(n: int, c: int, k: int) -> float:
    """Chance that at least one of k attempts is right, estimated without bias from c right ones among n.

    1 − C(n − c, k) / C(n, k): Chen et al. 2021 (arXiv 2107.03374), eq. 1.

    Raises:
        ValueError: not 1 ≤ k ≤ n, or c outside 0..n.
    """
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@{k} of {c} right among {n}: needs 1 ≤ k ≤ n and 0 ≤ c ≤ n")
    return 1.0 - math.comb(n - c, k) / math.comb(n, k)


def mean_of_tasks(counts: Sequence[tuple[int, int]], k: int = 1, *, seed: int = 0, level: float = 0.95) -> Estimate:
    """pass@k over tasks: Wilson where every task has one attempt, else a bootstrap over tasks.

    Args:
        counts: (attempts n, right ones c) per task; only tasks with n ≥ k count.
        k: attempts allowed.
        seed: seed of the bootstrap.
        level: confidence level.

    Raises:
        ValueError: no task has k attempts.
    """
    usable = [(n, c) for n, c in counts if n >= k]
    if not usable:
        raise ValueError(f"no task has {k} graded attempts")
    if all(n == 1 for n, _ in usable):
        return wilson(sum(c for _, c in usable), len(usable), level)
    return bootstrap_mean([pass_at_k(n, c, k) for n, c in usable], seed=seed, level=level)


def ratio_of_tasks(pairs: Sequence[tuple[int, int]], *, seed: int = 0, level: float = 0.95) -> Estimate:
    """The share of all attempts that were hits: Wilson where every task has one attempt, else a bootstrap over tasks.

    Unlike `mean_of_tasks`, attempts weigh the same, whichever task they are of.

    Args:
        pairs: (attempts n, hits among them) per task; tasks without attempts count for nothing.
        seed: seed of the bootstrap.
        level: confidence level.

    Raises:
        ValueError: there are no attempts.
    """
    usable = np.asarray([(n, hits) for n, hits in pairs if n], dtype=float).reshape(-1, 2)
    n, hits = usable.sum(axis=0)
    if not n:
        raise ValueError("no attempts to take a share of")
    if n == len(usable):
        return wilson(int(hits), int(n), level)
    shares = usable[:, 1] / usable[:, 0]
    if np.all(shares == shares[0]):
        return constant_bound(float(shares[0]), len(usable), (0.0, 1.0), level)
    distinct, counts = np.unique(usable, axis=0, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(usable), counts / len(usable), size=10_000)
    sums = draws @ distinct
    low, high = np.quantile(sums[:, 1] / sums[:, 0], [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(hits / n), float(low), float(high), len(usable), "bootstrap", level)


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided exact p of McNemar's test: the discordant pairs against a fair coin.

    Source: Q. McNemar, Psychometrika 12 (1947) 153–157, with the binomial distribution in place of χ².
    """
    n = better + worse
    tail: int = sum(math.comb(n, i) for i in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / (1 << n))


def paired_difference(
    before: Sequence[float],
    after: Sequence[float],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> PairedDifference:
    """After minus before on the same tasks, in the same order; the interval is a bootstrap over tasks.

    Pairing takes the difficulty of the tasks out of the comparison. Values lie in 0..1 (share of a task's
    attempts that were right).

    Raises:
        ValueError: lengths differ, or there is nothing.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} tasks before and {len(after)} after: not pairs")
    values_before, values_after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    differences = values_after - values_before
    estimate = bootstrap_mean(differences.tolist(), seed=seed, resamples=resamples, level=level, support=(-1.0, 1.0))
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    binary = bool(np.isin(np.concatenate([values_before, values_after]), (0.0, 1.0)).all())
    p = mcnemar_exact(better, worse) if binary else None
    return PairedDifference(estimate, float(values_before.mean()), float(values_after.mean()), better, worse, p)
