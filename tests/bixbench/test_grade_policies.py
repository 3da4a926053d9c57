"""Every policy on every way to get by."""

import pytest
from grading_cases import CASES

from nbagent.tasks import Outcome
from nbagent_bixbench.grade import grade

LETTERS = {
    Outcome.CORRECT: "C", Outcome.INCORRECT: "I", Outcome.NO_ANSWER: "N", Outcome.REFUSED: "R", Outcome.UNGRADED: "U",
}  # fmt: skip


def shown(text):
    return repr(text)[:40]


@pytest.mark.parametrize(
    ("mode", "kind", "predicted", "ideal", "outcomes"),
    [pytest.param(*case, id=f"{case[0]}: {case[1]}: {shown(case[2])} for {shown(case[3])}") for case in CASES],
)
def test_what_gets_by_and_what_does_not(mode, kind, predicted, ideal, outcomes):
    policies = ("strict", "tolerant", "official-zeroshot")
    verdicts = [grade(predicted, ideal, mode, policy) for policy in policies]
    assert "".join(LETTERS[verdict.outcome] for verdict in verdicts) == outcomes
    assert all(verdict.reason for verdict in verdicts)


def test_there_are_enough_ways():
    assert len(CASES) >= 200
    assert len({case[2:4] for case in CASES}) == len(CASES)


def test_tolerant_takes_whatever_strict_takes():
    assert not [case for case in CASES if case[4].startswith("C") and case[4][1] != "C"]


@pytest.mark.parametrize(
    "predicted",
    [
        "9" * 10**6, "1," * 500_000, " " * 10**6 + "x", "a-" * 500_000, "e" + "\u0301\u0323" * 500_000,
        "<answer>" * 125_000, "(" * 10**6, "10^" * 300_000, "-" * 10**6, "\u200b" * 10**6, "cannot answer" * 80_000,
        "α" * 10**6, "1\u202f" * 500_000, "\ud800" * 10**6,
    ],
    ids=shown,
)  # fmt: skip
def test_a_million_characters_end_soon_and_are_no_answer_to_anything(predicted):
    for mode, key in (("str_verifier", "3"), ("range_verifier", "(2,4)"), ("llm_verifier", "3")):
        grade(predicted, key, mode, "official-zeroshot")
        for policy in ("strict", "tolerant"):
            assert grade(predicted, key, mode, policy).outcome is not Outcome.CORRECT


def test_blanks_around_an_answer_do_not_count_however_many():
    assert grade(" " * 10**6 + "3\n", "3", "str_verifier").outcome is Outcome.CORRECT
