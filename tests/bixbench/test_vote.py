"""Votes over answers: exact, fair, and right for whoever is right; the published letter vote is not."""

import itertools
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbagent.tasks import Outcome
from nbagent_bixbench.results import Result
from nbagent_bixbench.types import Option
from nbagent_bixbench.vote import letter_vote_curve, vote_curve, win_chances

C, W, N, R, U, X = Outcome
REFUSAL = "Insufficient information to answer the question"
EXACT = pytest.approx


def open_rows(answers, outcomes, question="q", eval_mode="str_verifier", ideal="2"):
    return [
        Result(question, i, "open", eval_mode, ideal, answer, outcome)
        for i, (answer, outcome) in enumerate(zip(answers, outcomes, strict=True))
    ]


def asked(question, replica, mode, pick, r):
    """One attempt at a multiple-choice question whose options are shuffled anew; `pick` chooses an option."""
    texts = {"right": "ideal", "wrong 1": "distractor", "wrong 2": "distractor", "wrong 3": "distractor"}
    if mode == "mcq_refusal":
        texts[REFUSAL] = "refusal"
    order = r.sample(sorted(texts), len(texts))
    options = tuple(Option("ABCDE"[i], text, texts[text]) for i, text in enumerate(order))
    chosen = pick(options, r)
    outcome = {"ideal": C, "distractor": W, "refusal": R}[chosen.kind]
    return Result(
        question, replica, mode, "str_verifier", "right", chosen.letter, outcome, options=options, choice=chosen.text
    )


def perfect(options, r):
    return next(option for option in options if option.kind == "ideal")


def at_random(options, r):
    return r.choice(options)


def agent(pick, mode, n_questions, n_replicas, seed=0):
    r = Random(seed)
    if mode == "hypothesis":
        rows = []
        for q, i in itertools.product(range(n_questions), range(n_replicas)):
            truth = r.random() < 0.5
            said = str(truth if pick is perfect else r.random() < 0.5).lower()
            rows.append(Result(f"h{q}", i, mode, "str_verifier", "x", said, C if said == str(truth).lower() else W))
        return rows
    return [asked(f"q{q}", i, mode, pick, r) for q in range(n_questions) for i in range(n_replicas)]


@given(st.lists(st.integers(1, 3), max_size=4), st.integers(0, 2))
@settings(max_examples=60)
def test_chances_equal_the_count_of_all_subsets(counts, silent):
    attempts = [i for i, count in enumerate(counts) for _ in range(count)] + [None] * silent
    made = win_chances(tuple(counts), silent)
    assert len(made) == len(attempts)
    for k in range(1, len(attempts) + 1):
        wins = [0.0] * len(counts)
        subsets = list(itertools.combinations(attempts, k))
        for subset in subsets:
            votes = Counter(vote for vote in subset if vote is not None)
            top = [vote for vote in votes if votes[vote] == max(votes.values())]
            for vote in top:
                wins[vote] += 1 / len(top) / len(subsets)
        assert made[k - 1] == EXACT(tuple(wins))


@pytest.mark.parametrize("mode", ["mcq", "mcq_refusal", "hypothesis"])
def test_a_perfect_agent_is_right_at_every_k(mode):
    curve = vote_curve(agent(perfect, mode, 12, 7))
    assert list(curve) == list(range(1, 8))
    assert all(estimate.value == EXACT(1) for estimate in curve.values())


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "baseline"), [("mcq", 0.25), ("mcq_refusal", 0.2), ("hypothesis", 0.5)])
def test_a_random_agent_is_at_its_baseline_at_every_k(mode, baseline):
    curves = [vote_curve(agent(at_random, mode, 80, 6, seed)) for seed in range(30)]
    for k in range(1, 7):
        covered = sum(curve[k].low <= baseline <= curve[k].high for curve in curves)
        # 28.5 are expected of 95 % intervals; 24 or fewer of 30 would be an accident of 1 in 300.
        assert covered >= 25, k


