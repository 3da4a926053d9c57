"""Notebooks of mixed quality: plausible wrong analyses, marked as such, under right keys."""

import json

import pytest

from nbagent.errors import UsageError
from nbagent.tasks import Outcome, open_tasks
from nbagent_bixbench.make import make_tasks
from nbagent_bixbench.source import BixBenchSource

FAMILIES = ["library_size", "variant_count", "arm_events", "pearson"]


def load(folder, cache):
    return list(BixBenchSource(folder / "BixBench.jsonl", str(folder), cache).tasks())


def last_output(task):
    notebook = json.loads(task.reference.read_text())
    text = notebook["cells"][-1]["outputs"][0]["text"]
    return text.strip(), notebook["metadata"].get("nbagent", {}).get("flawed", False)


def test_flawed_notebooks_are_wrong_and_marked_and_the_keys_are_right(tmp_path):
    right = load(make_tasks(tmp_path / "a", 8, 3, FAMILIES), tmp_path / "ca")
    wrong = load(make_tasks(tmp_path / "b", 8, 3, FAMILIES, flawed=1.0), tmp_path / "cb")
    assert [(t.question, t.key) for t in right] == [(t.question, t.key) for t in wrong]
    for task in right:
        answer, flawed = last_output(task)
        assert not flawed
        assert task.verifier.verify(answer).outcome is Outcome.CORRECT
    for task in wrong:
        answer, flawed = last_output(task)
        assert flawed
        assert task.verifier.verify(answer).outcome is not Outcome.CORRECT


def test_the_share_is_kept_and_checked(tmp_path):
    tasks = load(make_tasks(tmp_path / "a", 40, 1, FAMILIES, flawed=0.5), tmp_path / "c")
    assert 10 <= sum(last_output(task)[1] for task in tasks) <= 30
    with pytest.raises(UsageError, match=r"flawed 1\.5"):
        make_tasks(tmp_path / "b", 4, 1, FAMILIES, flawed=1.5)


def test_bundled_locations_take_the_share(tmp_path):
    source = open_tasks("bundled:train?n=4&seed=3&families=library_size&flawed=1", tmp_path / "cache")
    assert all(last_output(task)[1] for task in source.tasks())
    with pytest.raises(UsageError, match="flawed is a number"):
        open_tasks("bundled:train?n=4&flawed=much", tmp_path / "cache")
    with pytest.raises(UsageError, match="unknown option 'flaw'"):
        open_tasks("bundled:train?n=4&flaw=1", tmp_path / "cache")
