import json

import pytest

from nbagent.errors import TaskFormatError
from nbagent_bixbench.rows import REQUIRED, read_rows

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


def test_an_id_that_is_taken_up_to_case_names_both_lines(tmp_path):
    path = write(tmp_path, GOOD, changed(question_id="NB-1-Q1"))
    with pytest.raises(TaskFormatError, match=r"BixBench\.jsonl:2: question_id 'NB-1-Q1' is taken by line 1"):
        read_rows(path)


def test_an_empty_or_unreadable_file_is_an_error(tmp_path):
    with pytest.raises(TaskFormatError, match="holds no questions"):
        read_rows(write(tmp_path, ""))
    (tmp_path / "BixBench.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TaskFormatError, match="cannot be read"):
        read_rows(tmp_path / "BixBench.jsonl")
