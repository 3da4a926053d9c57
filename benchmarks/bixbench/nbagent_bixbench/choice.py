"""Grade a choice among options, and a hypothesis called true or false."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, Verdict
from nbagent_bixbench.official import official_letter
from nbagent_bixbench.policies import OFFICIAL, check_policy
from nbagent_bixbench.spelling import is_refusal, plain_text
from nbagent_bixbench.strict import canonical
from nbagent_bixbench.types import Option

_OPEN = re.compile("<answer>", re.IGNORECASE)
_CLOSE = re.compile("</answer>", re.IGNORECASE)
_LEAD = re.compile(
    r"(?:the |my |final |correct )*(?:answer|choice|option|hypothesis)(?: is)?\s*[:=]?\s*", re.IGNORECASE
)
_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?")
_LETTERED = re.compile(r"[(\[]?([A-Za-z])[)\].:]+\s+(.+)", re.DOTALL)
_TRUTH = {"true": True, "yes": True, "supported": True, "false": False, "no": False, "not supported": False}


def chosen_option(answer: str | None, options: Sequence[Option], policy: str = "strict") -> Option | None:
    """The option an answer names, by its letter or by its whole text; None where it names none, or more than one.

    The official policies read a letter as the published parser does; a bare capital is taken for a letter that was
    read already, as published files record it. Ours takes a letter in either case, alone, in brackets, after
    `Answer:` or in `<answer>` tags, and an option's text as `strict` compares texts. It searches no letters in prose.

    Raises:
        UsageError: a policy that does not exist.
    """
    check_policy(policy)
    answer = answer or ""
    if policy in OFFICIAL:
        letter = answer if re.fullmatch("[A-Z]", answer) else official_letter(answer)
        return next((option for option in options if option.letter == letter), None)
    found = {_named(text, options) for text in _tagged(answer)}
    return found.pop() if len(found) == 1 else None


def grade_choice(chosen: str | None, options: Sequence[Option], policy: str = "strict") -> Verdict:
    """The verdict on a choice. Choosing the refusal option is refused, whatever the policy.

    Raises:
        UsageError: a policy that does not exist, or options of which not exactly one is the ideal.
    """
    if sum(option.kind == "ideal" for option in options) != 1:
        raise UsageError(f"exactly one option is the ideal, not {sum(option.kind == 'ideal' for option in options)}")
    option = chosen_option(chosen, options, policy)
    if option is not None:
        if option.kind == "refusal":
            return Verdict(Outcome.REFUSED, "the refusal option was chosen")
        if option.kind == "ideal":
            return Verdict(Outcome.CORRECT, "the ideal option was chosen")
        return Verdict(Outcome.INCORRECT, "a distractor was chosen")
    if policy in OFFICIAL:
        return Verdict(Outcome.INCORRECT, "the published parser reads no letter of an option")
    if not plain_text(chosen or ""):
        return Verdict(Outcome.NO_ANSWER, "no option was chosen")
    if is_refusal(chosen or ""):
        return Verdict(Outcome.REFUSED, "the answer is a refusal")
    return Verdict(Outcome.INCORRECT, "the answer does not name exactly one option")


def grade_hypothesis(predicted: str | None, truth: bool) -> Verdict:
    """The verdict on true or false (also yes or no, supported or not supported), alone or in `<answer>` tags."""
    text = predicted or ""
    if not plain_text(text):
        return Verdict(Outcome.NO_ANSWER, "no answer was given")
    if is_refusal(text):
        return Verdict(Outcome.REFUSED, "the answer is a refusal")
    found = {_TRUTH.get(_bare(part).casefold()) for part in _tagged(text)}
    said = found.pop() if len(found) == 1 else None
    if said is None:
        return Verdict(Outcome.INCORRECT, "the answer is neither true nor false")
    if said == truth:
        return Verdict(Outcome.CORRECT, "the hypothesis is called what it is")
    return Verdict(Outcome.INCORRECT, "the hypothesis is called the opposite of what it is")


def _tagged(text: str) -> list[str]:
    """What stands in `<answer>` tags, or the whole text where nothing does; in linear time, unlike one pattern."""
    parts = [(part, _CLOSE.search(part)) for part in _OPEN.split(text)[1:]]
    return [part[: close.start()] for part, close in parts if close] or [text]


def _bare(text: str) -> str:
    text = plain_text(plain_text(text).strip("*"))
    lead = _LEAD.match(text)
    return plain_text(text[lead.end() :]) if lead else text


def _named(text: str, options: Sequence[Option]) -> Option | None:
    bare = _bare(text)
    # A letter was asked for, so a single letter is one even where it is some option's text.
    if letter := _LETTER.fullmatch(bare):
        return next((option for option in options if option.letter == letter[1].upper()), None)
    if lettered := _LETTERED.fullmatch(bare):
        option = next((option for option in options if option.letter == lettered[1].upper()), None)
        if option is not None and canonical(option.text) == canonical(lettered[2]):
            return option
    said = {canonical(text), canonical(bare)}
    whole = [option for option in options if canonical(option.text) in said]
    return whole[0] if len(whole) == 1 else None
