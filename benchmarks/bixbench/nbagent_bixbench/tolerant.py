"""The policy `tolerant`: `strict`, and numbers that differ by no more than these stated rules allow.

| rule | key | also correct | not correct |
|---|---|---|---|
| rounding: a key written with decimals or an exponent is taken as rounded there; half a unit of its last place either way | `3.14` | `3.1416` | `3.1`, `3.15` |
| a key written as an integer is a count and exact | `133` | | `133.4` |
| percent: a share may be written either way where one side says percent | `35%` | `0.35`, `35` | `3.5` |
| | `0.35` | `35%` | `35` |
| unit: units of one kind are converted | `5 mg` | `0.005 g` | `5 g`, `5 mL` |
| unit: one of the two may leave it out | `12 genes` | `12` | `12 cells` |
| range: percent and units as above; its bounds are not widened | `(0.3,0.4)` | `35%` | `0.41` |

Relations (`<0.05`) stay as strict has them, and so do texts. What the answer adds must be a unit that `units` knows:
`12 or 13` is two answers under every policy.
"""  # noqa: E501

from __future__ import annotations

from decimal import Decimal

from nbagent.tasks import Outcome, Verdict
from nbagent_bixbench import strict
from nbagent_bixbench.quantity import Quantity, quantity
from nbagent_bixbench.units import PERCENT, conversion

_HUNDRED = Decimal(100)


def compare(predicted: str, ideal: str) -> Verdict:
    """The verdict on an answer whose key is a name or a number."""
    verdict = strict.compare(predicted, ideal)
    if verdict.outcome is Outcome.CORRECT:
        return verdict
    answer, key = quantity(predicted), quantity(ideal)
    if answer is None or key is None or answer.relation != key.relation:
        return verdict
    place = key.value.as_tuple().exponent
    half = Decimal(5).scaleb(int(place) - 1) if place else Decimal(0)
    if any(key.value - half <= value <= key.value + half for value in _values(answer, key.unit, key.known)):
        return Verdict(Outcome.CORRECT, "the number is the key's within its rounding and unit")
    return verdict


def compare_range(predicted: str, ideal: str) -> Verdict:
    """The verdict on an answer whose key is a range.

    Raises:
        UsageError: the key is no pair of numbers.
    """
    low, high = strict.key_range(ideal)
    answer = quantity(predicted)
    if answer and not answer.relation and any(low <= value <= high for value in _values(answer, "", True)):
        return Verdict(Outcome.CORRECT, "the number lies within the key's range")
    return strict.compare_range(predicted, ideal)


def _values(answer: Quantity, unit: str, known: bool) -> list[Decimal]:
    """What the answer's number can be in the key's unit; none where the two do not go together."""
    if not (answer.known and known):
        same = (answer.unit, answer.known) == (unit, known)
        return [answer.value] if same else []
    values = []
    factor = conversion(answer.unit, unit)
    if factor is not None:
        values.append(answer.value * factor)
    elif not answer.unit or not unit:
        values.append(answer.value)
        if PERCENT in (answer.unit, unit):
            values.append(answer.value / _HUNDRED if answer.unit == PERCENT else answer.value * _HUNDRED)
    return values
