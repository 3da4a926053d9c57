import json

import pytest

from nbagent.errors import TaskFormatError
from nbagent_bixbench.rows import examine_rows, read_rows
from nbagent_bixbench.schemas import REQUIRED

GOOD = {
    "id": "a", "question_id": "nb-1-q1", "short_id": "nb-1", "question": "How many?", "ideal": "3",
    "distractors": ["1", "2", "4"], "eval_mode": "str_verifier", "capsule_uuid": "u",
    "data_folder": "CapsuleFolder-u.zip", "categories": "RNA-seq, Genomics",
    "hypothesis": "h", "result": "r", "answer": True, "paper": "p", "version": "1.5",
    "canary": "c",
}  # fmt: skip


def write(tmp_path, *rows):
    path = tmp_path / "BixBench.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def changed(**fields):
    return {**GOOD, **fields}


def test_a_published_row_is_read(tmp_path):
    (row,) = read_rows(write(tmp_path, GOOD))
    assert row.question_id == "nb-1-q1"
    assert row.categories == ("RNA-seq", "Genomics")
    assert row.distractors == ("1", "2", "4")
    assert row.answer is True
    assert row.line == 1


def test_the_forms_that_published_files_hold_are_read(tmp_path):
    listed = changed(categories="['RNA-seq', 'Other']", distractors="['1', '2', '4']")
    reversed_range = changed(question_id="Nb-1-q2", eval_mode="range_verifier", ideal="(3.2,1.1) ")
    short = {name: GOOD[name] for name in REQUIRED} | {"question_id": "nb-1-q3", "answer": None}
    rows = read_rows(write(tmp_path, listed, "", reversed_range, short))
    assert rows[0].categories == ("RNA-seq", "Other")
    assert rows[0].distractors == ("1", "2", "4")
    assert [row.line for row in rows] == [1, 3, 4]
    assert rows[2].answer is None


