"""The words: Option, Judgement, JudgedVerdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nbagent.tasks import Verdict

OptionKind = Literal["ideal", "distractor", "refusal"]
JudgeVerdict = Literal["correct", "incorrect", "refused", "undecided", "unreachable"]


@dataclass(frozen=True, slots=True)
class Row:
    """One question, whichever schema it came in."""

    question_id: str
    """E.g. `bix-3-q1`; unique in its file up to case."""
    question: str
    """The text given to the agent; '' where the set only asks whether a hypothesis holds."""
    ideal: str
    """The key; for `range_verifier` the text `"(lo,hi)"`."""
    distractors: tuple[str, ...]
    """Wrong options."""
    eval_mode: str
    """`str_verifier`, `range_verifier` or `llm_verifier`."""
    capsule_uuid: str
    """Name of the capsule."""
    data_folder: str
    """The capsule's zip (or folder), relative to the file of rows."""
    categories: tuple[str, ...]
    """Kinds of analysis."""
    line: int
    """Line in the file, from 1."""
    id: str = ""
    """Row id (uuid)."""
    hypothesis: str = ""
    """The capsule's hypothesis; reaches the agent only where it is what is asked."""
    result: str = ""
    """The expert's finding; must not reach the agent."""
    answer: bool | None = None
    """Whether the hypothesis is true."""
    paper: str = ""
    """Where the data come from."""
    version: str = ""
    """The set's version."""
    canary: str = ""
    """Marks text that must not be trained on."""
    language: str = ""
    """Language of the analysis, `python` or `r`; '' where the set does not say."""
    protocol: str = ""
    """BixBench-Hypothesis: the steps to take, which the agent is given."""
    rubric: str = ""
    """BixBench-Hypothesis: what earns points; must not reach the agent."""
    max_points: int | None = None
    """BixBench-Hypothesis: points of the whole rubric."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """Texts that no file in the agent's working directory may hold: what only a copy of the row would say."""
        return tuple(text for text in (self.hypothesis, self.result, self.question, self.rubric, self.canary) if text)


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
