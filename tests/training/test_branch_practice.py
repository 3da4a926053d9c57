"""Branched practice in real kernels with a scripted model: groups, rows, and what a killed run takes up again."""

import json
import random
from dataclasses import dataclass, replace

import pytest
import torch

from nbagent.env import EnvLimits
from nbagent.models.base import SamplingParams
from nbagent.models.hf import HFModel
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts, RolloutSource
from nbagent.runfolder import RunFolder
from nbagent.samples import samples
from nbagent.tasks import Outcome, Task, Verdict
from nbagent.trajectory import Trajectory
from nbagent_training.branch_practice import BranchPractice
from nbagent_training.branch_settings import Branch
from nbagent_training.curriculum import Curriculum
from nbagent_training.groups import batch_of
from nbagent_training.recipe import Grpo

SETTINGS = RolloutSettings(
    sampling=SamplingParams(max_new_tokens=200), policy="full", action_format="fenced", limits=EnvLimits(max_steps=3)
)


@dataclass(frozen=True)
class Equals:
    key: str

    def verify(self, answer):
        return Verdict(Outcome.CORRECT if answer == self.key else Outcome.INCORRECT, "")


class Guess(ScriptedModel):
    """Runs a cell, then guesses 0 or 1 by the noise that the call has."""

    def __init__(self):
        super().__init__(lambda text: "", ByteTokenizer())

    async def sample(self, prompt, params):
        rng = random.Random(params.seed)
        asked = "".join(part["text"] for m in prompt.messages for part in m["content"])
        self._script = lambda text: (
            f"<answer>{rng.randint(0, 1)}</answer>" if "made = " in asked else f"```python\nmade = {rng.random()}\n```"
        )
        return await super().sample(prompt, params)


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts() as rollouts:
        yield rollouts


def practice(rollouts, run, tmp_path, **branch):
    capsule = tmp_path / "capsule"
    capsule.mkdir(exist_ok=True)
    tasks = [Task(f"t{i}", "0 or 1?", capsule, Equals("1"), family="f") for i in range(3)]
    curriculum = Curriculum(run.path / "practice.json", tasks, seed=0, group_size=8)
    return BranchPractice(curriculum, rollouts, Guess(), SETTINGS, run, Branch(**branch))


def calls_in(run):
    """Model calls as the logs hold them: none of them twice."""
    lines = [json.loads(line) for path in run.rollouts.glob("*.jsonl") for line in path.read_text().splitlines()]
    return sum(line["kind"] == "call" for line in lines)


def test_groups_hold_roots_and_branches_and_each_call_is_a_row_once(rollouts, tmp_path):
    run = RunFolder.create(tmp_path / "run", "")
    source = practice(rollouts, run, tmp_path, probability=0.9)
    assert isinstance(source, RolloutSource)
    groups = source.next_groups(3, 0)
    assert [len(group.trajectories) for group in groups] == [8, 8, 8]
    for group in groups:
        roots = [t for t in group.trajectories if t.start["parent"] is None]
        assert len(roots) == 2
    batch = batch_of(groups, Grpo(grouping="branch"))
    assert batch.stats["branchings"] >= 3
    assert batch.stats["model_calls"] == calls_in(run) == len(source.model.calls)
    live = batch_of(groups, Grpo(grouping="branch", loss={"kl_coef": 0.1}))
    dead = batch.stats["groups"] - batch.stats["groups_live"]
    assert len(live.rows) == calls_in(run) or dead
    assert sum(row.weight * len(row.completion_ids) for row in live.rows) == pytest.approx(1)


def test_a_killed_run_reads_whole_trees_back_and_makes_torn_ones_anew(rollouts, tmp_path):
    run = RunFolder.create(tmp_path / "run", "")
    first = practice(rollouts, run, tmp_path, where="every")
    groups = first.next_groups(3, 0)
    rewards = [[t.reward for t in group.trajectories] for group in groups]
    logs = {path.name: path.read_bytes() for path in run.rollouts.glob("*.jsonl")}
    torn = next(name for name in sorted(logs) if "+0." in name)
    path = run.rollouts / torn
    path.write_bytes(b"".join(logs[torn].splitlines(True)[:2]))
    again = practice(rollouts, run, tmp_path, where="every")
    made = again.next_groups(3, 0)
    assert [[t.reward for t in group.trajectories] for group in made] == rewards
    root = torn.partition("+")[0]
    for name, data in logs.items():
        assert ((run.rollouts / name).read_bytes() == data) == (not name.startswith(root))
    # Only that tree's: a root with three branches.
    assert len(again.model.calls) == 4 * 2


@pytest.mark.parametrize("torn", ["", "+0.1"], ids=["root", "branch"])
def test_what_had_ended_of_a_torn_tree_is_set_aside_and_counted(rollouts, tmp_path, torn):
    run = RunFolder.create(tmp_path / "run", "")
    practice(rollouts, run, tmp_path, where="every").next_groups(1, 0)
    root = next(run.rollouts.glob("train-00000-0-*-0.jsonl")).stem
    path = run.rollout_path(root + torn)
    path.write_bytes(b"".join(path.read_bytes().splitlines(True)[:2]))
    logs = {path.name: path.read_bytes() for path in run.rollouts.glob(f"{root}*")}
    again = practice(rollouts, run, tmp_path, where="every")
    (group,) = again.next_groups(1, 0)
    assert len(group.trajectories) == 8
    stale = run.path / "stale" / "torn-0"
    assert {path.name: path.read_bytes() for path in stale.iterdir()} == logs
    kept = Trajectory.load(stale / f"{root}+0.0.jsonl", run.blobs)
    assert kept.end is not None
    assert [again.lineage.made(0, []), again.lineage.made(1, [])] == [4, 0]


def test_by_entropy_the_first_step_is_branched_with_the_calls_that_are_the_default(rollouts, tmp_path):
    run = RunFolder.create(tmp_path / "run", "")
    (group,) = practice(rollouts, run, tmp_path, where="entropy", probability=1.0).next_groups(1, 0)
    assert sorted(t.start["parent"]["step"] for t in group.trajectories if t.start["parent"]) == [0] * 6
    assert group.counts["looks"] == 2


def test_a_root_has_its_own_share_of_calls_and_attempts(rollouts, tmp_path):
    run = RunFolder.create(tmp_path / "run", "")
    source = practice(rollouts, run, tmp_path, where="every", alternatives=2, roots=2, per_lineage=2, calls=20)
    (group,) = source.next_groups(1, 0)
    assert (source.rules.attempts, source.rules.calls) == (4, 10)
    assert group.counts["model_calls"] <= 20
    assert len(group.trajectories) <= 8


def test_a_model_in_lockstep_waits_for_branches_too_and_runs_repeat(tiny, tokenizer, rollouts, tmp_path):
    """With one thread all numbers are the same in every run; a branch that the model did not know of would hang it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        made = []
        for name in ("one", "two"):
            run = RunFolder.create(tmp_path / name, "")
            source = practice(rollouts, run, tmp_path, where="entropy", probability=0.6)
            source.settings = replace(SETTINGS, sampling=SamplingParams(max_new_tokens=6))
            source.model = HFModel(tiny, tokenizer, "tiny", lockstep=True)
            groups = source.next_groups(2, 0)
            rollouts.call(source.model.close())
            made.append([samples(t) for group in groups for t in group.trajectories])
            assert sum(group.counts["branchings"] for group in groups) >= 1
            assert source.model.live == 0
        assert made[0] == made[1]
    finally:
        torch.set_num_threads(threads)
