"""Questions that can be answered without the data: what a score on them says little about."""

from __future__ import annotations

from collections.abc import Sequence

from nbagent_bixbench.results import Result
from nbagent_bixbench.spelling import normal_text
from nbagent_bixbench.vote import by_question, expected_vote

_PAIRS = (
    "yes no", "true false", "up down", "upregulated downregulated", "up-regulated down-regulated",
    "increased decreased", "increase decrease", "increases decreases", "higher lower", "positive negative",
    "male female", "significant insignificant",
)  # fmt: skip
ONE_OF_TWO = frozenset(normal_text(word) for pair in _PAIRS for word in pair.split())
"""Keys that are one word of a pair, and so right half of the time for who tosses a coin."""


def guessable(results: Sequence[Result], zero_shot: Sequence[Result] = ()) -> dict[tuple[str, str], str]:
    """Why a question can be answered without its data, by (question key, mode); other questions are not in it.

    Two reasons, the first that holds is given:

    * attempts without notebook or data get it right: in `zero_shot`, in the same mode, the majority vote over all
      attempts at it is right with a chance of at least one half. One attempt of four options is right by luck once in
      four, so several attempts per question say more;
    * an open question whose key is one word of a pair (`ONE_OF_TWO`), as in `yes`.
    """
    found: dict[tuple[str, str], str] = {
        (result.question_key, result.mode): "the key is one word of a pair"
        for result in results
        if result.mode == "open" and result.eval_mode == "str_verifier" and normal_text(result.ideal) in ONE_OF_TWO
    }
    asked = {(result.question_key, result.mode) for result in results}
    for (question, mode, _), rows in by_question(zero_shot).items():
        curve = expected_vote(rows)
        if (question, mode) in asked and curve and curve[-1] >= 0.5:
            found[question, mode] = "zero-shot attempts get it right"
    return found
