"""Whole runs by the command, as short as can be, with real kernels: a filter with a curriculum, and a teacher."""

import json

import pytest
import torch
from typer.testing import CliRunner

from nbagent.cli import app
from nbagent.reward_profile import question_digest
from nbagent.task_filter import Profiled, TaskFilter
from nbagent.tasks import open_tasks
from nbagent_training.scratch import Size, make_model

pytestmark = pytest.mark.slow
RECIPE = """
threads = 1
bf16 = false
score_greedy = false
[model]
folder = "model"
[agent]
action_format = "fenced"
backend = "fork"
max_steps = 2
warn_steps = 0
max_new_tokens = 8
"""


@pytest.fixture
def home(tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x\n1\n")
    rows = "".join(f"What is {i}?,{i},data,family{i % 2},t{i}\n" for i in range(6))
    (tmp_path / "q.csv").write_text("question,answer,data_folder,family,id\n" + rows)
    return tmp_path


def trained(home, more):
    (home / "r.toml").write_text(RECIPE + more)
    made = CliRunner().invoke(app, ["train", "r.toml", "--out", "out"])
    assert made.exit_code == 0, made.output + made.stderr
    lines = [json.loads(line) for line in (home / "out" / "metrics.jsonl").read_text().splitlines()]
    return made.output, [line for line in lines if line["phase"] == "grpo"]


def test_only_tasks_that_the_filter_keeps_are_practised_by_their_chance_of_a_mixed_group(home):
    profiled = {
        task.task_id: Profiled(question_digest(task.question), right, 4)
        for task, right in zip(open_tasks(str(home / "q.csv")).tasks(), (2.0, 0.0, 2.0, 4.0, 2.0, 0.0), strict=True)
    }
    kept = {name: it for name, it in profiled.items() if it.right == 2}
    left_out = {name: it for name, it in profiled.items() if it.right != 2}
    TaskFilter("mixed >= 0.5", 2, "model", kept, left_out).write(home / "filter.json")
    said, lines = trained(
        home,
        '[tasks]\ntrain = "q.csv"\nfilter = "filter.json"\nn_heldout = 0\n'
        '[grpo]\nupdates = 2\ntasks_per_update = 2\ngroup_size = 2\ncurriculum = "mixed"\n',
    )
    assert "3 of 6 training tasks kept (mixed >= 0.5)" in said
    assert [line["attempts"] for line in lines] == [4, 4]
    practised = {path.name.split("-")[3] for path in (home / "out" / "rollouts").glob("train-*.jsonl")}
    assert practised <= set(kept)
    brought = json.loads((home / "out" / "practice.json").read_text())
    assert [version for version, _ in brought] == [0, 1]
    assert (home / "out" / "filter.json").is_file()


def test_a_student_learns_from_a_teachers_folder_whatever_its_reward(home, tokenizer):
    teacher = make_model(tokenizer, Size(vocabulary=320, hidden=32, layers=2, heads=4, intermediate=64), 11)
    with torch.no_grad():
        for p in teacher.parameters():
            p.mul_(2.0)
    teacher.save_pretrained(home / "teacher")
    tokenizer.save_pretrained(home / "teacher")
    _, lines = trained(
        home,
        '[tasks]\ntrain = "q.csv"\nn_heldout = 0\n[distill]\nteacher = "teacher"\n'
        "[grpo]\nupdates = 2\ntasks_per_update = 1\ngroup_size = 2\nlr = 1e-3\n",
    )
    assert len(lines) == 2
    assert all(line["teacher_kl"] > 0 and line["grad_norm"] > 0 for line in lines)
    assert all(line["reward"] == 0 for line in lines)
