"""Answer keys and distractors from what a reference notebook and its rivals printed."""

from __future__ import annotations

import math
from random import Random

from nbagent_bixbench.families.draft import Draft

LONGEST_ANSWER = 12
"""Characters; every family asks for a number or a name."""


def ideal(draft: Draft, answer: str) -> str:
    """The key: the answer itself, or for `range_verifier` `"(lo,hi)"`, one unit of the last decimal either side."""
    if draft.eval_mode == "str_verifier":
        return answer
    low, high = _bounds(draft, answer)
    return f"({low},{high})"


def degenerate(draft: Draft, answer: str, rivals: list[str | None], twins: list[str | None]) -> str:
    """Why this draw is no good question; empty where it is one."""
    if not answer or "\n" in answer or len(answer) > LONGEST_ANSWER:
        return "the answer is not one short line"
    number = _number(answer)
    if number is not None and (not math.isfinite(number) or number == 0):
        return "the answer is zero or not finite"
    if draft.choices and answer not in draft.choices:
        return "the answer is none of the choices"
    if any(rival is not None and not _differs(draft, answer, rival.strip()) for rival in rivals):
        return "a wrong analysis gives the same answer"
    if any(twin is None or twin.strip() != answer for twin in twins):
        return "there is a tie"
    return ""


def distractors(r: Random, draft: Draft, answer: str, rivals: list[str | None]) -> tuple[str, str, str]:
    """Three wrong options: what the rivals printed, then other names or numbers near the answer."""
    found: list[str] = []

    def take(option: str) -> None:
        if option and "nan" not in option and option not in found and _differs(draft, answer, option):
            found.append(option)

    for rival in rivals:
        take((rival or "").strip())
    others = [name for name in draft.choices if name != answer]
    r.shuffle(others)
    for name in others:
        take(name)
    number = _number(answer)
    while number is not None and len(found) < 3:
        if "." in answer:
            places = len(answer.split(".")[1])
            take(str(round(number * r.uniform(0.5, 1.5) + r.uniform(-1, 1), places)))
        else:
            take(str(max(0, round(number * r.uniform(0.6, 1.5)) + r.randint(-2, 2))))
    first, second, third = found[:3]
    return first, second, third


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _bounds(draft: Draft, answer: str) -> tuple[str, str]:
    step = 10.0**-draft.decimals
    value = float(answer)
    return f"{value - step:.{draft.decimals}f}", f"{value + step:.{draft.decimals}f}"


def _differs(draft: Draft, answer: str, other: str) -> bool:
    a, b = _number(answer), _number(other)
    if a is None or b is None:
        return answer.lower() != other.lower()
    if draft.eval_mode == "range_verifier":
        # Three units, so that a rival rounded the other way is still outside the range.
        return abs(a - b) > 3 * 10.0**-draft.decimals
    return a != b
