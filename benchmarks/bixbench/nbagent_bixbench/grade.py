"""Grade an answer against its key.

The policy `strict` compares whole answers: sign, point and exponent count, numbers are equal when their values are
(`2e-4` and `0.00020`), texts when they are the same up to case and spacing. Nothing is searched for inside something
else, so that an empty, hedged or many-valued answer is never correct.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, Verdict

EvalMode = Literal["str_verifier", "range_verifier", "llm_verifier"]

EVAL_MODES: tuple[str, ...] = get_args(EvalMode)
"""The dataset's three ways to compare."""

POLICIES = ("strict",)
"""Grading policies that exist."""

_NUMBER = re.compile(r"([+-]?)((?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,4}))?")
_PAIR = re.compile(r"[(\[]\s*([^\s,]+)\s*,\s*([^\s,]+)\s*[)\]]")
_REFUSALS = re.compile(
    r"(insufficient (information|data)|(i )?(cannot|can not|can't|could not|couldn't) (answer|determine|be determined)"
    r"|(i am |i'm )?(unable|not able) to (answer|determine)|(i )?(do not|don't) know|i (refuse|decline)"
    r"|(it |this )?(cannot|can not|can't|could not) be (answered|determined)|not enough (information|data))\b.*"
)


@dataclass(frozen=True, slots=True)
class KeyVerifier:
    """A key with its eval mode: the Verifier of a task."""

    ideal: str
    """The key as written in the set."""
    eval_mode: str = "str_verifier"
    """`str_verifier`, `range_verifier` or `llm_verifier`."""
    policy: str = "strict"
    """Grading policy."""

    def verify(self, answer: str | None) -> Verdict:
        """The verdict on an answer; None where the agent gave none."""
        return grade(answer, self.ideal, self.eval_mode, self.policy)


def grade(predicted: str | None, ideal: str, eval_mode: str, policy: str = "strict") -> Verdict:
    """The verdict on an answer.

    Raises:
        UsageError: a policy or eval mode that does not exist, or a range key that is no pair of numbers.
    """
    if policy not in POLICIES:
        raise UsageError(f"grading policy {policy!r} is not in this version; there is: {', '.join(POLICIES)}")
    if eval_mode not in EVAL_MODES:
        raise UsageError(f"eval mode {eval_mode!r} is unknown; there are: {', '.join(EVAL_MODES)}")
    text = normal_text(predicted or "")
    if not text:
        return Verdict(Outcome.NO_ANSWER, "no answer was given")
    if eval_mode == "llm_verifier":
        if _REFUSALS.fullmatch(text):
            return Verdict(Outcome.REFUSED, "the answer is a refusal")
        return Verdict(Outcome.UNGRADED, "the key is free text and there is no judge")
    verdict = _in_range(text, ideal) if eval_mode == "range_verifier" else _same(text, ideal)
    if verdict.outcome is Outcome.INCORRECT and _REFUSALS.fullmatch(text):
        return Verdict(Outcome.REFUSED, "the answer is a refusal")
    return verdict


def key_range(ideal: str) -> tuple[Decimal, Decimal]:
    """The bounds of a range key `"(lo,hi)"`, lower first whichever way they are written.

    Raises:
        UsageError: the key is no pair of numbers.
    """
    match = _PAIR.fullmatch(ideal.strip())
    bounds = [number(part) for part in match.groups()] if match else []
    if len(bounds) != 2 or bounds[0] is None or bounds[1] is None:
        raise UsageError(f"range key {ideal!r} is not a pair of numbers such as '(1.2,1.4)'")
    return min(bounds[0], bounds[1]), max(bounds[0], bounds[1])


def number(text: str) -> Decimal | None:
    """The exact value of a decimal number (sign, point, thousands commas and exponent allowed), else None."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits, exponent = match.groups()
    return Decimal(f"{sign}{digits.replace(',', '')}e{exponent or 0}")


def normal_text(text: str) -> str:
    """Text with one form of minus, blanks and letters' case."""
    # NFC, not NFKC: that would turn 10² into 102.
    text = unicodedata.normalize("NFC", text).replace("\N{MINUS SIGN}", "-")
    return " ".join(text.split()).casefold()


def _in_range(text: str, ideal: str) -> Verdict:
    low, high = key_range(ideal)
    value = number(text)
    if value is None:
        return Verdict(Outcome.INCORRECT, "the answer is not a single number")
    if low <= value <= high:
        return Verdict(Outcome.CORRECT, "the number lies within the key's range")
    return Verdict(Outcome.INCORRECT, "the number lies outside the key's range")


def _same(text: str, ideal: str) -> Verdict:
    key = normal_text(ideal)
    if text == key:
        return Verdict(Outcome.CORRECT, "the answer is the key")
    # A percent sign is part of the value: 35 and 35% are different answers, 35% and 35.0% are not.
    both_percent = text.endswith("%") and key.endswith("%")
    a, b = (number(side[:-1] if both_percent else side) for side in (text, key))
    if a is not None and b is not None and a == b:
        return Verdict(Outcome.CORRECT, "the answer is the key's number in another form")
    return Verdict(Outcome.INCORRECT, "the answer is not the key")
