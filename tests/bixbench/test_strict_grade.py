import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, Verifier
from nbagent_bixbench.grade import KeyVerifier, grade, key_range, normal_text, number

numbers = st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**6), max_value=10**6, places=4)
texts = st.text(max_size=30)


@pytest.mark.parametrize(
    ("predicted", "ideal"),
    [
        ("133", "133"), (" 133 ", "133"), ("133.0", "133"), ("1.330e2", "133"), ("+133", "133"), ("1,330", "1330"),
        ("2e-4", "0.0002"), ("0.00020", "0.0002"), ("1.9E-05", "1.9e-5"), ("-4.96", "−4.96"), (".5", "0.5"),
        ("myc", "MYC"), ("CD14+  Monocyte", "cd14+ monocyte"), ("35.0%", "35%"), ("-0", "0"), ("36.", "36"),
    ],
)  # fmt: skip
def test_the_same_answer_in_another_form_is_correct(predicted, ideal):
    assert grade(predicted, ideal, "str_verifier").outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("predicted", "ideal"),
    [
        ("133", "1.33"), ("4.96", "-4.96"), ("1.9e5", "1.9E-05"), ("1", "12"), ("2", "12"), ("12", "1"), ("35", "35%"),
        ("0.35", "35%"), ("MYC or KIT", "MYC"), ("MYC, KIT", "MYC"), ("3 or 4", "3"), ("3, 4", "3"), ("about 3", "3"),
        ("MY C", "MYC"), ("MYC1", "MYC"), ("M", "MYC"), ("(3)", "3"), ("nan", "3"), ("inf", "3"), ("12,34", "1234"),
        ("1e99999", "3"), ("٣", "3x"), ("-", "3"), (".", "3"), ("1.2.3", "1.23"), ("10²", "102"), ("½", "12"),
    ],
)  # fmt: skip
def test_another_answer_is_incorrect(predicted, ideal):
    assert grade(predicted, ideal, "str_verifier").outcome is Outcome.INCORRECT


@pytest.mark.parametrize(
    ("predicted", "outcome"),
    [
        ("1.2", Outcome.CORRECT), ("1.4", Outcome.CORRECT), ("1.3e0", Outcome.CORRECT), ("1.19999", Outcome.INCORRECT),
        ("1.41", Outcome.INCORRECT), ("-1.3", Outcome.INCORRECT), ("1.3 or 9", Outcome.INCORRECT),
        ("(1.2,1.4)", Outcome.INCORRECT), ("1.3%", Outcome.INCORRECT), ("high", Outcome.INCORRECT),
        ("nan", Outcome.INCORRECT), ("", Outcome.NO_ANSWER), (None, Outcome.NO_ANSWER),
    ],
)  # fmt: skip
@pytest.mark.parametrize("ideal", ["(1.2,1.4)", "(1.4,1.2)", " ( 1.2 , 1.4 ) ", "[1.2,1.4]"])
def test_ranges_are_inclusive_whichever_bound_is_first(predicted, outcome, ideal):
    assert grade(predicted, ideal, "range_verifier").outcome is outcome


@pytest.mark.parametrize("blank", [None, "", " ", "\n\t", "\u00a0", "\u3000"])
@pytest.mark.parametrize("mode", ["str_verifier", "range_verifier", "llm_verifier"])
def test_an_empty_answer_is_no_answer(blank, mode):
    assert grade(blank, "(1,2)", mode).outcome is Outcome.NO_ANSWER


@pytest.mark.parametrize(
    "refusal",
    [
        "Insufficient information to answer the question", "I cannot answer this.", "unable to determine",
        "I don't know", "It cannot be determined from the data", "Not enough data",
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["str_verifier", "range_verifier", "llm_verifier"])
def test_an_explicit_refusal_is_refused(refusal, mode):
    assert grade(refusal, "(1,2)", mode).outcome is Outcome.REFUSED


def test_a_key_that_reads_like_a_refusal_can_be_answered():
    assert grade("not enough data", "Not enough data", "str_verifier").outcome is Outcome.CORRECT


def test_free_text_keys_are_ungraded_without_a_judge():
    assert grade("the cells divide", "the cells divide", "llm_verifier").outcome is Outcome.UNGRADED


def test_an_unknown_policy_is_a_clear_error():
    with pytest.raises(UsageError, match="grading policy 'lax' is unknown; there are: strict, tolerant, judge, off"):
        grade("1", "1", "str_verifier", "lax")


@pytest.mark.parametrize("key", ["1.2,1.4", "(1.2)", "(1,2,3)", "(a,b)", "", "(1.2,inf)"])
def test_a_range_key_that_is_no_pair_is_an_error(key):
    with pytest.raises(UsageError, match="is not a pair of numbers"):
        key_range(key)


def test_an_unknown_eval_mode_is_an_error():
    with pytest.raises(UsageError, match="eval mode 'exact' is unknown"):
        grade("1", "1", "exact")


def test_the_verifier_is_one_of_the_floor_below():
    assert isinstance(KeyVerifier("1"), Verifier)
    assert KeyVerifier("1").verify("1.0").outcome is Outcome.CORRECT


@given(numbers, numbers)
def test_numbers_are_correct_exactly_when_their_values_are_equal(a, b):
    for form in (f"{a}", f"{a:e}", f"{a:,}", f" {a:.6f}\n"):
        assert grade(form, str(b), "str_verifier").outcome.reward == float(a == b), form


@given(numbers, numbers, numbers)
def test_ranges_hold_exactly_what_lies_between_their_bounds(x, lo, hi):
    inside = min(lo, hi) <= x <= max(lo, hi)
    assert grade(str(x), f"({lo},{hi})", "range_verifier").outcome.reward == float(inside)


@given(texts)
def test_any_answer_equals_itself_or_is_none(text):
    expected = Outcome.CORRECT if text.strip() else Outcome.NO_ANSWER
    assert grade(text, text, "str_verifier").outcome in (expected, Outcome.NO_ANSWER)


@given(texts.filter(str.strip), texts.filter(str.strip))
def test_more_text_around_a_key_is_never_correct(key, more):
    joined = f"{key} {more}"
    if number(joined) is None:
        assert grade(joined, key, "str_verifier").outcome is not Outcome.CORRECT


@given(texts)
def test_grading_never_raises_and_ranges_take_only_numbers(text):
    verdict = grade(text, "(-1e9,1e9)", "range_verifier")
    assert verdict.reason
    if verdict.outcome is Outcome.CORRECT:
        assert abs(number(normal_text(text))) <= 10**9
