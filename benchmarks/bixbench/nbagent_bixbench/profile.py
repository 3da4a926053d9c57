"""Performance profiles of several models, and the area under them.

What a question t costs a model m is the mean number of attempts until the first right one, c(t, m) = 1 / p(t, m) with
p the share of m's graded attempts at t that were right, infinite where none was. The ratio to the best model is
r(t, m) = c(t, m) / min over models of c(t, ·), and the profile

    ρ_m(τ) = |{t : r(t, m) ≤ τ}| / |T|

is the share of the questions on which m needs at most τ times the attempts of the best: E. D. Dolan and J. J. Moré,
Math. Program. 91 (2002) 201–213, eq. 2.1–2.2. T are the questions that every model has a graded attempt at and at
least one model gets right once; questions that nobody solves tell models apart no more than questions nobody was asked.

The score is the area under the profile over a logarithmic axis, as machine-learning agents are compared with (AUP;
D. Nathani et al., MLGym, arXiv 2502.14499), here over 1 ≤ τ ≤ n and divided by its width, so that it lies
between 0 and 1:

    AUP_m = 1/ln n · ∫₁ⁿ ρ_m(τ) d ln τ = 1/|T| · Σ_t max(0, 1 − ln r(t, m) / ln n),

n being the most graded attempts that any model has at any question: no finite ratio is larger. With one attempt per
question the ratio is 1 or infinite, and AUP is the share of T that the model got right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nbagent.errors import UsageError


@dataclass(frozen=True, slots=True)
class Profile:
    """One model's profile."""

    steps: tuple[tuple[float, float], ...]
    """(τ, ρ(τ)) at τ = 1, wherever ρ rises, and at τ = n."""
    aup: float
    """Area under it, 0 to 1."""
    n_solved: int
    """Questions of T with a right attempt."""
    n_questions: int
    """|T|."""


def performance_profiles(counts: Sequence[Mapping[str, tuple[int, int]]]) -> list[Profile]:
    """The profiles of some models.

    Args:
        counts: for each model (graded attempts, right ones) by question.

    Raises:
        UsageError: no question was attempted by all and solved by any.
    """
    shared = set.intersection(*({name for name, (n, _) in model.items() if n} for model in counts))
    solved = [name for name in sorted(shared) if any(model[name][1] for model in counts)]
    if not solved:
        raise UsageError("no question was attempted by all and solved by any; there is nothing to profile")
    most = max(model[name][0] for model in counts for name in shared)
    best = {name: max(model[name][1] / model[name][0] for model in counts) for name in solved}
    return [_profile([_ratio(model[name], best[name]) for name in solved], most) for model in counts]


def _ratio(count: tuple[int, int], best: float) -> float:
    n, right = count
    return best * n / right if right else math.inf


def _profile(ratios: Sequence[float], most: int) -> Profile:
    finite = sorted(ratio for ratio in ratios if ratio < math.inf)
    n = len(ratios)
    # 1 is where every profile begins; that a float is a hair above it must not make a step of its own.
    places = sorted({1.0, float(most), *(round(ratio, 9) for ratio in finite)})
    steps = tuple((tau, sum(ratio <= tau + 1e-8 for ratio in finite) / n) for tau in places)
    widest = math.log(most)
    area = sum(max(0.0, 1 - math.log(ratio) / widest) if widest else 1.0 for ratio in finite) / n
    return Profile(steps, area, len(finite), n)
