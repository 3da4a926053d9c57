"""The policy `strict`: whole answers are compared, by value where they are numbers and by spelling where they are not.

Sign, point, exponent, percent, unit and relation count; nothing is searched for inside something else, so that an
empty, hedged or many-valued answer is never correct.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import lru_cache

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, Verdict
from nbagent_bixbench.quantity import Quantity, number, quantity
from nbagent_bixbench.spelling import normal_text

_PAIR = re.compile(r"[(\[]\s*([^\s,]+)\s*,\s*([^\s,]+)\s*[)\]]")


def canonical(answer: str) -> Quantity | str:
    """What an answer says: two are the same answer exactly when these are equal. Hashable, for counting votes.

    Example:
        >>> canonical("1.9×10⁻⁵") == canonical("0.000019"), canonical("5 mg") == canonical("5"), canonical("TNF-α")
        (True, False, 'tnfalpha')
    """
    return quantity(answer) or normal_text(answer)


def compare(predicted: str, ideal: str) -> Verdict:
    """The verdict on an answer whose key is a name or a number."""
    answer, key = canonical(predicted), _key(ideal)
    if answer == key:
        form = "number" if isinstance(key, Quantity) else "text"
        return Verdict(Outcome.CORRECT, f"the answer is the key's {form}")
    if isinstance(answer, Quantity) and isinstance(key, Quantity) and answer.value == key.value:
        return Verdict(Outcome.INCORRECT, "the number is the key's, its unit or relation is not")
    return Verdict(Outcome.INCORRECT, "the answer is not the key")


def compare_range(predicted: str, ideal: str) -> Verdict:
    """The verdict on an answer whose key is a range, both bounds included.

    Raises:
        UsageError: the key is no pair of numbers.
    """
    low, high = key_range(ideal)
    value = number(predicted)
    if value is None:
        return Verdict(Outcome.INCORRECT, "the answer is not a single number without unit")
    if low <= value <= high:
        return Verdict(Outcome.CORRECT, "the number lies within the key's range")
    return Verdict(Outcome.INCORRECT, "the number lies outside the key's range")


@lru_cache(maxsize=4096)
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


_key = lru_cache(maxsize=4096)(canonical)
