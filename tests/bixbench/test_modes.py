"""A row asked in every mode: what the agent reads, which letters the options get, and how an answer is graded."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.modes import REFUSAL, ask, default_mode, rows_in_mode, task_of, verifier_of
from nbagent_bixbench.types import Row

ROW = Row(
    "Bix-90-q1", "How many genes rise?", "17", ("16", "18", "71"), "str_verifier", "u", "CapsuleFolder-u.zip",
    ("RNA-seq",), 1, hypothesis="Heat raises genes.", result="17 rose", answer=False, canary="canary",
)  # fmt: skip
RANGE = replace(ROW, ideal="(1.46, 1.40) ", eval_mode="range_verifier", distractors=("1.5", "2.1", "0.4"))


def test_an_open_question_is_the_question_alone():
    asked = ask(ROW, "open")
    assert (asked.text, asked.options, asked.ideal) == ("How many genes rise?", (), "17")
    assert verifier_of(asked).verify("17.0").outcome is Outcome.CORRECT


@pytest.mark.parametrize(("mode", "n"), [("mcq", 4), ("mcq_refusal", 5)])
def test_options_are_lettered_in_their_order_and_one_is_the_key(mode, n):
    asked = ask(ROW, mode, seed=3)
    assert [option.letter for option in asked.options] == list("ABCDE"[:n])
    assert Counter(option.kind for option in asked.options) == {
        "ideal": 1,
        "distractor": 3,
        **({"refusal": 1} if n == 5 else {}),
    }
    for option in asked.options:
        assert f"\n{option.letter}: {option.text}" in asked.text
    verify = verifier_of(asked).verify
    for option in asked.options:
        wanted = {"ideal": Outcome.CORRECT, "distractor": Outcome.INCORRECT, "refusal": Outcome.REFUSED}[option.kind]
        assert verify(option.letter).outcome is verify(f"({option.letter.lower()})").outcome is wanted
    assert verify(None).outcome is verify("  ").outcome is Outcome.NO_ANSWER
    assert verify("A or B").outcome is Outcome.INCORRECT
    assert (REFUSAL in asked.text) == (n == 5)


def test_letters_are_drawn_anew_for_each_attempt_and_each_place_is_as_likely():
    places = Counter(
        next(option.letter for option in ask(ROW, "mcq", 0, replica).options if option.kind == "ideal")
        for replica in range(4000)
    )
    assert set(places) == set("ABCD")
    assert all(850 < n < 1150 for n in places.values()), places
    assert ask(ROW, "mcq", 0, 1) == ask(ROW, "mcq", 0, 1)
    assert len({ask(ROW, "mcq", seed).text for seed in range(50)}) > 10


def test_letters_do_not_depend_on_the_process():
    program = (
        "from nbagent_bixbench.modes import ask\nfrom nbagent_bixbench.types import Row\n"
        f"print(ask({ROW!r}, 'mcq_refusal', 7, 2).text)"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", program], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.rstrip("\n")
        for seed in ("1", "2")
    }
    assert texts == {ask(ROW, "mcq_refusal", 7, 2).text}


def test_a_range_is_shown_as_the_number_in_its_middle():
    (ideal,) = (option for option in ask(RANGE, "mcq").options if option.kind == "ideal")
    assert ideal.text == "1.43"
    beside = replace(RANGE, distractors=("(1.5,1.6)", "(2,3)", "(4,5)"))
    (ideal,) = (option for option in ask(beside, "mcq").options if option.kind == "ideal")
    assert ideal.text == "(1.46, 1.40)"


def test_an_option_that_repeats_another_is_asked_once():
    asked = ask(replace(ROW, distractors=("17 ", "18", "18")), "mcq")
    assert sorted(option.text for option in asked.options) == ["17", "18"]


@pytest.mark.parametrize(
    ("said", "outcome"), [("False", "correct"), ("true", "incorrect"), ("no", "correct"), ("", "no_answer")]
)
def test_a_hypothesis_is_true_or_false(said, outcome):
    asked = ask(ROW, "hypothesis")
    assert "Heat raises genes." in asked.text
    assert "17 rose" not in asked.text
    assert (asked.ideal, asked.question) == ("false", "Heat raises genes.")
    assert verifier_of(asked).verify(said).outcome == outcome


def test_a_protocol_is_told_and_its_rubric_is_not():
    row = replace(ROW, question="", protocol="1. Fit a line.", rubric="2 points: fits a line")
    assert default_mode(row) == "hypothesis"
    asked = ask(row, "hypothesis")
    assert "1. Fit a line." in asked.text
    assert "points" not in asked.text


def test_a_hypothesis_shared_by_questions_is_asked_once():
    rows = [ROW, replace(ROW, question_id="b", line=2), replace(ROW, question_id="c", capsule_uuid="v", line=3)]
    assert [row.question_id for row in rows_in_mode(rows, "hypothesis")] == ["Bix-90-q1", "c"]
    assert rows_in_mode(rows, "open") == rows


@pytest.mark.parametrize(
    ("fields", "mode", "message"),
    [
        ({"question": ""}, "open", "mode open: Bix-90-q1 (line 1) asks no question"),
        ({"distractors": ()}, "mcq", "mode mcq: Bix-90-q1 (line 1) has no wrong options"),
        ({"question": ""}, "mcq_refusal", "asks no question"),
        ({"answer": None}, "hypothesis", "has no hypothesis with a truth"),
        ({"hypothesis": ""}, "hypothesis", "has no hypothesis with a truth"),
    ],
)
def test_a_row_that_lacks_what_a_mode_asks_is_named(fields, mode, message):
    with pytest.raises(UsageError) as caught:
        rows_in_mode([replace(ROW, **fields)], mode)
    assert message in str(caught.value)


def test_a_task_carries_language_family_and_seed_and_nothing_of_the_answer(tmp_path):
    task = task_of(ask(replace(ROW, language="r"), "open"), tmp_path)
    assert (task.language, task.family, task.key) == ("r", "RNA-seq", "17")
    assert task_of(ask(ROW, "open"), tmp_path).language == "python"
    assert task_of(ask(ROW, "open"), tmp_path, language="r").language == "r"
    assert not [secret for secret in ("17", "Heat", "canary") if secret in task.question]
