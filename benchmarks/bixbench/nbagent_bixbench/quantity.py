"""Numbers as people and programs write them: an exact value with its unit, or nothing where it is not one number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from nbagent_bixbench.spelling import normal_text, plain_text
from nbagent_bixbench.units import unit

_LONGEST = 500
_MANTISSA = r"(?P<mantissa>(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
# Exponents of more than four digits are no measurement, and would make arithmetic slow.
_EXPONENT = r"(?P<exponent>[+-]?[0-9]{1,4})"
_DECIMAL = re.compile(rf"(?P<sign>[+-]?){_MANTISSA}(?:[eE]{_EXPONENT}(?![0-9]))?")
_POWER = re.compile(
    rf"(?P<sign>[+-]?)(?:{_MANTISSA} ?(?:[xX×*·]|\\times) ?)?10(?:\^|\*\*)[{{(]?{_EXPONENT}(?![0-9])[}})]?"
)
_RELATION = re.compile(r"(<=|>=|[<>≤≥]) ?")
_RELATIONS = {"<=": "≤", ">=": "≥"}
_RAISED = re.compile(r"10([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)")
_LOWERED = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number and what it counts. Two are equal when value, unit and relation are.

    Example:
        >>> quantity("2e-4 mg") == quantity("0.00020mg")
        True
    """

    value: Decimal
    """Exact; its exponent says to which decimal it was written."""
    unit: str
    """The unit's one name, `""` for none, or the words after the number."""
    known: bool = True
    """Whether the unit is one of `units`."""
    relation: str = ""
    """`<`, `>`, `≤`, `≥`, or nothing."""


def quantity(text: str) -> Quantity | None:
    """The number that a text is, with its unit; None for anything else.

    Words that are no known unit belong to the number only behind a blank: `7SK` is a name.
    """
    text = plain_text(text)
    # Most answers that are no number begin with a letter.
    if not text or len(text) > _LONGEST or text[0].isalpha():
        return None
    relation = ""
    if compared := _RELATION.match(text):
        relation = _RELATIONS.get(compared[1], compared[1])
        text = text[compared.end() :]
    if not text.isascii():
        text = _RAISED.sub(lambda raised: "10^" + raised[1].translate(_LOWERED), text)
    found = _POWER.match(text) or _DECIMAL.match(text)
    if found is None:
        return None
    value = Decimal(f"{found['sign']}{(found['mantissa'] or '1').replace(',', '')}e{found['exponent'] or 0}")
    rest = text[found.end() :]
    known = unit(rest.strip())
    if known is not None:
        return Quantity(value, known, relation=relation)
    return Quantity(value, normal_text(rest), False, relation) if rest[0] == " " else None


def number(text: str) -> Decimal | None:
    """The exact value of a text that is a number without unit or relation, else None."""
    found = quantity(text)
    return found.value if found and not found.unit and not found.relation else None
