"""Grade recorded answers again, under any policy, without asking the agent anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, Verdict
from nbagent_bixbench.choice import chosen_option, grade_choice, grade_hypothesis
from nbagent_bixbench.grade import grade
from nbagent_bixbench.judge import Judge, RecordedJudge
from nbagent_bixbench.policies import check_policy
from nbagent_bixbench.results import Result
from nbagent_bixbench.trajectory_json import DROPPED
from nbagent_bixbench.types import JudgedVerdict

CONCURRENCY = 16
"""Answers that a judge has under way at once."""


def regrade(
    results: Sequence[Result],
    policy: str = "strict",
    judge: Judge | None = None,
    progress: Callable[[], None] = lambda: None,
) -> list[Result]:
    """The results with outcome, reason, policy, choice and judge as the policy gives them; nothing else changes.

    Infrastructure failures stay what they are. A row whose key the policy cannot read is ungraded, with the reason.

    Args:
        results: what to grade.
        policy: one of `POLICIES`.
        judge: who decides where the policy needs a judge; None: what a judge said of the row before, if it is there.
        progress: called after each row.

    Raises:
        UsageError: there is no such policy.
        StorageError: the judge's cache cannot be written.
    """
    check_policy(policy)

    def one(result: Result) -> Result:
        graded = _regraded(result, policy, judge)
        progress()
        return graded

    if judge is None:
        return [one(result) for result in results]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        return list(pool.map(one, results))


def _regraded(result: Result, policy: str, judge: Judge | None) -> Result:
    if result.outcome is Outcome.INFRASTRUCTURE:
        return replace(result, policy=policy)
    if judge is None and result.judge is not None:
        judge = RecordedJudge(result.judge)
    try:
        verdict = _verdict(result, policy, judge)
    except UsageError as error:
        verdict = Verdict(Outcome.UNGRADED, str(error))
    return replace(
        result,
        outcome=verdict.outcome,
        reason=verdict.reason,
        policy=policy,
        choice=_choice(result, policy),
        judge=verdict.judged if isinstance(verdict, JudgedVerdict) else result.judge,
    )


def _verdict(result: Result, policy: str, judge: Judge | None) -> Verdict:
    if policy == "official-agentic" and result.extra.get(DROPPED):
        return Verdict(Outcome.NO_ANSWER, "the published scorer drops answers such as 0 and false")
    if result.mode == "hypothesis":
        return grade_hypothesis(result.answer, result.ideal.casefold() == "true")
    if result.options:
        return grade_choice(_said(result), result.options, policy)
    return grade(result.answer, result.ideal, result.eval_mode, policy, result.question, judge)


def _said(result: Result) -> str | None:
    """The answer, or where only the option's text is recorded, that."""
    return result.choice if result.answer is None else result.answer


def _choice(result: Result, policy: str) -> str | None:
    option = chosen_option(_said(result), result.options, policy) if result.options else None
    return option.text if option else None
