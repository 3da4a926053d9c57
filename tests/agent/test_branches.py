"""Branched rollouts in real kernels, with a script in the model's place."""

import json
from dataclasses import dataclass, replace

import pytest

from nbagent.attempt import LOOK_TOKENS, Attempt
from nbagent.branches import Branches, BranchRules
from nbagent.env import EnvLimits
from nbagent.errors import InfrastructureError, TrajectoryError
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.prompts import PromptBuilder
from nbagent.rebuild import windows_again
from nbagent.replay import notebook_at, rerun
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.samples import samples
from nbagent.tasks import Outcome, Task, Verdict
from nbagent.trajectory import Trajectory
from nbagent.validation import problems
from nbagent_kernels import CannotBranch
from nbagent_kernels.live import LiveSession


@dataclass(frozen=True)
class Equals:
    key: str

    def verify(self, answer):
        return Verdict(Outcome.CORRECT if answer == self.key else Outcome.INCORRECT, f"the key is {self.key}")


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


LOAD = call("run_cell", code="x = [1]\nopen('mine.txt', 'w').write('a')")
SETTINGS = RolloutSettings(sampling=SamplingParams(max_new_tokens=400), policy="full", limits=EnvLimits(max_steps=6))
RANDOM = BranchRules("random", alternatives=3, attempts=3, calls=100)
EVERY = BranchRules("every", alternatives=3, attempts=3, calls=100)


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts() as rollouts:
        yield rollouts


@pytest.fixture
def task(tmp_path):
    capsule = tmp_path / "capsule"
    capsule.mkdir()
    (capsule / "counts.csv").write_text("gene,n\na,1\nb,41\n")
    return Task("t-1", "What?", capsule, Equals("[1, 2]"), family="sums", seed=3)


class Alternatives:
    """Loads, then at the second step appends another number in each attempt, shows it and submits it."""

    def __init__(self, numbers=(2, 3, 4)):
        self.numbers = iter(numbers)
        self.prompts = []

    def __call__(self, text):
        self.prompts.append(text)
        said = text.count("</tool_call>")
        if "x = [1]" not in text:
            return LOAD
        if "x.append" not in text:
            more = f"x.append({next(self.numbers)})\nprint(x)\nopen('mine.txt', 'a').write(str(x))"
            return call("run_cell", code=more)
        if "mine.txt').read" not in text:
            return call("run_cell", code="print(open('mine.txt').read())")
        return call("submit_answer", answer=text.rsplit("x.append(", 1)[1][0].join(["[1, ", "]"]) if said else "?")


def branched(rollouts, task, run, script, rules, monkeypatch=None, at=1, settings=SETTINGS, model=None):
    """The root and its branches; with dice that fall so that step `at` is the first to be branched."""
    branches = Branches(rules)
    if monkeypatch is not None:
        monkeypatch.setattr(Attempt, "chance", lambda self, what: 0.0 if self.step == at else 0.99)
    model = model or ScriptedModel(script, ByteTokenizer())
    root = rollouts.call(roll(task, "r", model, settings, run, version=5, branches=branches))
    return [root, *branches.trajectories], branches, model


