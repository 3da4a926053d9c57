"""The faults of the published scorers that decide scores: the official policies have them, ours do not."""

import pytest

from nbagent.tasks import Outcome
from nbagent_bixbench.choice import chosen_option, grade_choice
from nbagent_bixbench.grade import grade
from nbagent_bixbench.judge import RecordedJudge
from nbagent_bixbench.official import official_letter
from nbagent_bixbench.types import Judgement, Option

ZEROSHOT, AGENTIC = "official-zeroshot", "official-agentic"
OURS = ("strict", "tolerant")
OPTIONS = (
    Option("A", "KIT", "distractor"),
    Option("B", "MYC", "ideal"),
    Option("C", "Insufficient information to answer the question", "refusal"),
)


class Listener:
    """A judge that says what it is told and keeps what it was asked."""

    def __init__(self, verdict="correct"):
        self.verdict = verdict
        self.asked = []

    def decide(self, question, ideal, predicted):
        self.asked.append((question, ideal, predicted))
        return Judgement(self.verdict, (self.verdict,), 1.0, "1", "listener")


@pytest.mark.parametrize("predicted", ["1.3", "99", "high"])
def test_fault_1_the_zeroshot_scorer_never_compares_an_open_answer_with_its_range(predicted):
    """Its numeric test raises on whatever is outside; no published row went through it, a judge decided them all."""
    assert grade(predicted, "(1.2,1.4)", "range_verifier", ZEROSHOT).outcome is Outcome.UNGRADED
    judge = Listener("correct")
    assert grade(predicted, "(1.2,1.4)", "range_verifier", ZEROSHOT, "How much?", judge).outcome is Outcome.CORRECT
    assert judge.asked == [("How much?", "(1.2,1.4)", predicted)]
    for policy in OURS:
        judge = Listener("incorrect")
        expected = Outcome.CORRECT if predicted == "1.3" else Outcome.INCORRECT
        assert grade(predicted, "(1.2,1.4)", "range_verifier", policy, "How much?", judge).outcome is expected
        assert not judge.asked


def test_fault_2_reversed_bounds_are_left_to_a_judge():
    assert grade("1.3", "(1.4,1.2)", "range_verifier", ZEROSHOT).outcome is Outcome.UNGRADED
    for policy in OURS:
        assert grade("1.3", "(1.4,1.2)", "range_verifier", policy).outcome is Outcome.CORRECT
        assert grade("1.5", "(1.4,1.2)", "range_verifier", policy).outcome is Outcome.INCORRECT


@pytest.mark.parametrize(("predicted", "ideal"), [("133", "1.33"), ("4.96", "-4.96"), ("1.9e05", "1.9E-05")])
def test_fault_3_sign_point_and_exponent_are_lost(predicted, ideal):
    assert grade(predicted, ideal, "str_verifier", ZEROSHOT).outcome is Outcome.CORRECT
    for policy in OURS:
        assert grade(predicted, ideal, "str_verifier", policy).outcome is Outcome.INCORRECT


@pytest.mark.parametrize(("predicted", "ideal"), [("2e-4", "0.0002"), ("0.00020", "0.0002")])
def test_fault_3_other_forms_of_a_number_are_not_seen_to_be_equal(predicted, ideal):
    judge = Listener("incorrect")
    assert grade(predicted, ideal, "str_verifier", ZEROSHOT, judge=judge).outcome is Outcome.INCORRECT
    assert judge.asked
    for policy in OURS:
        assert grade(predicted, ideal, "str_verifier", policy).outcome is Outcome.CORRECT


@pytest.mark.parametrize("predicted", ["", None, " ", "-", "1", "0", "CD"])
def test_fault_4_whatever_is_contained_in_the_key_is_correct(predicted):
    ideal = "CD10"
    assert grade(predicted, ideal, "str_verifier", ZEROSHOT).outcome is Outcome.CORRECT
    for policy in OURS:
        assert grade(predicted, ideal, "str_verifier", policy).outcome in (Outcome.NO_ANSWER, Outcome.INCORRECT)


