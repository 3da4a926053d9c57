import json

import pytest

from nbagent.errors import TaskFormatError
from nbagent.tasks import Outcome, TaskSource
from nbagent_bixbench.own import open_source


@pytest.fixture
def home(tmp_path):
    (tmp_path / "mice").mkdir()
    (tmp_path / "mice" / "weights.csv").write_text("mouse,g\na,21\n")
    return tmp_path


def write(home, text, name="questions.csv"):
    (home / name).write_text(text)
    return str(home / name)


def test_a_csv_beside_its_data_is_a_set(home):
    location = write(
        home,
        "question,answer,data_folder,family,language,id\n"
        '"How heavy is a, in g?",21,mice,weights,,heavy\n'
        '"Mean weight?","(20,22)",mice,,R,\n',
    )
    source = open_source(location)
    assert isinstance(source, TaskSource)
    heavy, mean = source.tasks()
    assert (heavy.task_id, heavy.family, heavy.language) == ("heavy", "weights", "python")
    assert (mean.task_id, mean.language) == ("questions-2", "r")
    assert heavy.capsule == home / "mice"
    assert heavy.verifier.verify("21.0").outcome is Outcome.CORRECT
    assert mean.verifier.verify("20.5").outcome is Outcome.CORRECT
    assert open_source(str(home)).fingerprint() | {"location": ""} == source.fingerprint() | {"location": ""}


def test_a_jsonl_takes_numbers_and_free_text_keys(home):
    rows = [
        {"question": "How heavy?", "answer": 21, "data_folder": "mice"},
        {"question": "Why?", "answer": "it ate", "data_folder": "mice", "eval_mode": "llm_verifier", "family": None},
    ]
    source = open_source(write(home, "\n".join(map(json.dumps, rows)), "own.jsonl"))
    assert source.name == "own"
    first, second = source.tasks()
    assert first.verifier.verify("21").outcome is Outcome.CORRECT
    assert second.verifier.verify("it ate").outcome is Outcome.UNGRADED


def test_the_fingerprint_changes_with_the_data(home):
    location = write(home, "question,answer,data_folder\nq,1,mice\n")
    before = open_source(location).fingerprint()
    (home / "mice" / "more.csv").write_text("x")
    assert open_source(location).fingerprint()["sha256"] != before["sha256"]


HEADER = "question,answer,data_folder\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("question,answer\nq,1\n", ":1: column 'data_folder' is missing"),
        ("question,answer,data_folder,familly\nq,1,mice,x\n", ":2: unknown column 'familly'; did you mean 'family'?"),
        ("question,answer,data_folder,zzz\nq,1,mice,x\n", ":2: unknown column 'zzz'; there are: question"),
        (HEADER + ",1,mice\n", ":2: column 'question' is missing or empty"),
        (HEADER + "q,,mice\n", ":2: column 'answer' is missing or empty"),
        (HEADER + "q,1\n", ":2: column 'data_folder' is missing or empty"),
        (HEADER + "q,1,2,mice\n", ":2: more cells than columns"),
        (HEADER + "q,1,rats\n", ":2: data_folder 'rats' is not a folder beside questions.csv"),
        (HEADER + "q,1,.\n", ":2: data_folder '.' holds the questions with their answers"),
        (HEADER + "q,1,empty\n", ":2: data_folder 'empty' holds no files"),
        (HEADER + "q,1,leaky\n", ":2: data_folder 'leaky' holds answer.ipynb, which may hold the answer"),
        ("question,answer,data_folder,eval_mode\nq,1,mice,exact\n", ":2: eval_mode 'exact' is unknown"),
        ("question,answer,data_folder,eval_mode\nq,1,mice,range_verifier\n", ":2: answer '1' is not a range"),
        ("question,answer,data_folder,language\nq,1,mice,perl\n", ":2: language 'perl' is unknown; one of python, r"),
        ("question,answer,data_folder,id\nq,1,mice,a\nq,1,mice,A\n", ":3: id 'A' is taken by line 2"),
        (HEADER, "holds no questions"),
        (HEADER + 'q,"1,mice\n', "cannot be read"),
    ],
)
def test_bad_questions_name_file_and_line(home, text, message):
    (home / "empty").mkdir()
    (home / "leaky").mkdir()
    (home / "leaky" / "answer.ipynb").write_text("{}")
    with pytest.raises(TaskFormatError) as caught:
        open_source(write(home, text))
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(home))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ":1: not JSON"),
        ("[1]", ":1: a row must be a JSON object"),
        ('\n{"question": ["q"]}', ":2: field 'question' must be text or a number"),
    ],
)
def test_bad_json_lines_name_file_and_line(home, text, message):
    with pytest.raises(TaskFormatError, match=message):
        open_source(write(home, text, "own.jsonl"))


def test_other_locations_are_left_alone(home):
    assert open_source(str(home)) is None
    assert open_source(str(home / "none.csv")) is None
    assert open_source(write(home, "x", "notes.txt")) is None


def test_two_files_of_questions_in_a_folder_are_an_error(home):
    write(home, HEADER)
    write(home, "", "questions.jsonl")
    with pytest.raises(TaskFormatError, match="name one of them"):
        open_source(str(home))
