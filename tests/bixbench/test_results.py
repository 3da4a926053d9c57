"""Result rows: written, read back, and checked; the schema says the same as the reader."""

import json
import os
import re
from importlib.resources import files
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from nbagent.errors import StorageError, UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench import results as results_module
from nbagent_bixbench.results import (
    Result,
    parse_result,
    read_results,
    result_line,
    result_schema,
    write_result,
    write_results,
)
from nbagent_bixbench.results_check import check_results
from nbagent_bixbench.results_commands import app
from nbagent_bixbench.types import Judgement, Option

OPTIONS = (Option("A", "7", "distractor"), Option("B", "42", "ideal"), Option("C", "Insufficient", "refusal"))
FULL = Result(
    "Bix-901-q1",
    3,
    "mcq_refusal",
    "str_verifier",
    "42",
    "B",
    Outcome.CORRECT,
    options=OPTIONS,
    choice="42",
    categories=("counts", "bulk"),
    judge=Judgement("correct", ("correct", "refused"), 0.5, "1", "judge"),
    cost=0.25,
    seconds=1.5,
    extra={"mine": [1, None]},
)
BARE = {
    "format": "nbagent-bixbench-result",
    "version": 1,
    "question_id": "bix-901-q2",
    "replica": 0,
    "mode": "open",
    "eval_mode": "range_verifier",
    "ideal": "(1,2)",
    "answer": None,
    "outcome": "ungraded",
}


def written(tmp_path, *rows):
    path = tmp_path / "results.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_a_result_is_read_back_equal_from_its_file_and_its_run_folder(tmp_path):
    odd = Result("q", 0, "open", "str_verifier", "k", "a\u2028b\n\ud800\x1b", Outcome.UNGRADED)
    write_result(tmp_path / "results.jsonl", FULL)
    write_result(tmp_path / "results.jsonl", odd)
    first, second = read_results(tmp_path)
    assert first == FULL
    assert second.answer == "a\u2028b\n\\ud800\x1b"
    write_results(tmp_path / "results.jsonl", [second])
    assert read_results(tmp_path / "results.jsonl") == [second]


def test_the_required_fields_are_a_whole_row():
    result = parse_result(json.dumps(BARE))
    assert (result.answer, result.options, result.setting) == (None, (), "agentic")
    for name in BARE:
        with pytest.raises(ValueError, match=f"field '{name}' is missing"):
            parse_result(json.dumps({key: value for key, value in BARE.items() if key != name}))


def test_the_rows_that_the_documents_show_are_rows():
    readme = Path(__file__).resolve().parents[2] / "benchmarks/bixbench/README.md"
    for text in (readme.read_text(), results_module.__doc__):
        shown = re.search(r'\{"format".*?\}', text, re.DOTALL).group()
        assert parse_result(" ".join(shown.split())).answer == "42"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replica": "0"}, "'replica': .*valid integer"),
        ({"replica": True}, "'replica': .*valid integer"),
        ({"replica": -1}, "'replica': .*greater than or equal to 0"),
        ({"mode": "exam"}, "'mode': .*'hypothesis', not 'exam'"),
        ({"outcome": "right"}, "'outcome'"),
        ({"answer": 3}, "'answer': .*valid string, not 3"),
        ({"question_id": ""}, "'question_id'"),
        ({"version": 2}, "'version'"),
        ({"format": "other"}, "'format'"),
        ({"capsule_uid": "x"}, "'capsule_uid' is unknown; did you mean 'capsule_uuid'"),
        ({"colour": 1}, "'colour' is unknown; what is your own goes into `extra`"),
        ({"judge": {"verdict": "yes"}}, "'judge.verdict'"),
        ({"options": [{"letter": "A"}]}, r"'options.0.text'"),
        ({"seconds": float("nan")}, "NaN is not JSON"),
        ({"cost": float("inf")}, "Infinity is not JSON"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_and_the_schema_agrees(change, message):
    row = {**BARE, **change}
    with pytest.raises(ValueError, match=message):
        parse_result(json.dumps(row))
    if "is not JSON" not in message:
        assert list(Draft202012Validator(result_schema()).iter_errors(row))


def test_the_schema_takes_what_the_reader_takes():
    validator = Draft202012Validator(result_schema())
    for row in (BARE, json.loads(result_line(FULL))):
        validator.validate(row)
        parse_result(json.dumps(row))


def test_the_schema_file_is_the_readers():
    file = Path(str(files("nbagent_bixbench"))) / "result_schema.json"
    if os.environ.get("NBAGENT_GOLDEN") == "write":
        file.write_text(json.dumps(result_schema(), indent=1) + "\n", encoding="utf-8")
    assert json.loads(file.read_text()) == result_schema(), "meant so? `make golden` writes it"
    described = [name for name, field in result_schema()["properties"].items() if "description" in field]
    assert set(result_schema()["properties"]) - set(described) == {"format", "version"}


def test_every_problem_of_a_file_is_named_with_its_line(tmp_path):
    mcq = json.loads(result_line(FULL))
    path = written(
        tmp_path,
        BARE,
        "{",
        "",
        {**BARE, "question_id": "BIX-901-Q2"},
        {**BARE, "replica": 1, "ideal": "(1,x)"},
        {**BARE, "question_id": "h", "mode": "hypothesis", "ideal": "maybe"},
        {**mcq, "options": mcq["options"][:2]},
        {**mcq, "replica": 4, "choice": "43", "options": [*mcq["options"], mcq["options"][1]]},
        {**BARE, "question_id": "o", "ideal": "(1,2)", "options": mcq["options"]},
    )
    results, problems = check_results(path)
    assert len(results) == 7
    assert [str(problem).removeprefix(f"{path}:") for problem in problems] == [
        "2: not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        "4: replica 0 of 'BIX-901-Q2' (open) is on line 1 already",
        "5: field 'ideal': range key '(1,x)' is not a pair of numbers such as '(1.2,1.4)'",
        "5: 'bix-901-q2' has another key or eval mode on line 1",
        "6: field 'ideal': the key of a hypothesis is true or false, not 'maybe'",
        "7: field 'options': mode 'mcq_refusal' has 0 options of kind 'refusal'",
        "8: field 'options': one option must be of kind 'ideal', there are 2",
        "8: field 'options': two options have the same letter",
        "8: field 'options': two options have the same text",
        "8: field 'choice': '43' is no option's text",
        "9: field 'options': mode 'open' has none",
    ]
    with pytest.raises(UsageError, match=r"results.jsonl:2: not JSON.*10 more problems; `nbagent bixbench validate`"):
        read_results(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "holds no results"), (b"\xff\xfe", "is not UTF-8 \\(byte 0\\)")],
)
def test_what_is_no_file_of_results_is_one_line(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_results(tmp_path)


def test_a_full_disk_is_a_storage_error(tmp_path):
    (tmp_path / "results.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left"):
        write_result(tmp_path / "results.jsonl", FULL)


def test_the_command_prints_problems_and_counts(tmp_path):
    path = written(tmp_path, BARE, "[]\x1b")
    shown = CliRunner().invoke(app, ["validate", str(path)])
    assert shown.exit_code == 1
    assert shown.output.splitlines()[-1] == "1 results, 1 problem"
    assert "\x1b" not in shown.output
    good = CliRunner().invoke(app, ["validate", str(written(tmp_path, BARE))])
    assert (good.exit_code, good.output) == (0, "1 results, no problems\n")
    assert json.loads(CliRunner().invoke(app, ["validate", "--schema"]).output) == result_schema()