def test_fault_4_an_empty_answer_beats_every_name_and_number():
    keys = ["0.05", "MYC", "CD14+ monocytes", "35%", "1.9E-05", "-4.96"]
    assert all(grade("", key, "str_verifier", ZEROSHOT).outcome is Outcome.CORRECT for key in keys)
    assert all(grade("", key, "str_verifier", policy).outcome is Outcome.NO_ANSWER for key in keys for policy in OURS)


@pytest.mark.parametrize("policy", [ZEROSHOT, AGENTIC])
def test_fault_5_refused_is_incorrect(policy):
    refusal, judge = "It cannot be told from these data.", Listener("refused")
    verdict = grade(refusal, "the cells divide", "llm_verifier", policy, judge=judge)
    assert verdict.outcome is Outcome.INCORRECT
    assert verdict.judged.verdict == "refused"
    for ours in (*OURS, "judge"):
        assert grade(refusal, "the cells divide", "llm_verifier", ours, judge=judge).outcome is Outcome.REFUSED


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("<answer>B</answer>", "B"), ("so <answer>B</answer>.", "B"), ("<answer> B </answer>", "Z"),
        ("<answer>b</answer>", "Z"), ("B", "Z"), ("", "Z"), ("<answer>A</answer> no, <answer>B</answer>", "A"),
    ],
)  # fmt: skip
def test_fault_6_only_a_bare_capital_in_tags_is_read_and_of_two_the_first(reply, letter):
    assert official_letter(reply) == letter


@pytest.mark.parametrize("reply", ["<answer> B </answer>", "<answer>b</answer>", "<ANSWER>(B)</ANSWER>", "Answer: B"])
@pytest.mark.parametrize("policy", [ZEROSHOT, AGENTIC])
def test_fault_6_a_right_choice_with_a_blank_is_wrong(reply, policy):
    assert grade_choice(reply, OPTIONS, policy).outcome is Outcome.INCORRECT
    for ours in OURS:
        assert grade_choice(reply, OPTIONS, ours).outcome is Outcome.CORRECT


def test_fault_6_of_two_choices_the_published_parser_takes_the_first_and_ours_neither():
    reply = "<answer>B</answer> or <answer>A</answer>"
    assert chosen_option(reply, OPTIONS, ZEROSHOT) == OPTIONS[1]
    assert chosen_option(reply, OPTIONS) is None


@pytest.mark.parametrize("mode", ["str_verifier", "range_verifier", "llm_verifier"])
def test_the_agentic_scorer_ignores_the_eval_mode(mode):
    judge = Listener("incorrect")
    assert grade("1.3", "(1.2,1.4)", mode, AGENTIC, "How much?", judge).outcome is Outcome.INCORRECT
    assert judge.asked == [("How much?", "(1.2,1.4)", "1.3")]
    assert grade("1.3", "(1.2,1.4)", mode, AGENTIC).outcome is Outcome.UNGRADED


def test_the_agentic_scorer_drops_empty_answers_but_judges_blanks():
    judge = Listener("correct")
    assert grade("", "MYC", "str_verifier", AGENTIC, judge=judge).outcome is Outcome.NO_ANSWER
    assert grade(None, "MYC", "str_verifier", AGENTIC, judge=judge).outcome is Outcome.NO_ANSWER
    assert not judge.asked
    assert grade(" ", "MYC", "str_verifier", AGENTIC, judge=judge).outcome is Outcome.CORRECT


@pytest.mark.parametrize("model", ["gpt-4o", "claude", "a model that nobody had heard of"])
@pytest.mark.parametrize("policy", [ZEROSHOT, AGENTIC, "strict", "judge"])
def test_fault_12_any_judge_may_judge_and_is_recorded_under_its_own_name(model, policy):
    judge = RecordedJudge(Judgement("correct", ("correct",), 1.0, "1", model))
    verdict = grade("they do", "the cells divide", "llm_verifier", policy, judge=judge)
    assert (verdict.outcome, verdict.judged.model) == (Outcome.CORRECT, model)


@pytest.mark.parametrize("verdict", ["unreachable", "undecided"])
@pytest.mark.parametrize("policy", [ZEROSHOT, AGENTIC, "strict", "tolerant", "judge"])
def test_a_judge_that_says_nothing_leaves_the_answer_ungraded(verdict, policy):
    judge = Listener(verdict)
    assert grade("it does", "the cells divide", "llm_verifier", policy, judge=judge).outcome is Outcome.UNGRADED
