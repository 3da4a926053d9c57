import json
import zipfile

import pytest
from typer.testing import CliRunner

from nbagent.cli import app

RUN = CliRunner()
ROW = {
    "question_id": "bix-90-q1", "question": "How many genes rise?", "ideal": "17", "distractors": ["16", "18", "71"],
    "eval_mode": "str_verifier", "capsule_uuid": "u", "data_folder": "CapsuleFolder-u.zip",
    "categories": "Genomics", "hypothesis": "Heat raises the number of genes.", "answer": True,
}  # fmt: skip


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setenv("NBAGENT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()

    def run(rows, capsules, *more):
        (folder / "BixBench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for name, entries in capsules.items():
            with zipfile.ZipFile(folder / name, "w") as archive:
                for entry in entries:
                    archive.writestr(*(entry if isinstance(entry, tuple) else (entry, "a,b\n1,2\n")))
        return RUN.invoke(app, ["bixbench", "check", str(folder), *more])

    run.folder = folder
    return run


def test_a_sound_set_has_no_problems(check):
    result = check([ROW, {**ROW, "question_id": "bix-90-q2"}], {"CapsuleFolder-u.zip": ["CapsuleData-u/a.csv"]})
    assert result.exit_code == 0
    assert result.stdout == "rows: 2 (2 str_verifier), capsules: 1, no problems\n"


def test_every_problem_is_a_line_with_file_and_line_number(check):
    rows = [
        {**ROW, "question_id": "a", "eval_mode": "guess", "ideal": ""},
        {**ROW, "question_id": "b", "data_folder": "none.zip"},
        {**ROW, "question_id": "c", "data_folder": "evil.zip"},
        {**ROW, "question_id": "d", "data_folder": "empty.zip"},
        {**ROW, "question_id": "e", "data_folder": "none.zip"},
        {**ROW, "question_id": "E"},
        {**ROW, "question_id": "f", "ideal": "about 3"},
    ]
    capsules = {
        "CapsuleFolder-u.zip": ["CapsuleData-u/a.csv"],
        "evil.zip": ["CapsuleData-u/../../a.csv"],
        "empty.zip": ["CapsuleData-u/a.ipynb"],
    }
    result = check(rows, capsules)
    assert result.exit_code == 1
    file = check.folder / "BixBench.jsonl"
    *problems, summary = result.stdout.splitlines()
    assert summary == "rows: 5 (5 str_verifier), capsules: 2, 6 problems"
    expected = [
        f"{file}:1: field 'ideal' is empty",
        f"{file}:1: field 'eval_mode' is 'guess'; one of str_verifier, range_verifier, llm_verifier",
        f"{file}:2: {check.folder}/none.zip: capsule not found; it belongs beside the file of questions "
        "(asked for by BixBench.jsonl:2)",
        f"{file}:3: {check.folder}/evil.zip: entry 'CapsuleData-u/../../a.csv' leads out of the capsule "
        "(asked for by BixBench.jsonl:3)",
        f"{file}:4: empty.zip: has no data files",
        f"{file}:6: question_id 'E' is taken by line 5",
    ]
    assert problems == expected


def test_what_published_sets_have_is_a_note(check):
    rows = [
        {**ROW, "question_id": "Bix-1-q1", "ideal": "17 "},
        {
            **ROW,
            "question_id": "bix-1-q2",
            "eval_mode": "range_verifier",
            "ideal": "(3,1)",
            "distractors": "['4', '5']",
        },
        {**ROW, "question_id": "bix-1-q3", "distractors": ["17", "18", "71"], "categories": "['A', 'B']"},
        {**ROW, "question_id": "bix-1-q4", "distractors": []},
    ]
    capsule = ["CapsuleData-u/a.csv", ("CapsuleData-u/notes.txt", "Heat raises the number of genes.")]
    result = check(rows, {"CapsuleFolder-u.zip": capsule}, "--notes")
    assert result.exit_code == 0
    *notes, summary = result.stdout.splitlines()
    assert summary == "rows: 4 (1 range_verifier, 3 str_verifier), capsules: 1, no problems, 6 notes"
    said = [note.partition("BixBench.jsonl:")[2] for note in notes]
    assert said == [
        "1: Bix-1-q1: its id has capitals; ids are compared without case",
        "1: Bix-1-q1: its key '17 ' has blanks around it",
        "1: CapsuleFolder-u.zip: notes.txt is kept out: holds the text 'Heat raises the number of genes.'",
        "2: bix-1-q2: its range (3,1) is reversed; it is read either way",
        "3: bix-1-q3: a wrong option repeats another option; it is asked without it",
        "4: bix-1-q4: it has no wrong options; it cannot be asked as multiple choice",
    ]
    assert check(rows, {}).stdout.splitlines() == [f"{summary} (--notes)"]


def test_capsules_can_be_left_alone(check):
    result = check([ROW], {}, "--no-capsules")
    assert (result.exit_code, result.stdout) == (0, "rows: 1 (1 str_verifier), capsules: 0, no problems\n")


def test_other_sets_are_sent_on(tmp_path):
    result = RUN.invoke(app, ["bixbench", "check", str(tmp_path)])
    assert result.exit_code == 2
    assert "`nbagent tasks check` looks at questions of one's own" in result.stderr


def test_the_bundled_set_is_sound(tmp_path, monkeypatch):
    monkeypatch.setenv("NBAGENT_CACHE", str(tmp_path / "cache"))
    assert RUN.invoke(app, ["tasks", "make", str(tmp_path / "made"), "--n", "30"]).exit_code == 0
    result = RUN.invoke(app, ["bixbench", "check", str(tmp_path / "made"), "--notes"])
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines()[-1].endswith("no problems")
