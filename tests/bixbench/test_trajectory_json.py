"""The published per-question trajectories, in the same form with questions of our own."""

import json

import pytest

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.answer_files import read_answers
from nbagent_bixbench.regrade import regrade

C, W, N, R, U, X = Outcome
REFUSAL = "Insufficient information to answer the question"
ROW = {
    "question_id": "bix-901-q1",
    "question": "How many genes?",
    "ideal": "42",
    "distractors": ["41", "43", "44"],
    "eval_mode": "str_verifier",
    "capsule_uuid": "c-1",
    "categories": "['Bulk RNA-seq', 'Counts']",
    "answer": False,
}
OPEN = {
    "problem_id": "bix-901-q1",
    "agent_answer": "42.0",
    "ideal_answer": "42",
    "problem": "How many genes? Answer briefly.",
    "mcq_options": ["41", "42", "43", "44"],
    "mcq_question": "…",
    "notebook_stats": {"lines": 3},
    "num_actions": 7,
    "question_format": "open",
    "refusal_option": False,
    "model": "some-model",
    "metadata": ROW,
    "refusal_options": {},
    "nb": {"cells": []},
    "run_name": "run",
}


def written(folder, name="bix-901-q1_replica_2.json", **change):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**OPEN, **change}))
    return path


def test_an_open_answer_with_its_row(tmp_path):
    (result,) = read_answers(written(tmp_path)).results
    assert (result.question_id, result.replica, result.mode, result.answer, result.ideal) == (
        "bix-901-q1", 2, "open", "42.0", "42",
    )  # fmt: skip
    assert (result.eval_mode, result.capsule_uuid, result.categories) == (
        "str_verifier", "c-1", ("Bulk RNA-seq", "Counts"),
    )  # fmt: skip
    assert (result.question, result.model, result.steps, result.options) == ("How many genes?", "some-model", 7, ())
    assert regrade([result], "strict")[0].outcome is C


def test_the_default_file_name_has_no_replica_and_is_read(tmp_path):
    (result,) = read_answers(written(tmp_path, "bix-901-q1.json")).results
    assert result.replica == 0


@pytest.mark.parametrize(
    ("answer", "read", "ideal"), [(0, "0", "0"), (0.0, "0.0", "0"), (False, "false", "False"), (1.5, "1.5", "1.50")]
)
def test_falsy_answers_do_not_vanish(tmp_path, answer, read, ideal):
    (result,) = read_answers(written(tmp_path, agent_answer=answer, ideal_answer=ideal)).results
    assert result.answer == read
    assert regrade([result], "strict")[0].outcome is C
    # The published agentic scorer drops what Python calls false; the text "0" is not.
    assert regrade([result], "official-agentic")[0].outcome is (U if answer else N)
    (text,) = read_answers(written(tmp_path, agent_answer=str(answer), ideal_answer=ideal)).results
    assert regrade([text], "official-agentic")[0].outcome is U


def test_no_answer_and_an_empty_one_differ_only_in_the_record(tmp_path):
    folder = tmp_path / "run"
    written(folder, "a_replica_0.json", agent_answer=None)
    written(folder, "a_replica_1.json", agent_answer="")
    results = read_answers(folder).results
    assert [result.answer for result in results] == [None, ""]
    assert [result.outcome for result in regrade(results, "strict")] == [N, N]


@pytest.mark.parametrize(
    ("options", "ideal", "answer"),
    [
        (["41", REFUSAL, "42", "43", "44"], "42", "C"),
        (["A) 41", f"B) {REFUSAL}", "C) 42", "D) 43", "E) 44"], "C", "42"),
        ({"A": "41", "B": REFUSAL, "C": "42", "D": "43", "E": "44"}, "C", "<answer>C</answer>"),
    ],
)
def test_multiple_choice_in_every_form_of_its_options(tmp_path, options, ideal, answer):
    change = {"question_format": "mcq", "refusal_option": True, "mcq_options": options, "ideal_answer": ideal}
    (result,) = read_answers(written(tmp_path, agent_answer=answer, **change)).results
    assert result.mode == "mcq_refusal"
    assert [option.kind for option in result.options] == [
        "distractor", "refusal", "ideal", "distractor", "distractor",
    ]  # fmt: skip
    (graded,) = regrade([result], "strict")
    assert (graded.outcome, graded.choice) == (C, "42")


def test_a_hypothesis_takes_its_truth_from_the_row(tmp_path):
    (result,) = read_answers(written(tmp_path, question_format="hypothesis", agent_answer=False)).results
    assert (result.mode, result.ideal, regrade([result])[0].outcome) == ("hypothesis", "false", C)


def test_a_recorded_verdict_stands_in_for_the_judge(tmp_path):
    (result,) = read_answers(written(tmp_path, agent_answer="about forty", correct=True)).results
    assert regrade([result], "official-agentic")[0].outcome is C
    assert regrade([result], "strict")[0].outcome is W


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_format": "essay"}, "question_format is 'essay'"),
        ({"metadata": {**ROW, "eval_mode": "exact"}}, "eval_mode is 'exact'"),
        ({"metadata": {**ROW, "categories": "['a"}}, "metadata.categories"),
        ({"question_format": "mcq", "ideal_answer": "45", "metadata": {}}, "0 of 4 mcq_options are the ideal_answer"),
    ],
)
def test_what_cannot_be_used_names_the_file(tmp_path, change, message):
    with pytest.raises(UsageError, match=rf"bix-901-q1_replica_2.json: .*{message}"):
        read_answers(written(tmp_path, **change))


def test_a_missing_field_is_named(tmp_path):
    (tmp_path / "t.json").write_text(json.dumps({"problem_id": "x", "ideal_answer": "1"}))
    with pytest.raises(UsageError, match=r"t.json: no field 'agent_answer'"):
        read_answers(tmp_path / "t.json")


def test_runs_whose_names_share_a_beginning_are_not_mixed(tmp_path):
    written(tmp_path / "all", "a_replica_0.json", run_name="a")
    written(tmp_path / "all", "b_replica_0.json", run_name="ab", problem_id="b")
    with pytest.raises(UsageError, match="holds the runs 'a', 'ab'; give the folder of one"):
        read_answers(tmp_path / "all")


def test_one_attempt_twice_and_files_that_are_no_trajectory_are_refused(tmp_path):
    written(tmp_path / "twice" / "x")
    second = written(tmp_path / "twice" / "y")
    with pytest.raises(UsageError, match=rf"{second}: replica 2 of 'bix-901-q1' is in .*x/bix-901-q1_replica_2.json"):
        read_answers(tmp_path / "twice")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config.json: is no trajectory"):
        read_answers(tmp_path / "other")
