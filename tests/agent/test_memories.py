"""Memories in rollouts: a policy asks, the model writes, the policy goes on with what it wrote. Real kernels."""

import json
from dataclasses import dataclass, replace

import pytest

from nbagent import rollout
from nbagent.attempt import Attempt, noise_seed
from nbagent.branches import Branches, BranchRules
from nbagent.env import EnvLimits
from nbagent.errors import UsageError
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.samples import samples
from nbagent.tasks import Outcome
from nbagent.validation import problems
from nbagent_context import Memory, SummaryRequest, Window, exchanges_of, message

SETTINGS = RolloutSettings(sampling=SamplingParams(max_new_tokens=200), limits=EnvLimits(max_steps=6, warn_steps=0))


@dataclass(frozen=True)
class Forgetful:
    """Asks for a memory whenever two exchanges are not covered by one."""

    longest: int = 20
    endless: bool = False

    def window(self, brief, notebook, history, notice, budget, count):
        memories = [entry for entry in history if isinstance(entry, Memory)]
        covered = memories[-1].covers if memories else 0
        fresh = exchanges_of(history)[covered:]
        if len(fresh) >= 2 or (self.endless and fresh):
            covers = covered if self.endless else covered + len(fresh)
            return SummaryRequest((message("user", ["Sum up."]),), count("Sum up."), covers, self.longest)
        said = [f"memory: {memories[-1].text}\n"] if memories else []
        parts = [brief.task, *said, *(exchange.observation for exchange in fresh)]
        return Window((message("user", parts),), sum(map(count, parts)))


def call(tool, **args):
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': args})}\n</tool_call>"


PRINT, SUBMIT = call("run_cell", code="print(4)"), call("submit_answer", answer="4")


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts() as rollouts:
        yield rollouts


@pytest.fixture
def forgetful(monkeypatch):
    def use(**options):
        monkeypatch.setattr(rollout, "_policy", lambda name, settings: Forgetful(**options))

    return use


def test_a_memory_replaces_what_it_covers_and_is_a_row_of_its_own(rollouts, task, tmp_path, forgetful):
    forgetful()
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    model = ScriptedModel([PRINT, PRINT, " four was printed \n", PRINT, SUBMIT], ByteTokenizer())
    made = rollouts.call(roll(task, "r", model, SETTINGS, run))
    assert made.outcome is Outcome.CORRECT
    calls = [event for event in made.events if event["kind"] == "call"]
    assert [(c["call_kind"], c["step"]) for c in calls] == [
        ("action", 0),
        ("action", 1),
        ("summary", 2),
        ("action", 2),
        ("action", 3),
    ]
    assert made.n_steps == 4
    shown = ["".join(part["text"] for part in prompt.messages[-1]["content"]) for prompt, _ in model.calls]
    assert "memory: four was printed\n" in shown[3]
    assert "4\n" not in shown[3].split("memory:")[1].removeprefix(" four was printed\n")
    rows = samples(made)
    assert [row.kind for row in rows] == ["action", "action", "summary", "action", "action"]
    assert [row.step for row in rows] == [0, 1, 2, 3, 4]
    assert {row.n_steps for row in rows} == {5}
    assert rows[2].prompt_ids == tuple(model.calls[2][0].ids)
    assert problems(run.rollout_path("r")) == []


def test_a_memory_has_its_own_noise_and_length(rollouts, task, forgetful):
    forgetful(longest=20)
    model = ScriptedModel([PRINT, PRINT, "x" * 50, SUBMIT], ByteTokenizer())
    made = rollouts.call(roll(task, "r", model, SETTINGS))
    params = [params for _, params in model.calls]
    assert [p.max_new_tokens for p in params] == [200, 200, 20, 200]
    assert params[2].seed == noise_seed(0, "t1", "r", 2, "summary") != params[3].seed == noise_seed(0, "t1", "r", 2)
    written = next(e for e in made.events if e["kind"] == "call" and e["call_kind"] == "summary")
    assert (written["finish"], len(written["completion_ids"]), written["text"]) == ("length", 20, "x" * 20)


def test_an_empty_memory_drops_what_it_covers(rollouts, task, forgetful):
    forgetful()
    model = ScriptedModel([PRINT, PRINT, "  \n", SUBMIT], ByteTokenizer())
    made = rollouts.call(roll(task, "r", model, SETTINGS))
    assert made.outcome is Outcome.CORRECT
    assert model.calls[3][0].messages[-1]["content"][-1]["text"] == "memory: \n"


def test_a_policy_that_never_stops_asking_ends_the_run_with_its_name(rollouts, task, forgetful):
    forgetful(endless=True)
    model = ScriptedModel(lambda prompt: "again" if prompt == "Sum up." else PRINT, ByteTokenizer())
    with pytest.raises(UsageError, match="policy Forgetful asks for a second summary before step 1"):
        rollouts.call(roll(task, "r", model, SETTINGS))
    assert len(model.calls) == 2


def test_model_calls_are_bounded_by_two_a_step(rollouts, task, forgetful):
    forgetful()
    model = ScriptedModel(lambda prompt: "so far" if prompt == "Sum up." else PRINT, ByteTokenizer())
    settings = replace(SETTINGS, limits=EnvLimits(max_steps=5, warn_steps=0))
    made = rollouts.call(roll(task, "r", model, settings))
    assert made.truncated
    assert len(model.calls) == 5 + 2


def test_a_branch_begins_after_the_memory_for_its_step(rollouts, task, tmp_path, forgetful, monkeypatch):
    forgetful()
    monkeypatch.setattr(Attempt, "chance", lambda self, what: 0.0 if self.step == 2 else 0.99)
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    model = ScriptedModel([PRINT, PRINT, "four", SUBMIT, SUBMIT], ByteTokenizer())
    branches = Branches(BranchRules("random", alternatives=2, attempts=2, calls=100))
    made = rollouts.call(roll(task, "r", model, SETTINGS, run, branches=branches))
    (other,) = branches.trajectories
    assert other.rollout_id == "r+2.0"
    rows = samples(made), samples(run.load("r+2.0"))
    assert [[row.kind for row in own] for own in rows] == [["action", "action", "summary", "action"]] * 2
    assert [row.origin for row in rows[1]] == ["r", "r", "r", "r+2.0"]
    assert rows[0][3].prompt_ids == rows[1][3].prompt_ids
    assert problems(run.rollout_path("r+2.0")) == []
