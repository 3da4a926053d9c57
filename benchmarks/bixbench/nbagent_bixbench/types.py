"""The words: Option, Judgement, JudgedVerdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbagent.tasks import Verdict

OptionKind = Literal["ideal", "distractor", "refusal"]
JudgeVerdict = Literal["correct", "incorrect", "refused", "undecided", "unreachable"]


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a multiple-choice question, as it was shown.

    Example:
        >>> Option("B", "Insufficient information to answer the question", "refusal").letter
        'B'
    """

    letter: str
    """The letter it was shown under; `A` is the first."""
    text: str
    """Its text."""
    kind: OptionKind
    """ideal, distractor or refusal."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a judge said of one answer."""

    verdict: JudgeVerdict
    """The majority's; undecided where there is none, unreachable where no vote was to be had."""
    votes: tuple[str, ...]
    """One per repeat: correct, incorrect, refused, or unreadable where the reply was no verdict."""
    agreement: float
    """Share of the votes that are the verdict, 0 to 1."""
    prompt_version: str
    """Version of the judge's prompt."""
    model: str
    """The judge."""
    detail: str = ""
    """Why it was unreachable; else empty."""


@dataclass(frozen=True, slots=True)
class JudgedVerdict(Verdict):
    """A verdict for which a judge was asked."""

    judged: Judgement
    """What it said."""
