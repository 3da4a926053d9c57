"""What a set of results amounts to: accuracy, precision, coverage, pass@k, votes, by kind of question, with intervals.

Ungraded and infrastructure results have no reward: they are counted in `outcomes` and in `n_total`, and left out of
everything else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from nbagent.stats import Estimate, mean_of_tasks, ratio_of_tasks
from nbagent.tasks import Outcome
from nbagent_bixbench.guessable import guessable
from nbagent_bixbench.results import Result
from nbagent_bixbench.vote import letter_vote_curve, vote_curve


@dataclass(frozen=True, slots=True)
class Tally:
    """The numbers of some results. The names are those of the published summaries."""

    n_total: int
    """Results, whatever their outcome."""
    n_graded: int
    """Results with a reward: all but ungraded and infrastructure."""
    n_correct: int
    n_sure: int
    """Graded results with an answer that is no refusal; under the published policies all that are no refusal."""
    intervals: dict[str, Estimate]
    """accuracy, precision and coverage with their intervals; what cannot be computed is not in it."""
    outcomes: dict[str, int]
    """Results by outcome, all six of them."""

    @property
    def accuracy(self) -> float | None:
        """n_correct / n_graded; None where nothing was graded."""
        return self._value("accuracy")

    @property
    def precision(self) -> float | None:
        """n_correct / n_sure; None where nothing was sure."""
        return self._value("precision")

    @property
    def coverage(self) -> float | None:
        """n_sure / n_graded; None where nothing was graded."""
        return self._value("coverage")

    def _value(self, name: str) -> float | None:
        estimate = self.intervals.get(name)
        return estimate.value if estimate else None


@dataclass(frozen=True, slots=True)
class Judging:
    """How far a judge agreed with itself."""

    n_judged: int
    """Results that a judge was asked about."""
    n_undecided: int
    """Of these, without a majority or without a judge that could be reached."""
    agreement: float | None
    """Mean share of a result's votes that are its verdict, over those with two votes or more; None: there are none."""
    models: tuple[str, ...]
    prompt_versions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Effort:
    """What the attempts took, summed."""

    steps: int
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    cost: float | None
    """None where no result knows its cost."""


@dataclass(frozen=True, slots=True)
class Summary(Tally):
    """The numbers of a whole set of results.

    Example:
        >>> row = Result("bix-900-q1", 0, "open", "str_verifier", "42", "42", Outcome.CORRECT)
        >>> made = summarize([row])
        >>> made.accuracy, made.pass_at[1].n
        (1.0, 1)
    """

    n_questions: int
    policies: tuple[str, ...]
    """Policies the results were graded by, sorted."""
    baseline: float | None
    """Mean accuracy of answers drawn at random from the options; 1/2 for a hypothesis, 0 for an open answer."""
    pass_at: dict[int, Estimate]
    """pass@k by k, over the questions with at least k graded attempts."""
    vote: dict[int, Estimate]
    """Accuracy of the majority vote over answers, by k."""
    letter_vote: dict[int, float]
    """The published vote over letters, by k, where `official-agentic` graded; it is no evidence (see `vote`)."""
    by_mode: dict[str, Tally]
    by_eval_mode: dict[str, Tally]
    by_category: dict[str, Tally]
    """A question counts in each of its categories."""
    by_capsule: dict[str, Tally]
    by_guessable: dict[str, Tally]
    """`guessable` and `not guessable`."""
    guessable: dict[str, str]
    """Why, by question and mode."""
    judging: Judging | None
    effort: Effort


def summarize(results: Sequence[Result], zero_shot: Sequence[Result] = (), *, seed: int = 0) -> Summary:
    """The summary of some results.

    Args:
        results: the results; every mode and setting among them counts alike.
        zero_shot: attempts at the same questions without data, which mark those that can be guessed.
        seed: seed of the bootstraps.
    """
    guesses = guessable(results, zero_shot)
    overall = tally(results, seed)
    graded = list(_counts(results, _graded, _correct).values())
    most = max((n for n, _ in graded), default=0)
    return Summary(
        **{name: getattr(overall, name) for name in Tally.__dataclass_fields__},
        n_questions=len({result.question_key for result in results}),
        policies=tuple(sorted({result.policy for result in results if result.policy})),
        baseline=fmean(map(chance, results)) if results else None,
        pass_at={k: mean_of_tasks(graded, k, seed=seed) for k in _ks(most)},
        vote=vote_curve(results, seed=seed),
        letter_vote=letter_vote_curve([result for result in results if result.policy == "official-agentic"]),
        by_mode=_by(results, lambda result: [result.mode], seed),
        by_eval_mode=_by(results, lambda result: [result.eval_mode], seed),
        by_category=_by(results, lambda result: result.categories, seed),
        by_capsule=_by(results, lambda result: [result.capsule_uuid] if result.capsule_uuid else [], seed),
        by_guessable=_by(results, lambda result: [_guess(result, guesses)], seed) if guesses else {},
        guessable={f"{question} ({mode})": why for (question, mode), why in sorted(guesses.items())},
        judging=_judging(results),
        effort=_effort(results),
    )


