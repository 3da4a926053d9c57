"""The rules as they are written down, and what holds for all answers."""

import doctest
import importlib
import re
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.tasks import Outcome
from nbagent_bixbench import tolerant
from nbagent_bixbench.grade import grade
from nbagent_bixbench.strict import canonical
from nbagent_bixbench.units import conversion, unit

PAGE = Path(__file__).resolve().parents[2] / "benchmarks" / "bixbench" / "README.md"
MODULES = "choice grade judge judge_prompt official posthoc quantity spelling strict tolerant units".split()
numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**6), max_value=10**6, places=3)


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def rows(text, n_cells):
    """The cells of a table's rows, without its head."""
    lines = [line.strip().strip("|").split("|") for line in text.splitlines() if line.strip().startswith("|")]
    return [cells for cells in lines if len(cells) == n_cells and any(map(quoted, cells[1:]))]


def outcome(answer, key, policy):
    return grade(answer, key, "range_verifier" if key.startswith("(") else "str_verifier", policy).outcome


PAGE_ROWS = rows(PAGE.read_text().partition("| | key |")[2].partition("\n\n")[0], 5)


@pytest.mark.parametrize("cells", PAGE_ROWS, ids=lambda cells: f"{cells[0].strip()} {cells[1].strip()}")
def test_the_table_of_rules_is_true(cells):
    keys, strict, tolerant_too, neither = map(quoted, cells[1:])
    for answer in strict:
        assert Outcome.CORRECT in {outcome(answer, key, "strict") for key in keys}, answer
    for answer in tolerant_too:
        assert {outcome(answer, key, "strict") for key in keys} == {Outcome.INCORRECT}, answer
        assert Outcome.CORRECT in {outcome(answer, key, "tolerant") for key in keys}, answer
    for answer in neither:
        assert Outcome.CORRECT not in {outcome(answer, key, "tolerant") for key in keys}, answer


def test_the_table_of_rules_is_there():
    assert len(PAGE_ROWS) >= 14


@pytest.mark.parametrize("cells", rows(tolerant.__doc__, 4), ids=lambda cells: cells[0].strip()[:40])
def test_the_tolerant_rules_are_true(cells):
    key = quoted(cells[1])[0] if quoted(cells[1]) else ""
    for answer in quoted(cells[2]):
        assert outcome(answer, key, "tolerant") is Outcome.CORRECT
        assert outcome(answer, key, "strict") is Outcome.INCORRECT
    for answer in quoted(cells[3]):
        assert outcome(answer, key, "tolerant") is Outcome.INCORRECT


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_are_true(module):
    assert not doctest.testmod(importlib.import_module(f"nbagent_bixbench.{module}")).failed


@given(numbers, numbers)
def test_rounding_is_half_a_unit_of_the_keys_last_place(value, key):
    near = abs(value - round(key, 1)) <= Decimal("0.05")
    assert grade(str(value), f"{key:.1f}", "str_verifier", "tolerant").outcome.reward == float(near)


@given(numbers, numbers)
def test_an_integer_key_is_exact(value, key):
    whole = int(key)
    assert grade(str(value), str(whole), "str_verifier", "tolerant").outcome.reward == float(value == whole)


@given(st.text(max_size=40), st.text(max_size=40))
def test_strict_is_equality_of_what_is_said_and_tolerant_takes_no_less(a, b):
    given_answer = grade(a, b, "str_verifier").outcome
    assert (given_answer is Outcome.CORRECT) <= (canonical(a) == canonical(b))
    if given_answer is Outcome.CORRECT:
        assert grade(a, b, "str_verifier", "tolerant").outcome is Outcome.CORRECT
        assert grade(b, a, "str_verifier").outcome is Outcome.CORRECT


@given(st.text(max_size=60), st.sampled_from(["strict", "tolerant", "official-zeroshot", "official-agentic", "judge"]))
def test_no_policy_raises_on_any_text(text, policy):
    for mode, key in (("str_verifier", "5 mg"), ("range_verifier", "(1,2)"), ("llm_verifier", "it does")):
        assert grade(text, key, mode, policy).reason


@pytest.mark.parametrize(
    ("given_unit", "wanted", "factor"),
    [
        ("mg", "g", "0.001"), ("h", "min", "60"), ("kb", "bp", "1000"), ("week", "day", "7"), ("mM", "µM", "1000"),
        ("mg", "mL", None), ("mM", "mm", None), ("genes", "cells", None), ("mg/mL", "g/mL", None), ("%", "", None),
    ],
)  # fmt: skip
def test_units_convert_within_their_kind(given_unit, wanted, factor):
    found = conversion(unit(given_unit), unit(wanted))
    assert found == (Decimal(factor) if factor else None)
