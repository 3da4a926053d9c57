import json
import zipfile

import pytest

from nbagent.errors import TaskFormatError
from nbagent.tasks import Outcome, TaskSource
from nbagent_bixbench.source import find_reference, open_source

ROW = {
    "question_id": "bix-90-q1", "question": "How many genes?", "ideal": "(2,1)", "distractors": ["7", "8", "9"],
    "eval_mode": "range_verifier", "capsule_uuid": "u", "data_folder": "CapsuleFolder-u.zip",
    "categories": "['Genomics', 'RNA']", "hypothesis": "SECRET", "result": "SECRET",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "set"
    home.mkdir()
    rows = [ROW, {**ROW, "question_id": "Bix-90-q2", "ideal": "MYC", "eval_mode": "str_verifier"}]
    (home / "BixBench.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with zipfile.ZipFile(home / "CapsuleFolder-u.zip", "w") as archive:
        archive.writestr("CapsuleData-u/counts.csv", "gene,a\nMYC,1\n")
        archive.writestr("CapsuleData-u/solution.ipynb", '{"SECRET": 1}')
        archive.writestr("CapsuleNotebook-u/CapsuleNotebook-bix-90_executed.ipynb", '{"SECRET": 1}')
    return home


def test_tasks_share_their_capsule_and_show_nothing_of_the_answer(folder, tmp_path):
    source = open_source(str(folder), tmp_path / "cache")
    assert isinstance(source, TaskSource)
    first, second = source.tasks()
    assert first.task_id == "bix-90-q1"
    assert first.family == "Genomics"
    assert first.capsule == second.capsule
    assert [path.name for path in first.capsule.rglob("*")] == ["counts.csv"]
    assert "SECRET" not in first.question + (first.capsule / "counts.csv").read_text()
    assert first.verifier.verify("1.5").outcome is Outcome.CORRECT
    assert second.verifier.verify("myc").outcome is Outcome.CORRECT
    assert first.seed != second.seed


def test_it_is_found_by_folder_by_file_and_by_the_verified_name(folder, tmp_path):
    assert open_source(str(folder / "BixBench.jsonl")).name == "set"
    (folder / "BixBench.jsonl").rename(folder / "BixBench-Verified-50.jsonl")
    source = open_source(str(folder), tmp_path / "cache")
    assert len(source.tasks()) == 2
    assert source.name == "set"
    (folder / "BixBench-other.jsonl").write_text("")
    with pytest.raises(TaskFormatError, match=r"holds BixBench-Verified-50.*name one of them"):
        open_source(str(folder))


def test_other_locations_are_left_to_other_sources(tmp_path):
    assert open_source(str(tmp_path)) is None
    assert open_source(str(tmp_path / "none")) is None
    (tmp_path / "questions.csv").write_text("question")
    assert open_source(str(tmp_path / "questions.csv")) is None


def test_without_a_cache_the_capsules_go_with_the_source(folder):
    source = open_source(str(folder))
    place = source.tasks()[0].capsule
    assert place.is_dir()
    del source
    assert not place.exists()


def test_the_fingerprint_changes_with_the_questions(folder):
    before = open_source(str(folder)).fingerprint()
    assert before["kind"] == "bixbench"
    assert before["number"] == 2
    (folder / "BixBench.jsonl").write_text(json.dumps({**ROW, "question": "How few genes?"}))
    assert open_source(str(folder)).fingerprint()["sha256"] != before["sha256"]


def test_a_broken_capsule_names_its_zip_and_the_row(folder, tmp_path):
    (folder / "CapsuleFolder-u.zip").write_bytes(b"text")
    with pytest.raises(TaskFormatError, match=r"CapsuleFolder-u.zip: broken zip: .*asked for by BixBench.jsonl:1"):
        open_source(str(folder), tmp_path / "cache").tasks()


@pytest.mark.parametrize("place", ["../CapsuleFolder-u.zip", "/tmp/CapsuleFolder-u.zip", "sub/x.zip"])
def test_a_data_folder_elsewhere_is_refused(folder, tmp_path, place):
    (folder / "BixBench.jsonl").write_text(json.dumps({**ROW, "data_folder": place}))
    with pytest.raises(TaskFormatError, match="must be a file name"):
        open_source(str(folder), tmp_path / "cache").tasks()


def test_a_reference_is_the_notebook_named_after_the_question_or_the_only_one(tmp_path):
    for name in ("nb-1-q10_executed.ipynb", "nb-1-q1_executed.ipynb", "nb-11-q1_executed.ipynb"):
        (tmp_path / name).write_text("{}")
    assert find_reference(tmp_path, "nb-1-q1").name == "nb-1-q1_executed.ipynb"
    assert find_reference(tmp_path, "NB-1-q10").name == "nb-1-q10_executed.ipynb"
    assert find_reference(tmp_path, "nb-2-q1") is None
    only = tmp_path / "only"
    only.mkdir()
    (only / "CapsuleNotebook_executed.ipynb").write_text("{}")
    assert find_reference(only, "nb-2-q1").name == "CapsuleNotebook_executed.ipynb"
