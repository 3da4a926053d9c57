"""The published zero-shot files, in the same form with rows of our own."""

import csv
import io

import pytest

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.regrade import regrade
from nbagent_bixbench.summary import summarize
from nbagent_bixbench.zero_shot_csv import is_zero_shot_csv, read_zero_shot_csv

C, W, N, R, U, X = Outcome
COLUMNS = ("uuid", "question", "predicted", "target", "unsure", "evaluation_mode")
GRADED = (*COLUMNS, "grade", "correct", "sure")


def text_of(rows, columns=COLUMNS):
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def read(text, tmp_path):
    return read_zero_shot_csv(text, tmp_path / "answers.csv")


def outcomes(results, policy):
    return [result.outcome for result in regrade(results, policy)]


OPEN = [
    # uuid, question, predicted, target, unsure, evaluation_mode, grade, correct, sure
    ("u1", "How many, in \"all\"?\nCount.", "23", "23", "", "str_verifier", "True", "True", "True"),
    ("u2", "empty", "", "0.05", "", "str_verifier", "True", "True", "True"),
    ("u3", "sign", "-4.96", "4.96", "", "str_verifier", "True", "True", "True"),
    ("u4", "form", "2e-4", "0.0002", "", "str_verifier", "False", "False", "True"),
    ("u5", "range", "1.5", "(2,1)", "", "range_verifier", "False", "False", "True"),
    ("u6", "range", "3", "(1,2)", "", "range_verifier", "True", "True", "True"),
    ("u7", "text", "It binds DNA,\nstrongly", "binds DNA", "", "llm_verifier", "1.0", "1.0", "True"),
    ("u8", "text", "no idea", "binds DNA", "", "llm_verifier", "refused", "False", "True"),
]  # fmt: skip


def test_open_answers_are_read_with_quotes_newlines_and_empty_cells(tmp_path):
    results = read(text_of(OPEN, GRADED), tmp_path)
    assert [result.question_id for result in results] == [f"u{i}" for i in range(1, 9)]
    assert results[0].question == 'How many, in "all"?\nCount.'
    assert (results[1].answer, results[6].answer) == ("", "It binds DNA,\nstrongly")
    assert {(result.mode, result.setting, result.replica) for result in results} == {("open", "zero-shot", 0)}


def test_the_published_policy_gives_the_recorded_figures_and_strict_its_own(tmp_path):
    results = read(text_of(OPEN, GRADED), tmp_path)
    assert outcomes(results, "official-zeroshot") == [C, C, C, W, W, C, C, W]
    official = summarize(regrade(results, "official-zeroshot"))
    recorded = sum(row[7] in ("True", "1.0") for row in OPEN)
    assert (official.n_total, official.n_correct, official.n_sure, official.coverage) == (8, recorded, 8, 1.0)
    assert outcomes(results, "strict") == [C, N, W, C, C, W, C, R]


def test_without_recorded_verdicts_what_needs_a_judge_is_ungraded(tmp_path):
    results = read(text_of([row[:6] for row in OPEN]), tmp_path)
    assert outcomes(results, "official-zeroshot") == [C, C, C, U, U, U, U, U]
    assert outcomes(results, "strict") == [C, N, W, C, C, W, U, U]
    assert outcomes(results, "official-agentic") == [U, N, U, U, U, U, U, U]


def test_a_verdict_that_no_judge_gave_is_no_judges(tmp_path):
    """An empty answer that the string comparison called correct must not become a judge's word."""
    results = read(text_of(OPEN, GRADED), tmp_path)
    assert [result.judge is not None for result in results] == [False, False, False, True, True, True, True, True]
    assert outcomes(results, "judge")[:3] == [U, N, U]
    assert outcomes(results, "judge")[3:] == [W, W, C, C, R]


CHOICES = [
    ("u1", "q", "A", "A", "E", "str_verifier", "True", "True", "False"),
    ("u2", "q", "B", "A", "E", "range_verifier", "False", "False", "False"),
    ("u3", "q", "E", "A", "E", "llm_verifier", "False", "False", "True"),
    ("u4", "q", "Z", "C", "A", "llm_verifier", "False", "False", "False"),
    ("u5", "q", "", "C", "A", "llm_verifier", "False", "False", "False"),
]


