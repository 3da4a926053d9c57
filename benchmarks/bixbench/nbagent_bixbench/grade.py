"""Grade an answer against its key, under one of five policies.

* `strict` (the default): see `strict`. Never guesses, cannot be beaten by an empty, hedged or many-valued answer, and
  is the only policy whose verdicts may be training rewards.
* `tolerant`: `strict` within the rounding and units that `tolerant` states.
* `judge`: a judge decides every answer.
* `official-zeroshot`, `official-agentic`: what the published scorers compute, faults included; see `official`.

Free-text keys (`llm_verifier`) need a judge under every policy. Where one is needed and none is given, none is
reached, or its repeats have no majority, the outcome is `ungraded`, never `incorrect`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nbagent.tasks import Outcome, Verdict
from nbagent_bixbench import official, strict, tolerant
from nbagent_bixbench.policies import (
    EVAL_MODES,
    POLICIES,
    EvalMode,
    Policy,
    check_eval_mode,
    check_policy,
    no_reward_by,
)
from nbagent_bixbench.quantity import number
from nbagent_bixbench.spelling import is_refusal, normal_text, plain_text
from nbagent_bixbench.strict import key_range
from nbagent_bixbench.types import JudgedVerdict

if TYPE_CHECKING:
    from nbagent_bixbench.judge import Judge

__all__ = [
    "EVAL_MODES",
    "POLICIES",
    "EvalMode",
    "KeyVerifier",
    "Policy",
    "grade",
    "key_range",
    "normal_text",
    "number",
]

_COMPARE = {
    "strict": (strict.compare, strict.compare_range),
    "tolerant": (tolerant.compare, tolerant.compare_range),
}
_JUDGED = {"correct": Outcome.CORRECT, "incorrect": Outcome.INCORRECT, "refused": Outcome.REFUSED}


@dataclass(frozen=True, slots=True)
class KeyVerifier:
    """A key with its eval mode: the Verifier of a task."""

    ideal: str
    """The key as written in the set."""
    eval_mode: str = "str_verifier"
    """`str_verifier`, `range_verifier` or `llm_verifier`."""
    policy: str = "strict"
    """Grading policy."""
    question: str | None = None
    """The question's text, for a judge."""
    judge: Judge | None = None
    """Who decides where a judge is needed; None: such answers are ungraded."""

    def verify(self, answer: str | None) -> Verdict:
        """The verdict on an answer; None where the agent gave none."""
        return grade(answer, self.ideal, self.eval_mode, self.policy, self.question, self.judge)

    @property
    def no_reward(self) -> str:
        """Why its verdicts may not be training rewards; empty: they may."""
        free_text = "its key is free text, which takes a judge; only what strict compares may be a training reward"
        return no_reward_by(self.policy) or (free_text if self.eval_mode == "llm_verifier" else "")


def grade(
    predicted: str | None,
    ideal: str,
    eval_mode: str,
    policy: str = "strict",
    question: str | None = None,
    judge: Judge | None = None,
) -> Verdict:
    """The verdict on an answer; a `JudgedVerdict` where a judge was asked. May be called from any thread.

    Args:
        predicted: the answer as given; None: there is none.
        ideal: the key; for `range_verifier` the text `"(lo,hi)"`.
        eval_mode: one of `EVAL_MODES`.
        policy: one of `POLICIES`.
        question: the question's text, for the judge.
        judge: who decides where a judge is needed.

    Raises:
        UsageError: a policy or eval mode that does not exist, or a range key that is no pair of numbers.

    Example:
        >>> grade("1.9 x 10^-5", "0.000019", "str_verifier").outcome
        <Outcome.CORRECT: 'correct'>
        >>> grade("", "0.000019", "str_verifier", "official-zeroshot").outcome
        <Outcome.CORRECT: 'correct'>
    """
    check_policy(policy)
    check_eval_mode(eval_mode)
    if policy == "official-zeroshot":
        found = official.compare(predicted or "", ideal) if eval_mode == "str_verifier" else None
        return found or _official(_judged(predicted or "", ideal, question, judge))
    if policy == "official-agentic":
        if not predicted:
            return Verdict(Outcome.NO_ANSWER, "the published scorer drops rows without an answer")
        return _official(_judged(predicted, ideal, question, judge))
    if not plain_text(predicted or ""):
        return Verdict(Outcome.NO_ANSWER, "no answer was given")
    answer = predicted or ""
    if policy == "judge" or eval_mode == "llm_verifier":
        if judge is None and is_refusal(answer):
            return Verdict(Outcome.REFUSED, "the answer is a refusal")
        return _judged(answer, ideal, question, judge)
    names, ranges = _COMPARE[policy]
    verdict = (ranges if eval_mode == "range_verifier" else names)(answer, ideal)
    if verdict.outcome is Outcome.INCORRECT and is_refusal(answer):
        return Verdict(Outcome.REFUSED, "the answer is a refusal")
    return verdict


def _judged(predicted: str, ideal: str, question: str | None, judge: Judge | None) -> Verdict:
    if judge is None:
        return Verdict(Outcome.UNGRADED, "a judge is needed and there is none")
    said = judge.decide(question or "", ideal, predicted)
    outcome = _JUDGED.get(said.verdict, Outcome.UNGRADED)
    if said.verdict == "unreachable":
        return JudgedVerdict(outcome, f"the judge {said.model} could not be asked: {said.detail}", said)
    if said.verdict == "undecided":
        return JudgedVerdict(outcome, f"the judge {said.model} has no majority: {', '.join(said.votes)}", said)
    agree = f"{round(said.agreement * len(said.votes))} of {len(said.votes)} votes"
    return JudgedVerdict(outcome, f"the judge {said.model} says {said.verdict}, {agree}", said)


def _official(verdict: Verdict) -> Verdict:
    """Refused is a verdict that the published scorers do not know: it counts as incorrect."""
    if verdict.outcome is not Outcome.REFUSED or not isinstance(verdict, JudgedVerdict):
        return verdict
    return JudgedVerdict(Outcome.INCORRECT, f"{verdict.reason}; published scorers call that incorrect", verdict.judged)
