"""What a set of results amounts to."""

import json

import pytest

from nbagent.stats import wilson
from nbagent.tasks import Outcome
from nbagent_bixbench.guessable import guessable
from nbagent_bixbench.results import Result
from nbagent_bixbench.summary import chance, summarize, summary_json
from nbagent_bixbench.types import Judgement, Option

C, W, N, R, U, X = Outcome
FOUR = tuple(Option(letter, f"t{letter}", "ideal" if letter == "A" else "distractor") for letter in "ABCD")


def rows(outcomes, mode="open", eval_mode="str_verifier", start=0, **fields):
    """One attempt at each of as many questions."""
    return [
        Result(f"q{i}", 0, mode, eval_mode, "(1,2)", "x" if o is not N else None, o, **fields)
        for i, o in enumerate(outcomes, start)
    ]


def replicas(question, outcomes, **fields):
    return [
        Result(question, i, "open", "str_verifier", "k", str(i) if o is W else "k", o, **fields)
        for i, o in enumerate(outcomes)
    ]


def test_counts_and_rates_are_those_of_the_published_summaries():
    made = summarize(rows([C, C, C, W, N, R]))
    assert (made.n_total, made.n_graded, made.n_correct, made.n_sure) == (6, 6, 3, 4)
    assert (made.accuracy, made.precision, made.coverage) == (0.5, 0.75, 4 / 6)
    assert made.intervals == {"accuracy": wilson(3, 6), "precision": wilson(3, 4), "coverage": wilson(4, 6)}
    assert made.outcomes == {
        "correct": 3,
        "incorrect": 1,
        "no_answer": 1,
        "refused": 1,
        "ungraded": 0,
        "infrastructure": 0,
    }


def test_ungraded_and_infrastructure_are_counted_and_left_out_of_the_rates():
    made = summarize(rows([C, W, U, X]))
    assert (made.n_total, made.n_graded, made.accuracy, made.coverage) == (4, 2, 0.5, 1.0)
    nothing = summarize(rows([U, X]))
    assert (nothing.accuracy, nothing.precision, nothing.coverage, nothing.pass_at) == (None, None, None, {})
    assert summarize([]).accuracy is None


def test_under_a_published_policy_only_a_refusal_is_not_sure():
    made = summarize(rows([C, W, N, R], policy="official-zeroshot"))
    assert (made.n_sure, made.precision, made.coverage) == (3, 1 / 3, 0.75)


def test_attempts_at_one_question_stay_together_in_the_interval():
    made = summarize([*replicas("a", [C] * 5), *replicas("b", [W] * 5), *replicas("c", [C, W, W, W, X])])
    assert made.accuracy == pytest.approx(6 / 14)
    assert made.intervals["accuracy"].method == "bootstrap"
    assert made.intervals["accuracy"].n == 3
    assert list(made.pass_at) == [1, 2, 3, 4, 5]
    assert made.pass_at[4].value == pytest.approx((1 + 0 + 1) / 3)
    assert made.pass_at[5].n == 2
    assert made.vote[4].value == pytest.approx((1 + 0 + 1 / 4) / 3)


def test_by_mode_eval_mode_category_and_capsule():
    made = summarize(
        [
            *rows([C, W], categories=("bulk", "counts"), capsule_uuid="c1"),
            *rows([C], eval_mode="range_verifier", start=2, categories=("bulk",), capsule_uuid="c2"),
            *rows([W], mode="mcq", options=FOUR, start=3),
        ]
    )
    assert {name: tally.accuracy for name, tally in made.by_category.items()} == {"bulk": 2 / 3, "counts": 0.5}
    assert {name: tally.accuracy for name, tally in made.by_eval_mode.items()} == {
        "range_verifier": 1.0,
        "str_verifier": 1 / 3,
    }
    assert {name: tally.n_total for name, tally in made.by_capsule.items()} == {"c1": 2, "c2": 1}
    assert {name: tally.n_total for name, tally in made.by_mode.items()} == {"mcq": 1, "open": 3}


def test_the_baseline_is_that_of_the_options():
    five = (*FOUR, Option("E", "no idea", "refusal"))
    assert [chance(row) for row in rows([C], mode="mcq", options=FOUR)] == [0.25]
    assert summarize([*rows([C], mode="mcq", options=FOUR), *rows([C], "mcq_refusal", options=five)]).baseline == 0.225
    assert summarize(rows([C], mode="hypothesis")).baseline == 0.5
    assert summarize(rows([C])).baseline == 0


def test_questions_that_need_no_data_are_marked_with_their_reason():
    asked = [
        *rows([W, W, W], mode="mcq", options=FOUR),
        Result("y", 0, "open", "str_verifier", "Yes ", "no", W),
        Result("n", 0, "open", "str_verifier", "yes, 3", "no", W),
        *rows([C], start=9),
    ]
    without = [
        Result(q, i, "mcq", "str_verifier", "k", "A" if o is C else "B", o, options=FOUR, setting="zero-shot")
        for q, outcomes in {"Q0": [C, C, W], "q1": [C, W, W], "q9": [C, C, C]}.items()
        for i, o in enumerate(outcomes)
    ]
    assert guessable(asked, without) == {
        ("q0", "mcq"): "zero-shot attempts get it right",
        ("y", "open"): "the key is one word of a pair",
    }
    made = summarize(asked, without)
    assert {name: tally.n_total for name, tally in made.by_guessable.items()} == {"guessable": 2, "not guessable": 4}
    assert made.guessable == {
        "q0 (mcq)": "zero-shot attempts get it right",
        "y (open)": "the key is one word of a pair",
    }


def test_the_judges_agreement_with_itself():
    def judged(verdict, votes, agreement):
        return Judgement(verdict, votes, agreement, "1", "m")

    made = summarize(
        [
            *rows([C], judge=judged("correct", ("correct",) * 3, 1.0)),
            *rows([W], start=1, judge=judged("incorrect", ("correct", "incorrect", "incorrect"), 2 / 3)),
            *rows([U], start=2, judge=judged("unreachable", (), 0.0)),
            *rows([C], start=3, judge=judged("correct", ("correct",), 1.0)),
        ]
    ).judging
    assert (made.n_judged, made.n_undecided, made.agreement) == (4, 1, pytest.approx(5 / 6))
    assert summarize(rows([C])).judging is None


def test_effort_is_summed_and_an_unknown_cost_stays_unknown():
    made = summarize(rows([C, W], steps=3, prompt_tokens=10, completion_tokens=2, seconds=1.5)).effort
    assert (made.steps, made.prompt_tokens, made.completion_tokens, made.seconds, made.cost) == (6, 20, 4, 3.0, None)
    assert summarize([*rows([C], cost=0.25), *rows([C], start=1)]).effort.cost == 0.25


def test_the_json_holds_numbers_and_their_intervals():
    plain = json.loads(json.dumps(summary_json(summarize(replicas("a", [C, W]) + replicas("b", [C, R])))))
    assert list(plain)[:7] == ["n_total", "n_graded", "n_correct", "n_sure", "accuracy", "precision", "coverage"]
    assert (plain["accuracy"], plain["precision"], plain["coverage"]) == (0.5, pytest.approx(2 / 3), 0.75)
    assert plain["intervals"]["accuracy"]["method"] == "bound"
    assert plain["by_eval_mode"]["str_verifier"]["n_correct"] == 2
    assert plain["vote"]["2"]["value"] == 0.5


def test_the_letter_vote_is_only_there_for_the_published_policy():
    graded = rows([C, C], mode="mcq", options=FOUR, policy="strict")
    assert summarize(graded).letter_vote == {}