def test_letters_are_multiple_choice_and_unsure_is_the_refusal_option(tmp_path):
    results = read(text_of(CHOICES, GRADED), tmp_path)
    assert {result.mode for result in results} == {"mcq_refusal"}
    assert [option.kind for option in results[0].options] == ["ideal", *["distractor"] * 3, "refusal"]
    assert [option.letter for option in results[3].options if option.kind == "refusal"] == ["A"]
    made = summarize(regrade(results, "official-zeroshot"))
    # `sure` holds the refusal flag; their summary counts as sure what differs from the letter of `unsure`.
    assert (made.n_total, made.n_correct, made.n_sure) == (5, 1, sum(row[2] != row[4] for row in CHOICES))
    assert (made.accuracy, made.precision, made.coverage) == (0.2, 0.25, 0.8)
    assert made.baseline == 0.2
    assert outcomes(results, "official-zeroshot") == [C, W, R, W, W]
    assert outcomes(results, "strict") == [C, W, R, W, N]


def test_letters_without_a_refusal_option_are_one_of_four(tmp_path):
    rows = [(*row[:4], "", row[5]) for row in CHOICES if row[2] != "E"]
    made = summarize(regrade(read(text_of(rows), tmp_path), "official-zeroshot"))
    assert (made.baseline, made.coverage) == (0.25, 1.0)


def test_a_key_beyond_the_usual_letters_is_an_option(tmp_path):
    (result,) = read(text_of([("u", "q", "G", "G", "F", "str_verifier")]), tmp_path)
    assert [option.letter for option in result.options] == list("ABCDEFG")
    assert outcomes([result], "strict") == [C]


def test_the_older_form_with_short_ids_was_judged_throughout(tmp_path):
    columns = ("short_qid", "question", "predicted", "target", "unsure", "grade", "correct", "sure")
    text = text_of(
        [("bix-901-q1", "q", "5 mg", "5", "", "1", "1", "1"), ("bix-901-q2", "q", "", "5", "", "0", "0", "1")], columns
    )
    results = read(text, tmp_path)
    assert [result.question_id for result in results] == ["bix-901-q1", "bix-901-q2"]
    assert {result.eval_mode for result in results} == {"llm_verifier"}
    assert outcomes(results, "official-zeroshot") == [C, W]
    assert outcomes(results, "strict") == [C, N]


def test_a_question_named_again_is_a_replica_and_one_uuid_may_be_a_capsules(tmp_path):
    rows = [("u", text, "1", "1", "", "str_verifier") for text in ("first?", "second?", "first?")]
    results = read(text_of(rows), tmp_path)
    assert [(result.question_id, result.replica) for result in results] == [("u", 0), ("u#2", 0), ("u", 1)]


def test_extra_columns_in_any_order_do_not_matter(tmp_path):
    text = text_of(
        [("x", "1", "q", "1", "", "str_verifier", "u")],
        ("note", "predicted", "question", "target", "unsure", "evaluation_mode", "uuid"),
    )
    assert outcomes(read("\ufeff".lstrip("\ufeff") + text, tmp_path), "strict") == [C]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("uuid,question,target,unsure\n", r"answers.csv:1: no column 'predicted', 'evaluation_mode'; there are: uuid"),
        ("predicted,target\n1,1\n", "no column 'uuid', 'question', 'unsure', 'evaluation_mode'"),
        (text_of([]), "holds no answers"),
        (text_of([("u", 'two\nlines', "1", "1", "", "str_verifier"), ("u", "q", "1", "1")]), r"csv:4: 4 cells under 6"),
        (text_of([("u", "q", "1", "1", "", "exact")]), r"csv:2: evaluation_mode is 'exact'; one of str_verifier"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_line(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read(text, tmp_path)


def test_a_long_answer_is_read_whole(tmp_path):
    (result,) = read(text_of([("u", "q", "x" * 200_000, "1", "", "str_verifier")]), tmp_path)
    assert len(result.answer) == 200_000


def test_a_range_key_that_is_none_is_ungraded_with_its_reason(tmp_path):
    (result,) = regrade(read(text_of([("u", "q", "1", "1 to 2", "", "range_verifier")]), tmp_path), "strict")
    assert (result.outcome, result.reason[:22]) == (U, "range key '1 to 2' is ")


def test_other_files_are_not_taken_for_one():
    assert is_zero_shot_csv(text_of([]))
    assert not is_zero_shot_csv("question,answer,data_folder\n")
    assert not is_zero_shot_csv("")