def test_alternatives_go_on_from_one_live_state(rollouts, task, tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    made, branches, model = branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    assert [t.rollout_id for t in made] == ["r", "r+1.0", "r+1.1"]
    # Each appended to its own list and wrote to its own file, and all saw the list that was made before.
    assert sorted(t.answer for t in made) == ["[1, 2]", "[1, 3]", "[1, 4]"]
    assert sorted(t.reward for t in made) == [0.0, 0.0, 1.0]
    for t in made:
        number = t.answer[4]
        shown = [o for e in t.events if e["kind"] == "execution" for o in t.outputs(e)]
        assert [o["text"] for o in shown if o["output_type"] == "stream"] == [
            f"[1, {number}]\n",
            f"a[1, {number}]\n",
        ]
    assert (branches.counts["branchings"], branches.counts["branches_refused"]) == (1, 0)
    assert branches.counts["model_calls"] == len(model.calls) == 1 + 3 * 3


def test_siblings_share_their_prompt_and_what_came_before_id_for_id(rollouts, task, tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    made, _, model = branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    rows = [samples(t) for t in made]
    assert len({own[0] for own in ([replace(r, rollout_id="", reward=0) for r in o] for o in rows)}) == 1
    assert len({own[1].prompt_ids for own in rows}) == 1
    assert len({own[1].completion_ids for own in rows}) == 3
    assert [[row.origin for row in own] for own in rows] == [
        ["r"] * 4,
        ["r", *["r+1.0"] * 3],
        ["r", *["r+1.1"] * 3],
    ]
    assert {(row.step, row.n_steps, row.version) for own in rows for row in own} == {(t, 4, 5) for t in range(4)}
    # Each has noise of its own.
    seeds = [params.seed for prompt, params in model.calls]
    assert len(set(seeds)) == len(seeds)


def test_the_log_stores_the_prefix_once_and_reads_back_whole(rollouts, task, tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    made, _, _ = branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    for t in made:
        loaded = run.load(t.rollout_id)
        assert loaded.events == json.loads(json.dumps(t.events))
        assert samples(loaded) == samples(t)
        assert problems(run.rollout_path(t.rollout_id)) == []
        assert loaded.n_steps == 4
    lines = [json.loads(line) for line in run.rollout_path("r+1.0").read_text().splitlines()]
    assert lines[0]["parent"] == {"rollout": "r", "step": 1}
    assert min(line["step"] for line in lines if "step" in line) == 1
    times = [line["t"] for line in lines]
    assert times == sorted(times)
    assert run.done_ids() == {"r", "r+1.0", "r+1.1"}


def test_a_branch_replays_folds_and_its_prompts_can_be_made_again(rollouts, task, tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    _, _, model = branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    branch = run.load("r+1.1")
    notebook = notebook_at(branch, kind="final", framed=False)
    assert [cell["id"] for cell in notebook["cells"]] == ["c1", "c2", "c3"]
    monkeypatch.setattr(run, "open_task", lambda *more: task)
    report = rollouts.call(rerun(run, "r+1.1"))
    assert report.differences == ()
    count = PromptBuilder(model.tokenizer, model.context_length, 400).count
    builder = PromptBuilder(model.tokenizer, model.context_length, 400)
    again = [tuple(builder.build(window, ()).ids) for _, window in windows_again(branch, count)]
    assert again == [call.prompt_ids for call in branch.calls()]


def test_one_branching_a_lineage_unless_more_are_allowed(rollouts, task):
    numbers = list(range(2, 10))
    made, branches, _ = branched(rollouts, task, None, Alternatives(numbers), EVERY)
    assert branches.counts["branchings"] == 1
    assert len(made) == 3
    rules = replace(EVERY, alternatives=2, attempts=8, per_lineage=2)
    made, branches, _ = branched(rollouts, task, None, Alternatives(numbers), rules)
    # Before the first step, and in both lineages before the second.
    assert branches.counts["branchings"] == 3
    assert sorted(t.rollout_id for t in made) == ["r", "r+0.0", "r+0.0+1.0", "r+1.0"]


@pytest.mark.parametrize(("calls", "attempts"), [(11, 1), (18, 3), (100, 3)])
def test_nothing_is_branched_where_it_could_become_more_calls_than_allowed(rollouts, task, calls, attempts):
    made, branches, model = branched(rollouts, task, None, Alternatives(), replace(EVERY, calls=calls))
    assert len(made) == attempts
    assert len(model.calls) == branches.counts["model_calls"] <= calls


def test_entropy_raises_the_chance_and_looks_are_thrown_away(rollouts, task, monkeypatch):
    looks = iter([1.0, 1.5, 3.0])

    async def entropy(self):
        return next(looks)

    monkeypatch.setattr(Attempt, "chance", lambda self, what: 0.6)
    rules = BranchRules("entropy", alternatives=2, attempts=2, calls=100, probability=0.1, entropy_weight=0.3)
    with monkeypatch.context() as patched:
        patched.setattr(Attempt, "entropy", entropy)
        made, branches, model = branched(rollouts, task, None, Alternatives(), rules)
    # .1, .1 + .3 · .5, .1 + .3 · 2: the third is the first above the dice.
    assert [t.rollout_id for t in made] == ["r", "r+2.0"]
    assert branches.counts["looks"] == 3
    # With the model's own: the script's log-probs are −1/2, −1/3, …, −1/8, −1/2.
    made, branches, model = branched(rollouts, task, None, Alternatives(), replace(rules, calls=100))
    assert len(made) == 1
    looked = [params for _, params in model.calls if params.max_new_tokens == LOOK_TOKENS]
    assert len(looked) == branches.counts["looks"] == 4
    assert branches.counts["model_calls"] == 8
    assert len(samples(made[0])) == 4


def restless(text):
    """Uses up all its steps."""
    return LOAD


@pytest.mark.parametrize(("calls", "branched_before", "looks"), [(36, 0, 1), (24, 1, 2), (11, 5, 2)])
def test_looks_begin_at_the_first_step_with_few_calls_too(rollouts, task, calls, branched_before, looks):
    """11 are the least that a recipe may give (Branch.check_calls): 5 before the last step, 4 there, and 2 looks."""
    looked = []

    class Looked(ScriptedModel):
        async def sample(self, prompt, params):
            if params.max_new_tokens == LOOK_TOKENS:
                looked.append(len(self.calls) - len(looked))
            return await super().sample(prompt, params)

    rules = BranchRules("entropy", 4, attempts=4, calls=calls, probability=1.0)
    made, branches, model = branched(rollouts, task, None, None, rules, model=Looked(restless, ByteTokenizer()))
    assert [t.rollout_id for t in made] == ["r", *(f"r+{branched_before}.{number}" for number in range(3))]
    assert (looked[0], branches.counts["looks"]) == (0, looks)
    assert len(model.calls) == branches.counts["model_calls"] <= calls


@pytest.mark.parametrize(("alternatives", "attempts", "calls"), [(3, 8, 48), (4, 8, 48), (4, 16, 60), (2, 5, 30)])
@pytest.mark.parametrize("where", ["every", "entropy"])
def test_siblings_that_branch_at_once_share_what_is_left(rollouts, task, where, alternatives, attempts, calls):
    rules = BranchRules(where, alternatives, attempts, calls, probability=1.0, per_lineage=2)
    made, branches, model = branched(rollouts, task, None, restless, rules)
    assert alternatives < len(made) <= attempts
    assert len(model.calls) == branches.counts["model_calls"] <= calls


def test_what_a_refused_branching_would_have_taken_is_free_again(rollouts, task, monkeypatch):
    branch, asked = LiveSession.branch, []

    async def once_refused(self, *more, **how):
        asked.append(self)
        if len(asked) <= 2:
            raise CannotBranch("no")
        return await branch(self, *more, **how)

    monkeypatch.setattr(LiveSession, "branch", once_refused)
    made, branches, _ = branched(rollouts, task, None, restless, replace(EVERY, calls=18))
    assert [t.rollout_id for t in made] == ["r", "r+1.0", "r+1.1"]
    assert branches.counts["branches_refused"] == 1


def test_a_kernel_that_cannot_be_forked_is_made_again_by_its_cells(rollouts, task, monkeypatch):
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    thread = call("run_cell", code=code + "x = [1]\nopen('mine.txt', 'w').write('a')")
    script = Alternatives()

    def threaded(text):
        return thread if "x = [1]" not in text else script(text)

    made, branches, _ = branched(rollouts, task, None, threaded, RANDOM, monkeypatch)
    assert sorted(t.answer for t in made) == ["[1, 2]", "[1, 3]", "[1, 4]"]
    assert branches.counts["branches_replayed"] == 2


def test_a_state_that_cannot_be_branched_at_all_goes_on_alone(rollouts, task, tmp_path, monkeypatch):
    async def refuse(self, method="fork"):
        raise CannotBranch("no")

    monkeypatch.setattr(LiveSession, "branch", refuse)
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    made, branches, _ = branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    assert [t.reward for t in made] == [1.0]
    assert branches.counts["branches_refused"] == 1
    assert run.rollout_ids() == ["r"]


def test_a_branch_that_fails_on_the_hosts_side_takes_nobody_along(rollouts, task, tmp_path, monkeypatch):
    class Broken(ScriptedModel):
        async def sample(self, prompt, params):
            if len(self.calls) == 3:
                self.calls.append((prompt, params))
                raise InfrastructureError("gone")
            return await super().sample(prompt, params)

    model = Broken(Alternatives(), ByteTokenizer())
    made, _, _ = branched(rollouts, task, None, None, RANDOM, monkeypatch, model=model)
    assert sorted(t.outcome for t in made if t.reward is None) == [Outcome.INFRASTRUCTURE]
    assert len([t for t in made if t.reward is not None]) == 2


def test_a_branch_without_its_parents_log_says_so(rollouts, task, tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    run.rollout_path("r").unlink()
    with pytest.raises(TrajectoryError, match="comes from cannot be read"):
        Trajectory.load(run.rollout_path("r+1.0"))
    assert "comes from cannot be read" in str(problems(run.rollout_path("r+1.0"))[0])


def test_a_root_that_begins_again_sets_its_old_branches_aside(rollouts, task, tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch)
    logs = {path.name: path.read_bytes() for path in run.rollouts.iterdir()}
    branched(rollouts, task, run, Alternatives(), RANDOM, monkeypatch, at=2)
    assert run.rollout_ids() == ["r", "r+2.0", "r+2.1"]
    assert {path.name: path.read_bytes() for path in (run.path / "stale" / "torn-0").iterdir()} == logs
