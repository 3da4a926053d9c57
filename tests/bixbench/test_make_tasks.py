import hashlib
import json
import zipfile

import nbformat
import pytest

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.families import FAMILIES
from nbagent_bixbench.make import make_tasks
from nbagent_bixbench.source import open_source

FIELDS = {
    "id", "question_id", "short_id", "question", "ideal", "distractors", "eval_mode", "capsule_uuid", "data_folder",
    "categories", "hypothesis", "result", "answer", "paper", "version", "canary",
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("made") / "set", len(FAMILIES), seed=4, split="heldout")


def rows(folder):
    return [json.loads(line) for line in (folder / "BixBench.jsonl").read_text().splitlines()]


def content(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_rows_have_the_published_fields(made):
    for row in rows(made):
        assert set(row) == FIELDS
        assert row["question_id"].startswith(row["short_id"] + "-q")
        assert len(row["distractors"]) == 3
        assert row["categories"] in FAMILIES
        assert row["data_folder"] == f"CapsuleFolder-{row['capsule_uuid']}.zip"
    ids = [row["question_id"] for row in rows(made)]
    assert len(set(ids)) == len(ids) == len(FAMILIES)
    assert len({row["id"] for row in rows(made)}) == len(ids)


def test_each_zip_holds_data_and_a_valid_executed_notebook_per_question(made):
    for row in rows(made):
        with zipfile.ZipFile(made / row["data_folder"]) as archive:
            names = archive.namelist()
            notebook = f"CapsuleNotebook-{row['capsule_uuid']}/{row['question_id']}_executed.ipynb"
            assert notebook in names
            assert any(name.startswith(f"CapsuleData-{row['capsule_uuid']}/") for name in names)
            parsed = nbformat.reads(archive.read(notebook).decode(), as_version=4)
        nbformat.validate(parsed)
        code = [cell for cell in parsed.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == [1, 2]
        assert code[-1].outputs[0].text.strip() in row["result"]


def test_every_loaded_task_is_correct_with_its_reference_and_incorrect_with_each_distractor(made, tmp_path):
    source = open_source(str(made), tmp_path)
    assert [task.family for task in source.tasks()] == list(FAMILIES)
    for task, row in zip(source.tasks(), rows(made), strict=True):
        parsed = nbformat.read(task.reference, as_version=4)
        assert task.verifier.verify(parsed.cells[-1].outputs[0].text).outcome is Outcome.CORRECT
        for wrong in row["distractors"]:
            assert task.verifier.verify(wrong).outcome is Outcome.INCORRECT
        files = [path for path in task.capsule.rglob("*") if path.is_file()]
        assert files
        assert all(path.suffix in (".csv", ".h5ad") for path in files)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path):
    chosen = ["fold_change", "cluster_mean", "iris_count"]
    one, other = (make_tasks(tmp_path / name, 6, 9, chosen) for name in "ab")
    assert content(one) == content(other)
    assert content(one) != content(make_tasks(tmp_path / "c", 6, 10, chosen))


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already and not an empty folder"):
        make_tasks(tmp_path / "set", 2, 0, ["ti_tv"])
    assert (tmp_path / "set" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled_and_nothing_half_made_stays(tmp_path):
    (tmp_path / "set").mkdir()
    make_tasks(tmp_path / "set", 2, 0, ["ti_tv"])
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_no_tasks_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="number of tasks 0 is not positive"):
        make_tasks(tmp_path / "set", 0, 0)
    assert not list(tmp_path.iterdir())