@pytest.mark.parametrize("name", REQUIRED)
def test_a_lacking_field_names_file_line_and_field(tmp_path, name):
    path = write(tmp_path, GOOD, {key: value for key, value in changed(question_id="q2").items() if key != name})
    with pytest.raises(TaskFormatError) as caught:
        read_rows(path)
    assert str(caught.value) == f"{path}:2: field {name!r} is missing"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "not JSON"),
        ("[1, 2]", "a row must be a JSON object, this is a list"),
        (changed(question=7), "field 'question' must be text, it is int"),
        (changed(ideal=3.5), "field 'ideal' must be text, it is float"),
        (changed(question=" "), "field 'question' is empty"),
        (changed(ideal=""), "field 'ideal' is empty"),
        (changed(eval_mode="exact"), "field 'eval_mode' is 'exact'; one of str_verifier, range_verifier, llm_verifier"),
        (changed(eval_mode="range_verifier"), "field 'ideal': range key '3' is not a pair of numbers"),
        (changed(distractors="1, 2"), "field 'distractors' must be a list of texts"),
        (changed(distractors=[1, 2]), "field 'distractors' must be a list of texts"),
        (changed(distractors="['1', "), "field 'distractors' is not a list"),
        (changed(categories=3), "field 'categories' must be a list of texts"),
        (changed(answer="yes"), "field 'answer' must be true or false, it is str"),
        (changed(id=3), "field 'id' must be text, it is int"),
    ],
)
def test_a_row_that_cannot_be_used_names_file_line_and_field(tmp_path, row, message):
    path = write(tmp_path, changed(question_id="nb-0-q1"), row)
    with pytest.raises(TaskFormatError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (json.dumps(GOOD).encode("utf-16"), "not UTF-8 text"),
        (b'{"question": "\\ud800"}', "holds half a surrogate pair"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_is_no_text_is_named(tmp_path, line, message):
    path = tmp_path / "BixBench.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + line.replace(b"\n", b"") + b"\n")
    with pytest.raises(TaskFormatError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:2: {message}" if "nested" not in message else f"{path}:2: not JSON")
    assert message in str(caught.value)


def test_every_problem_of_a_file_is_found_and_sound_rows_are_kept(tmp_path):
    bad = changed(question_id="nb-1-q2", question="", eval_mode="exact", distractors="x", data_folder="../u.zip")
    rows, problems = examine_rows(
        write(tmp_path, GOOD, bad, "{", changed(question_id="NB-1-Q1"), changed(question_id="z"))
    )
    assert [row.question_id for row in rows] == ["nb-1-q1", "z"]
    assert [(p.line, p.what.split(";")[0]) for p in problems[:4]] == [
        (2, "field 'question' is empty"),
        (2, "field 'eval_mode' is 'exact'"),
        (2, "data_folder '../u.zip' must be a file name"),
        (2, "field 'distractors' must be a list of texts"),
    ]
    assert [p.line for p in problems[4:]] == [3, 4]
    with pytest.raises(TaskFormatError, match=r":2: field 'question' is empty \(and 5 more; `nbagent bixbench check`"):
        read_rows(tmp_path / "BixBench.jsonl")


def test_texts_may_hold_line_separators_a_mark_in_front_and_carriage_returns(tmp_path):
    path = tmp_path / "BixBench.jsonl"
    line = json.dumps(changed(question="a\u2028b\x85c"), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert read_rows(path)[0].question == "a\u2028b\x85c"


def test_published_keys_stay_as_written(tmp_path):
    (row,) = read_rows(write(tmp_path, changed(ideal="0.32 ", question_id="Bix-33-q6")))
    assert (row.ideal, row.question_id) == ("0.32 ", "Bix-33-q6")


OLDER = {
    "uuid": "u-1", "short_id": "bix-7", "data_folder": "CapsuleFolder-u-1.zip", "hypothesis": "h", "answer": False,
    "categories": "RNA-seq, Genomics", "paper": "p",
    "questions": json.dumps([
        {"id": "q1", "question": "How many?", "ideal_answer": "3", "distractor_1": "1", "distractor_2": "2",
         "distractor_3": "4"},
        {"id": "bix-7-q2", "question": "Which?", "ideal_answer": "MYC", "distractor_1": "TP53"},
    ]),
}  # fmt: skip


def test_the_older_schema_gives_a_row_per_question(tmp_path):
    first, second = read_rows(write(tmp_path, OLDER))
    assert (first.question_id, first.ideal, first.distractors) == ("bix-7-q1", "3", ("1", "2", "4"))
    assert (first.eval_mode, first.capsule_uuid, first.answer) == ("llm_verifier", "u-1", False)
    assert (second.question_id, second.data_folder) == ("bix-7-q2", "CapsuleFolder-u-1.zip")
    assert first.line == second.line == 1


def test_problems_of_the_older_schema_name_the_question(tmp_path):
    broken = json.dumps([{"id": "q1", "question": "", "ideal_answer": 3}, {"id": "q2"}])
    rows, problems = examine_rows(write(tmp_path, OLDER, {**OLDER, "short_id": "b", "questions": broken}))
    assert len(rows) == 2
    assert {p.line for p in problems} == {2}
    assert "question 'q1': field 'ideal' must be text, it is int" in [p.what for p in problems]
    for questions, message in [("[1]", "must be a list of objects"), ("{", "is not JSON"), ("", "is missing")]:
        _, (problem, *_) = examine_rows(write(tmp_path, {**OLDER, "questions": questions}))
        assert problem.what.startswith("field 'questions' ")
        assert message in problem.what
    _, problems = examine_rows(write(tmp_path, OLDER, OLDER))
    assert [p.what for p in problems] == [f"question_id 'bix-7-{q}' is taken by line 1" for q in ("q1", "q2")]


HYPOTHESIS = {
    "id": "h-1", "hypothesis": "Old mice weigh more.", "answer": False, "input_data_path": "capsules/h-1",
    "nb_primary_language": "R", "protocol": "1. Load. 2. Test.", "rubric": "2 points: loads it", "max_points": 9,
}  # fmt: skip


def test_a_hypothesis_with_protocol_and_rubric_is_a_row(tmp_path):
    (row,) = read_rows(write(tmp_path, HYPOTHESIS))
    assert (row.question_id, row.question, row.hypothesis, row.answer) == ("h-1", "", "Old mice weigh more.", False)
    assert (row.ideal, row.language, row.protocol, row.max_points) == ("False", "r", "1. Load. 2. Test.", 9)
    assert (row.capsule_uuid, row.data_folder) == ("h-1", "capsules/h-1")
    assert row.rubric in row.secrets


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"answer": None}, "field 'answer' is missing"),
        ({"answer": "yes"}, "field 'answer' must be true or false"),
        ({"input_data_path": "../x"}, "input_data_path '../x' must lie below"),
        ({"nb_primary_language": "julia"}, "field 'nb_primary_language' is 'julia'; one of python, r"),
        ({"hypothesis": ""}, "field 'hypothesis' is missing"),
    ],
)
def test_a_hypothesis_that_cannot_be_used_says_why(tmp_path, fields, message):
    with pytest.raises(TaskFormatError, match=message):
        read_rows(write(tmp_path, {**HYPOTHESIS, **fields}))


def test_a_parquet_file_holds_rows_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([HYPOTHESIS, {**HYPOTHESIS, "id": "h-2"}]), path)
    assert [row.question_id for row in read_rows(path)] == ["h-1", "h-2"]
    path.write_bytes(b"text")
    with pytest.raises(TaskFormatError, match="cannot be read"):
        read_rows(path)


def test_an_id_that_is_taken_up_to_case_names_both_lines(tmp_path):
    path = write(tmp_path, GOOD, changed(question_id="NB-1-Q1"))
    with pytest.raises(TaskFormatError, match=r"BixBench\.jsonl:2: question_id 'NB-1-Q1' is taken by line 1"):
        read_rows(path)


def test_an_empty_or_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(TaskFormatError, match="holds no questions"):
        read_rows(write(tmp_path, ""))
    with pytest.raises(TaskFormatError, match="cannot be read"):
        read_rows(tmp_path)
