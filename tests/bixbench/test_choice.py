"""Choices among options, and hypotheses."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.choice import chosen_option, grade_choice, grade_hypothesis
from nbagent_bixbench.types import Option

A, B, C, D, E = OPTIONS = (
    Option("A", "0.0135", "distractor"),
    Option("B", "1.35e-4", "ideal"),
    Option("C", "CD8+ T cells", "distractor"),
    Option("D", "The answer lies elsewhere", "distractor"),
    Option("E", "Insufficient information to answer the question", "refusal"),
)


@pytest.mark.parametrize(
    "answer",
    [
        "B", "b", "(B)", "B)", "[b]", "B.", " B\n", "**B**", "`B`", '"B"', "Answer: B", "The answer is B.", "Option B",
        "My final answer is (B)", "<answer>B</answer>", "<answer> b </answer>", "<ANSWER>(B)</ANSWER>",
        "<answer>A is tempting, but <answer>B</answer>", "thinking of A … <answer>B</answer>",
        "<answer>B</answer> and again <answer>b</answer>", "1.35e-4", "0.000135", "1.35 x 10^-4", "B) 1.35e-4",
        "B: 0.000135", "<answer>B. 1.35E-04</answer>", "**Answer: B**",
    ],
)  # fmt: skip
def test_the_ideal_is_chosen_by_letter_or_text(answer):
    assert chosen_option(answer, OPTIONS) == B
    assert grade_choice(answer, OPTIONS).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        "As an AI, I think so", "A or B", "A, B", "AB", "B?!", "not B", "Between A and B", "Be careful", "F", "1.35",
        "<answer>A</answer><answer>B</answer>", "<answer></answer>", "A) 1.35e-4", "B) 0.0135", "1.35e-4 or 0.0135",
        "135", "T cells", "I choose B because A is wrong", "B" * 100_000, "<answer>" * 100_000,
        "<answer>" + " " * 100_000,
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_names_no_option_or_several_is_no_choice(answer):
    assert chosen_option(answer, OPTIONS) is None
    assert grade_choice(answer, OPTIONS).outcome is Outcome.INCORRECT


def test_options_texts_may_begin_like_an_answer_or_look_like_letters():
    assert chosen_option("The answer lies elsewhere", OPTIONS) == D
    assert chosen_option("cd8+ t cells", OPTIONS) == C
    blood = (Option("A", "B", "ideal"), Option("B", "A", "distractor"))
    assert chosen_option("B", blood) == blood[1], "a letter was asked for"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("E", Outcome.REFUSED), ("insufficient information to answer the question", Outcome.REFUSED),
        ("I cannot determine this", Outcome.REFUSED), ("", Outcome.NO_ANSWER), (None, Outcome.NO_ANSWER),
        ("\u200b ", Outcome.NO_ANSWER), ("A", Outcome.INCORRECT),
    ],
)  # fmt: skip
def test_refusals_and_silence(answer, outcome):
    assert grade_choice(answer, OPTIONS).outcome is outcome


@pytest.mark.parametrize("policy", ["official-zeroshot", "official-agentic"])
def test_the_published_rules_take_letters_that_were_read_already(policy):
    assert grade_choice("B", OPTIONS, policy).outcome is Outcome.CORRECT
    assert grade_choice("E", OPTIONS, policy).outcome is Outcome.REFUSED
    assert grade_choice("Z", OPTIONS, policy).outcome is Outcome.INCORRECT
    assert grade_choice(None, OPTIONS, policy).outcome is Outcome.INCORRECT
    assert grade_choice("1.35e-4", OPTIONS, policy).outcome is Outcome.INCORRECT


def test_options_without_exactly_one_ideal_are_an_error():
    with pytest.raises(UsageError, match="exactly one option is the ideal, not 0"):
        grade_choice("A", OPTIONS[2:])
    with pytest.raises(UsageError, match="grading policy 'lax' is unknown"):
        grade_choice("A", OPTIONS, "lax")


@given(st.permutations(["0.5", "5", "-5", "0.05"]), st.randoms(use_true_random=False))
def test_a_perfect_chooser_is_always_right_whatever_the_shuffle(texts, rng):
    kinds = ["ideal" if text == "5" else "distractor" for text in texts]
    options = [Option("ABCD"[i], text, kind) for i, (text, kind) in enumerate(zip(texts, kinds, strict=True))]
    ideal = next(option for option in options if option.kind == "ideal")
    said = rng.choice([ideal.letter, ideal.text, f"<answer>{ideal.letter}</answer>", f"({ideal.letter.lower()})"])
    assert grade_choice(said, options).outcome is Outcome.CORRECT


def test_a_random_chooser_reaches_one_in_so_many():
    rng, n = random.Random(0), 4000
    right = sum(grade_choice(rng.choice("ABCDE"), OPTIONS).outcome is Outcome.CORRECT for _ in range(n))
    assert abs(right / n - 0.2) < 4 * (0.2 * 0.8 / n) ** 0.5


@pytest.mark.parametrize(
    ("said", "truth", "outcome"),
    [
        ("true", True, Outcome.CORRECT), ("True.", True, Outcome.CORRECT), ("FALSE", False, Outcome.CORRECT),
        ("<answer> false </answer>", False, Outcome.CORRECT), ("no", False, Outcome.CORRECT),
        ("Yes", True, Outcome.CORRECT), ("The hypothesis is true", True, Outcome.CORRECT),
        ("The hypothesis is not supported.", False, Outcome.CORRECT), ("supported", True, Outcome.CORRECT),
        ("true", False, Outcome.INCORRECT), ("not true", True, Outcome.INCORRECT),
        ("not true", False, Outcome.INCORRECT), ("true or false", True, Outcome.INCORRECT),
        ("<answer>true</answer><answer>false</answer>", True, Outcome.INCORRECT), ("maybe", True, Outcome.INCORRECT),
        ("", False, Outcome.NO_ANSWER), (None, False, Outcome.NO_ANSWER),
        ("It cannot be determined", False, Outcome.REFUSED), ("0", False, Outcome.INCORRECT),
    ],
)  # fmt: skip
def test_hypotheses(said, truth, outcome):
    assert grade_hypothesis(said, truth).outcome is outcome
