"""Ways to ask a row: an open answer, one of several options with or without a refusal, a hypothesis true or false.

Which letter an option gets is drawn from the run's seed, the question and the attempt, so that every process draws the
same; the mapping goes into the result, and nothing compares letters of two attempts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from random import Random
from string import ascii_uppercase

from nbagent.errors import UsageError
from nbagent.tasks import Task, Verdict, Verifier
from nbagent_bixbench.choice import grade_choice, grade_hypothesis
from nbagent_bixbench.grade import KeyVerifier, key_range
from nbagent_bixbench.judge import Judge
from nbagent_bixbench.policies import no_reward_by
from nbagent_bixbench.results import Mode
from nbagent_bixbench.spelling import plain_text
from nbagent_bixbench.types import Option, OptionKind, Row

REFUSAL = "Insufficient information to answer the question"
"""The refusal option, worded as in the published runs."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A row as one attempt is asked it."""

    row: Row
    mode: Mode
    text: str
    """What the agent reads: the question with its options, or the hypothesis."""
    options: tuple[Option, ...] = ()
    """Multiple choice: in the order of their letters."""

    @property
    def question(self) -> str:
        """The text without the options."""
        return self.row.question if self.mode != "hypothesis" else self.row.hypothesis

    @property
    def ideal(self) -> str:
        """The key of this mode."""
        return self.row.ideal if self.mode != "hypothesis" else str(self.row.answer).lower()


@dataclass(frozen=True, slots=True)
class ChoiceVerifier:
    """Grades a choice among the options as they were shown."""

    options: tuple[Option, ...]
    policy: str = "strict"

    def verify(self, answer: str | None) -> Verdict:
        """The verdict on a letter or an option's text."""
        return grade_choice(answer, self.options, self.policy)

    @property
    def no_reward(self) -> str:
        """Why its verdicts may not be training rewards; empty: they may."""
        return no_reward_by(self.policy)


@dataclass(frozen=True, slots=True)
class HypothesisVerifier:
    """Grades true or false."""

    truth: bool

    def verify(self, answer: str | None) -> Verdict:
        """The verdict on true or false."""
        return grade_hypothesis(answer, self.truth)


def default_mode(row: Row) -> Mode:
    """Open where the row asks a question, else its hypothesis."""
    return "open" if row.question else "hypothesis"


def rows_in_mode(rows: Sequence[Row], mode: Mode) -> list[Row]:
    """The rows that a mode asks: all, or one for each hypothesis of a capsule, which its questions share.

    Raises:
        UsageError: a row lacks what the mode asks; names it and its line.
    """
    for row in rows:
        if what := _lacks(row, mode):
            raise UsageError(f"mode {mode}: {row.question_id} (line {row.line}) {what}; choose another mode")
    if mode != "hypothesis":
        return list(rows)
    return list({(row.capsule_uuid, row.hypothesis): row for row in reversed(rows)}.values())[::-1]


def ask(row: Row, mode: Mode, seed: int = 0, replica: int = 0) -> Asked:
    """A row in a mode; `seed` and `replica` draw the options' letters. Raises UsageError for a row that lacks them."""
    rows_in_mode([row], mode)
    if mode == "open":
        return Asked(row, mode, row.question)
    if mode == "hypothesis":
        protocol = f"\n\nProtocol:\n{row.protocol}" if row.protocol else ""
        text = f"Do the data support this hypothesis? Answer true or false.\n\n{row.hypothesis}{protocol}"
        return Asked(row, mode, text)
    options = options_of(row, mode == "mcq_refusal", Random(f"{seed}\0{row.question_id.lower()}\0{replica}"))
    listed = "\n".join(f"{option.letter}: {option.text}" for option in options)
    return Asked(row, mode, f"{row.question}\n\nAnswer with the letter of one option:\n{listed}", options)


def options_of(row: Row, refusal: bool, random: Random) -> tuple[Option, ...]:
    """The options in a drawn order. A distractor that repeats another option's text is left out.

    A range key beside single numbers would give itself away by its form: it is shown as the number in its middle.
    """
    texts: dict[str, tuple[str, OptionKind]] = {}
    middle = _middle(row)
    for text, kind in [
        (middle if middle is not None else row.ideal.strip(), "ideal"),
        *((text.strip(), "distractor") for text in row.distractors),
        *([(REFUSAL, "refusal")] if refusal else []),
    ]:
        texts.setdefault(plain_text(text).casefold(), (text, kind))  # type: ignore[arg-type]
    drawn = list(texts.values())
    random.shuffle(drawn)
    return tuple(Option(letter, *option) for letter, option in zip(ascii_uppercase, drawn, strict=False))


def verifier_of(asked: Asked, policy: str = "strict", judge: Judge | None = None) -> Verifier:
    """What grades an attempt."""
    if asked.mode == "open":
        return KeyVerifier(asked.row.ideal, asked.row.eval_mode, policy, asked.row.question, judge)
    if asked.mode == "hypothesis":
        assert asked.row.answer is not None
        return HypothesisVerifier(asked.row.answer)
    return ChoiceVerifier(asked.options, policy)


def task_of(
    asked: Asked, capsule: Path, reference: Path | None = None, verifier: Verifier | None = None, language: str = ""
) -> Task:
    """The task of one attempt.

    Args:
        asked: the row as it is asked.
        capsule: its data files.
        reference: the expert's notebook, on the host.
        verifier: None: strict, without a judge.
        language: of the kernel; '': as the row says, else Python.
    """
    row = asked.row
    return Task(
        task_id=row.question_id,
        question=asked.text,
        capsule=capsule,
        verifier=verifier or verifier_of(asked),
        language=language or row.language or "python",
        family=row.categories[0] if row.categories else "",
        seed=int.from_bytes(hashlib.sha256(row.question_id.lower().encode()).digest()[:4]),
        reference=reference,
        key=asked.ideal,
    )


def _lacks(row: Row, mode: Mode) -> str:
    if mode == "hypothesis":
        return "" if row.hypothesis and row.answer is not None else "has no hypothesis with a truth"
    if not row.question:
        return "asks no question"
    return "" if mode == "open" or row.distractors else "has no wrong options"


def _middle(row: Row) -> str | None:
    """The middle of a range key, with its bounds' decimals, where the distractors are single numbers; else None."""
    if row.eval_mode != "range_verifier" or any("," in text for text in row.distractors):
        return None
    low, high = key_range(row.ideal)
    places = min(exponent if isinstance(exponent := bound.as_tuple().exponent, int) else 0 for bound in (low, high))
    middle = (low + high) / 2
    return f"{middle.quantize(Decimal(1).scaleb(min(places, 0))):f}"