def test_a_perfect_agent_with_open_answers_in_many_forms_is_right_at_every_k():
    rows = open_rows(["2", "2.0", "2e0", " 2 ", "+2"], [C] * 5)
    spread = open_rows(["1.1", "1.2", "1.3", "1.2", "1.4"], [C] * 5, "r", "range_verifier", "(1,2)")
    assert all(estimate.value == EXACT(1) for estimate in vote_curve(rows + spread).values())


def test_numbers_vote_by_value_and_texts_by_their_normal_form():
    rows = open_rows(["0.0002", "2e-4", "3"], [C, C, W], ideal="2e-4")
    assert vote_curve(rows)[3].value == 1
    names = open_rows(["TNF-α", "tnfalpha", "IL-6", "il6", "IL6"], [C, C, W, W, W], ideal="TNF-alpha")
    assert vote_curve(names)[5].value == 0


def test_ties_are_shared_among_the_most_frequent():
    assert vote_curve(open_rows(["2", "3"], [C, W]))[2].value == EXACT(0.5)
    assert vote_curve(open_rows(["2", "3", "4"], [C, W, W]))[3].value == EXACT(1 / 3)


def test_who_gives_no_answer_does_not_vote_and_nobody_is_not_right():
    curve = vote_curve(open_rows([None, None, "2"], [N, N, C]))
    assert [estimate.value for estimate in curve.values()] == EXACT([1 / 3, 2 / 3, 1])


def test_refusals_of_any_wording_are_one_vote():
    assert vote_curve(open_rows(["unknown", "I cannot answer", "2"], [R, R, C]))[3].value == 0


def test_infrastructure_does_not_count_as_an_attempt_and_ungraded_questions_are_left_out():
    rows = open_rows(["2", None, "2"], [C, X, C]) + open_rows(["2", "2"], [C, U], "other")
    curve = vote_curve(rows)
    assert [(k, estimate.value, estimate.n) for k, estimate in curve.items()] == [(1, 1, 1), (2, 1, 1)]


def test_attempts_at_one_question_in_two_modes_do_not_vote_together():
    rows = [*open_rows(["2", "2"], [C, C]), asked("q", 0, "mcq", perfect, Random(0))]
    assert [estimate.n for estimate in vote_curve(rows).values()] == [2, 1]


def test_a_judge_that_contradicts_itself_counts_by_its_share():
    rows = open_rows(["a gene", "a gene", "a gene"], [C, W, C], eval_mode="llm_verifier")
    assert vote_curve(rows)[3].value == EXACT(2 / 3)


def test_one_attempt_per_question_is_a_proportion():
    rows = [row for q in range(4) for row in open_rows(["2"], [C if q else W], f"q{q}")]
    assert vote_curve(rows)[1].method == "wilson"
    assert vote_curve([]) == {}


@pytest.mark.parametrize(("mode", "n_options"), [("mcq", 4), ("mcq_refusal", 5)])
def test_the_published_letter_vote_fails_an_agent_that_is_always_right(mode, n_options):
    n = 10
    curve = letter_vote_curve(agent(perfect, mode, 4000, n))
    # One of the nine predictions that are kept has the letter it is compared with; the others have it by chance.
    assert curve[1] == EXACT(1 / (n - 1) + (n - 2) / (n - 1) / n_options, abs=0.01)
    assert list(curve) == list(range(1, n)), "one prediction is dropped"
    assert curve[9] < 0.5


def test_the_published_letter_vote_reads_letters_only():
    first, second = (Option("A", "x", "ideal"), Option("B", "y", "distractor"))
    swapped = (Option("A", "y", "distractor"), Option("B", "x", "ideal"))
    rows = [
        Result("q", replica, "mcq", "str_verifier", "x", "x", C, options=options, choice="x")
        for replica, options in enumerate([(first, second), swapped, (first, second)])
    ]
    assert letter_vote_curve(rows) == {1: EXACT(0.5), 2: EXACT(0.5)}
    assert letter_vote_curve(open_rows(["2"], [C])) == {}
