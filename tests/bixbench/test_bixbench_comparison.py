"""Runs compared: paired differences, and performance profiles with the area under them."""

import json
import math

import pytest
from typer.testing import CliRunner

from nbagent.errors import UsageError
from nbagent.stats import paired_difference
from nbagent.tasks import Outcome
from nbagent_bixbench.comparison import compare_runs
from nbagent_bixbench.profile import performance_profiles
from nbagent_bixbench.report_commands import app
from nbagent_bixbench.results import Result, write_results

C, W, N, R, U, X = Outcome


def run(outcomes, mode="open", policy="strict", **fields):
    """Attempts by question: `{"q": [C, W]}`; answers are right exactly where their outcome is."""
    return [
        Result(q, i, mode, "str_verifier", "42", "42" if o is C else "41", o, policy=policy, **fields)
        for q, attempts in outcomes.items()
        for i, o in enumerate(attempts)
    ]


def test_the_best_everywhere_has_area_1_and_who_solves_nothing_0():
    best, none = performance_profiles([{"a": (4, 4), "b": (4, 2)}, {"a": (4, 0), "b": (4, 0)}])
    assert (best.aup, none.aup) == (1.0, 0.0)
    assert best.steps == ((1.0, 1.0), (4.0, 1.0))
    assert none.steps == ((1.0, 0.0), (4.0, 0.0))


def test_the_area_is_that_of_the_formula():
    first, second = performance_profiles([{"a": (4, 4), "b": (4, 1)}, {"a": (4, 2), "b": (4, 3)}])
    # Ratios of the first: 1 and 3; of the second: 2 and 1.
    assert first.steps == ((1.0, 0.5), (3.0, 1.0), (4.0, 1.0))
    assert second.steps == ((1.0, 0.5), (2.0, 1.0), (4.0, 1.0))
    assert first.aup == pytest.approx((1 + 1 - math.log(3) / math.log(4)) / 2)
    assert second.aup == pytest.approx((1 + 1 - math.log(2) / math.log(4)) / 2)


@pytest.mark.parametrize(
    "counts",
    [
        [{"a": (5, 2), "b": (5, 5), "c": (5, 1)}, {"a": (5, 3), "b": (5, 4), "c": (5, 0)}],
        [{"a": (3, 1), "b": (7, 3)}, {"a": (7, 2), "b": (3, 3)}, {"a": (7, 7), "b": (7, 1)}],
    ],
)
def test_the_area_equals_the_integral_of_the_steps(counts):
    for profile in performance_profiles(counts):
        width = math.log(profile.steps[-1][0])
        pairs = zip(profile.steps, profile.steps[1:], strict=False)
        area = sum(share * (math.log(after) - math.log(at)) for (at, share), (after, _) in pairs) / width
        assert profile.aup == pytest.approx(area, abs=1e-6)


def test_one_attempt_per_question_gives_the_share_solved_and_unsolved_questions_are_left_out():
    first, second = performance_profiles(
        [{"a": (1, 1), "b": (1, 0), "c": (1, 0), "d": (1, 1)}, {"a": (1, 1), "b": (1, 1), "c": (1, 0), "e": (1, 1)}]
    )
    assert (first.aup, first.n_solved, first.n_questions) == (0.5, 1, 2)
    assert (second.aup, second.n_solved) == (1.0, 2)


def test_nothing_solved_is_one_line():
    with pytest.raises(UsageError, match="no question was attempted by all and solved by any"):
        performance_profiles([{"a": (1, 0)}, {"a": (1, 0)}])


def test_differences_pair_questions_up_to_case_and_count_what_is_left_out():
    before = run({"q1": [C, W], "Q2": [W, W], "q3": [C, C], "q4": [U, X], "q5": [C]})
    after = run({"Q1": [C, C], "q2": [W, C], "q3": [C, W], "q4": [C, C]})
    (found,) = compare_runs({"a": before, "b": after})
    (difference,) = found.differences
    assert difference.overall == paired_difference([0.5, 0, 1], [1, 0.5, 0.5])
    assert (difference.before, difference.after, difference.n_left_out) == ("a", "b", 2)
    assert (found.n_unsolved, found.profiles[0].n_questions) == (0, 3)


def test_every_mode_that_all_runs_have_is_compared_and_others_with_the_first():
    runs = {
        name: run({"q": [C if name == "a" else W, C]}) + run({"q": [C]}, mode="hypothesis" if name == "c" else "mcq")
        for name in "abc"
    }
    (found,) = compare_runs(runs)
    assert found.mode == "open"
    assert [(d.before, d.after) for d in found.differences] == [("a", "b"), ("a", "c")]
    assert len(compare_runs({"a": runs["a"], "b": runs["b"]})) == 2


def test_where_nothing_is_solved_there_are_differences_and_no_profiles():
    (found,) = compare_runs({"a": run({"q": [W]}), "b": run({"q": [W]})})
    assert (found.profiles, found.n_unsolved, found.differences[0].overall.difference.value) == ((), 1, 0)


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (run({"q": [C]}, policy="tolerant"), r"different policies \(a: strict; b: tolerant\); name one with --policy"),
        (run({"q": [C]}, mode="mcq"), "a, b: have no mode in common"),
        (run({"other": [C]}), "a and b: no question was graded in both"),
        ([Result("q", 0, "open", "str_verifier", "43", "1", W, policy="strict")], "'q' has another key in b than in a"),
    ],
)
def test_what_cannot_be_compared_is_one_line(after, message):
    with pytest.raises(UsageError, match=message):
        compare_runs({"a": run({"q": [C]}), "b": after})


def test_the_command_prints_writes_a_page_and_regrades_first(tmp_path):
    for name, policy, outcomes in (("a", "strict", {"q": [C, W]}), ("b", "tolerant", {"q": [C, C]})):
        (tmp_path / name).mkdir()
        write_results(tmp_path / name / "results.jsonl", run(outcomes, policy=policy))
    runs = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert isinstance(CliRunner().invoke(app, ["compare", *runs]).exception, UsageError)
    page = tmp_path / "page.html"
    shown = CliRunner().invoke(app, ["compare", *runs, "--policy", "strict", "--html", str(page)])
    assert shown.exit_code == 0, shown.output
    assert "b minus a" in shown.output
    assert "AUP" in shown.output
    assert "<script" not in page.read_text()
    assert "b 1.00" in page.read_text()
    (made,) = json.loads(CliRunner().invoke(app, ["compare", *runs, "--policy", "strict", "--json"]).output)
    assert made["differences"][0]["overall"]["difference"]["value"] == 0.5
    assert [profile["aup"] for profile in made["profiles"]] == [0.0, 1.0]
    alone = CliRunner().invoke(app, ["compare", runs[0], runs[0]])
    assert "takes two different runs" in str(alone.exception)
