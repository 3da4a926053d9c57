"""Majority votes over the answers of several attempts at one question.

Attempts vote for what they say, not for a letter: numbers by value, texts as `strict` normalises them, options by
their text. An attempt without an answer is drawn but does not vote; where nobody votes, the vote is wrong. Ties are
broken at random among the most frequent. All values are exact expectations over every choice of k attempts out of n:
there is nothing to seed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from math import comb

from nbagent.stats import Estimate, bootstrap_mean, wilson
from nbagent.tasks import Outcome
from nbagent_bixbench.choice import chosen_option
from nbagent_bixbench.results import Result
from nbagent_bixbench.strict import canonical


@lru_cache(maxsize=65536)
def win_chances(counts: tuple[int, ...], silent: int = 0) -> tuple[tuple[float, ...], ...]:
    """Each answer's chance to win a vote among k attempts drawn without replacement, for k = 1..n.

    An answer with m of the k votes wins where no other has more, and with chance 1/(t + 1) where t others have m too.
    The ways to draw that are counted by adding one answer after the other.

    Args:
        counts: how many of the attempts gave each answer.
        silent: how many gave none.

    Returns:
        For each k a tuple with one chance per answer; the rest to 1 is the chance that nobody votes.

    Example:
        >>> win_chances((2, 1))[0], win_chances((2, 1))[2]
        ((0.6666666666666666, 0.3333333333333333), (1.0, 0.0))
    """
    n = sum(counts) + silent
    chances = [[0.0] * len(counts) for _ in range(n)]
    for place, count in enumerate(counts):
        others = (*counts[:place], *counts[place + 1 :])
        for votes in range(1, count + 1):
            for (used, ties), ways in _ways(others, silent, votes).items():
                k = used + votes
                chances[k - 1][place] += comb(count, votes) * ways / (ties + 1) / comb(n, k)
    return tuple(tuple(row) for row in chances)


def _ways(others: Sequence[int], silent: int, most: int) -> Mapping[tuple[int, int], int]:
    """Ways to draw from the others with none above `most`, by (attempts drawn, answers that reach `most`)."""
    ways = {(used, 0): comb(silent, used) for used in range(silent + 1)}
    for count in others:
        grown = defaultdict[tuple[int, int], int](int)
        for (used, ties), number in ways.items():
            for votes in range(min(count, most) + 1):
                grown[used + votes, ties + (votes == most)] += number * comb(count, votes)
        ways = grown
    return ways


def ballot(result: Result) -> Hashable | None:
    """What an attempt votes for; None where it gave no answer."""
    if result.outcome is Outcome.NO_ANSWER or (result.answer is None and result.choice is None):
        return None
    if result.mode.startswith("mcq"):
        return chosen_text(result)
    return Outcome.REFUSED if result.outcome is Outcome.REFUSED else canonical(result.answer or "")


def chosen_text(result: Result) -> str | None:
    """Text of the option that was chosen; None where none was."""
    if result.choice is not None:
        return result.choice
    option = chosen_option(result.answer, result.options)
    return option.text if option else None


def vote_curve(results: Sequence[Result], *, seed: int = 0) -> dict[int, Estimate]:
    """Accuracy of the vote among k attempts, by k, over the questions with at least k attempts that were graded.

    Questions with an ungraded attempt are left out: their vote could not be graded either. The values are exact;
    `seed` is that of the interval's bootstrap over questions, Wilson's where each has one attempt.
    """
    curves = [curve for curve in (expected_vote(rows) for rows in by_question(results).values()) if curve]
    found = {}
    for k in range(1, max(map(len, curves), default=0) + 1):
        values = [curve[k - 1] for curve in curves if len(curve) >= k]
        single = k == 1 and all(len(curve) == 1 for curve in curves)
        found[k] = wilson(round(sum(values)), len(values)) if single else bootstrap_mean(values, seed=seed)
    return found


def by_question(results: Sequence[Result]) -> dict[tuple[str, str, str], list[Result]]:
    """The attempts at each question in each mode and setting, without those that a host-side failure ended."""
    groups = defaultdict[tuple[str, str, str], list[Result]](list)
    for result in results:
        if result.outcome is not Outcome.INFRASTRUCTURE:
            groups[result.question_key, result.mode, result.setting].append(result)
    return groups


def expected_vote(rows: Sequence[Result]) -> list[float]:
    """Chance that the vote among k attempts at one question is right, for k = 1..n; [] where one is ungraded."""
    if any(row.outcome is Outcome.UNGRADED for row in rows):
        return []
    right, count = Counter[Hashable](), Counter[Hashable]()
    for row in rows:
        said = ballot(row)
        count[said] += 1
        right[said] += row.outcome is Outcome.CORRECT
    silent = count.pop(None, 0)
    # A judge may call one and the same answer right and wrong: then it counts by the share of its attempts.
    worth = [right[said] / count[said] for said in count]
    chances = win_chances(tuple(count.values()), silent)
    return [sum(chance * value for chance, value in zip(row, worth, strict=True)) for row in chances]


def letter_vote_curve(results: Sequence[Result]) -> dict[int, float]:
    """The published majority vote over letters, whose faults make it no evidence; for comparison with old figures.

    It compares the most frequent letter with the key letter of replica 0, although every replica shuffled its
    options anew, and it drops the last replica's prediction (`row[:-1]`). Here as its exact expectation, ties broken
    at random. For an agent that is always right, with n replicas and o options, the value at k = 1 is
    1/(n−1) + (n−2)/(n−1)/o.
    """
    curves: list[list[float]] = []
    for rows in by_question([result for result in results if result.options]).values():
        ordered = sorted(rows, key=lambda row: row.replica)
        key = next((option.letter for option in ordered[0].options if option.kind == "ideal"), "")
        letters = Counter(_letter(row) for row in ordered[:-1])
        place = list(letters).index(key) if key in letters else None
        chances = win_chances(tuple(letters.values()))
        curves.append([0.0 if place is None else row[place] for row in chances])
    longest = max(map(len, curves), default=0)
    by_k = {k: [curve[k - 1] for curve in curves if len(curve) >= k] for k in range(1, longest + 1)}
    return {k: sum(values) / len(values) for k, values in by_k.items()}


def _letter(result: Result) -> str:
    text = chosen_text(result)
    # The published parser's letter for what it could not read.
    return next((option.letter for option in result.options if option.text == text), "Z")