def counts_by_question(results: Sequence[Result]) -> dict[str, tuple[int, int]]:
    """(graded attempts, right ones) by question, whatever the mode and setting; give results of one mode."""
    counts = dict[str, tuple[int, int]]()
    for (question, _, _), (n, right) in _counts(results, _graded, _correct).items():
        before, right_before = counts.get(question, (0, 0))
        counts[question] = before + n, right_before + right
    return counts


def chance(result: Result) -> float:
    """Accuracy of an answer drawn at random."""
    if result.mode == "hypothesis":
        return 0.5
    return 1 / len(result.options) if result.options else 0.0


def summary_json(summary: Tally) -> dict[str, Any]:
    """A summary or a tally as plain JSON: accuracy, precision and coverage beside their intervals."""
    plain: dict[str, Any] = _plain(summary)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Tally):
        named = {name: getattr(value, name) for name in type(value).__dataclass_fields__}
        rates = {name: getattr(value, name) for name in ("accuracy", "precision", "coverage")}
        counts = {name: named.pop(name) for name in ("n_total", "n_graded", "n_correct", "n_sure")}
        return counts | rates | {name: _plain(inner) for name, inner in named.items()}
    if isinstance(value, Estimate | Judging | Effort):
        return asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    return value


def _graded(result: Result) -> bool:
    return result.outcome.reward is not None


def _correct(result: Result) -> bool:
    return result.outcome is Outcome.CORRECT


def _sure(result: Result) -> bool:
    if result.policy.startswith("official"):
        # The published summary calls every prediction sure that is not the refusal option, an empty one too.
        return _graded(result) and result.outcome is not Outcome.REFUSED
    return result.outcome in (Outcome.CORRECT, Outcome.INCORRECT)


def _counts(
    results: Iterable[Result], among: Callable[[Result], bool], hit: Callable[[Result], bool]
) -> dict[tuple[str, str, str], tuple[int, int]]:
    """(results, hits among them) by question, mode and setting."""
    counts = dict[tuple[str, str, str], tuple[int, int]]()
    for result in results:
        key = result.question_key, result.mode, result.setting
        n, hits = counts.get(key, (0, 0))
        if among(result):
            n, hits = n + 1, hits + hit(result)
        counts[key] = n, hits
    return counts


def tally(results: Sequence[Result], seed: int = 0) -> Tally:
    """The counts and rates of some results, their intervals by Wilson or by a bootstrap over questions."""
    shares = {"accuracy": (_graded, _correct), "precision": (_sure, _correct), "coverage": (_graded, _sure)}
    intervals = {}
    for name, (among, hit) in shares.items():
        pairs = list(_counts(results, among, hit).values())
        if any(n for n, _ in pairs):
            intervals[name] = ratio_of_tasks(pairs, seed=seed)
    seen = Counter(result.outcome for result in results)
    return Tally(
        n_total=len(results),
        n_graded=sum(map(_graded, results)),
        n_correct=seen[Outcome.CORRECT],
        n_sure=sum(map(_sure, results)),
        intervals=intervals,
        outcomes={outcome.value: seen[outcome] for outcome in Outcome},
    )


def _by(results: Iterable[Result], names: Callable[[Result], Iterable[str]], seed: int) -> dict[str, Tally]:
    groups = defaultdict[str, list[Result]](list)
    for result in results:
        for name in names(result):
            groups[name].append(result)
    return {name: tally(groups[name], seed) for name in sorted(groups)}


def _guess(result: Result, guesses: dict[tuple[str, str], str]) -> str:
    return "guessable" if (result.question_key, result.mode) in guesses else "not guessable"


def _judging(results: Iterable[Result]) -> Judging | None:
    judged = [result.judge for result in results if result.judge is not None]
    if not judged:
        return None
    repeated = [judge.agreement for judge in judged if len(judge.votes) > 1]
    return Judging(
        n_judged=len(judged),
        n_undecided=sum(judge.verdict in ("undecided", "unreachable") for judge in judged),
        agreement=fmean(repeated) if repeated else None,
        models=tuple(sorted({judge.model for judge in judged})),
        prompt_versions=tuple(sorted({judge.prompt_version for judge in judged})),
    )


def _effort(results: Sequence[Result]) -> Effort:
    costs = [result.cost for result in results if result.cost is not None]
    return Effort(
        steps=sum(result.steps for result in results),
        prompt_tokens=sum(result.prompt_tokens for result in results),
        completion_tokens=sum(result.completion_tokens for result in results),
        seconds=sum(result.seconds for result in results),
        cost=sum(costs) if costs else None,
    )


def _ks(most: int) -> list[int]:
    """All up to 10; beyond that 1, 2, 4, … and the most attempts that a question has."""
    return list(range(1, most + 1)) if most <= 10 else sorted({2**i for i in range(most.bit_length())} | {most})
