"""Rollouts in real kernels, with a script in the model's place."""

import asyncio
import json
import os
import signal
import threading
import time
from dataclasses import dataclass

import pytest

from nbagent.attempt import noise_seed
from nbagent.env import EnvLimits
from nbagent.errors import InfrastructureError, ModelError, StorageError, UsageError
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.samples import samples
from nbagent.tasks import Outcome, Task, Verdict


@dataclass(frozen=True)
class Equals:
    key: str

    def verify(self, answer):
        if answer is None:
            return Verdict(Outcome.NO_ANSWER, "no answer")
        return Verdict(Outcome.CORRECT if answer == self.key else Outcome.INCORRECT, f"the key is {self.key}")


@pytest.fixture(scope="module")
def rollouts():
    """One loop for all tests here, since every loop has a fork server of its own."""
    with Rollouts() as rollouts:
        yield rollouts


@pytest.fixture
def task(tmp_path):
    capsule = tmp_path / "capsule"
    capsule.mkdir()
    (capsule / "counts.csv").write_text("gene,n\na,1\nb,41\n")
    return Task("t-1", "What is the sum of n?", capsule, Equals("42"), family="sums", seed=3)


def act(name, **args):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': args})}\n</tool_call>"


def run_cell(code):
    return act("run_cell", code=code)


def submit(answer):
    return act("submit_answer", answer=answer)


SUM = run_cell("import csv\nprint(sum(int(row['n']) for row in csv.DictReader(open('counts.csv'))))")
SETTINGS = RolloutSettings(sampling=SamplingParams(max_new_tokens=400), policy="full")


def test_a_rollout_is_recorded_from_start_to_end(rollouts, task, tmp_path):
    run = RunFolder.create(tmp_path / "run", "seed = 0\n")
    model = ScriptedModel([SUM, "no call at all", submit("42")], ByteTokenizer())
    made = rollouts.call(roll(task, "r-0", model, SETTINGS, run, version=7))
    assert (made.outcome, made.reward, made.answer, made.truncated) == (Outcome.CORRECT, 1.0, "42", False)
    kinds = [event["kind"] for event in made.events]
    assert kinds[:2] == ["start", "call"]
    assert kinds[-1] == "end"
    assert kinds.count("call") == kinds.count("observation") == made.n_steps == 3
    execution = next(event for event in made.events if event["kind"] == "execution")
    assert made.outputs(execution) == [{"output_type": "stream", "name": "stdout", "text": "42\n"}]
    assert [event["error"] != "" for event in made.events if event["kind"] == "observation"] == [False, True, False]
    loaded = run.load("r-0")
    assert loaded.events == json.loads(json.dumps(made.events))
    assert samples(loaded) == samples(made)
    assert run.done_ids() == {"r-0"}


def test_samples_hold_exactly_what_the_model_was_given_and_wrote(rollouts, task):
    model = ScriptedModel([SUM, submit("41")], ByteTokenizer())
    made = rollouts.call(roll(task, "r", model, SETTINGS, version=2))
    rows = samples(made)
    assert [row.prompt_ids for row in rows] == [tuple(prompt.ids) for prompt, _ in model.calls]
    assert bytes(rows[0].completion_ids[:-1]).decode() == SUM
    assert {len(row.logprobs) - len(row.completion_ids) for row in rows} == {0}
    assert [(row.step, row.n_steps, row.reward, row.version) for row in rows] == [(0, 2, 0.0, 2), (1, 2, 0.0, 2)]
    assert rows[0].state_key != rows[1].state_key
    # Under `full` prompts are prefixes of each other, so the log holds the first prompt once.
    first, second = (call.event["prompt"] for call in made.calls())
    assert second["shared"] == len(first["suffix"])


def test_noise_differs_by_step_rollout_and_run_and_never_between_runs(rollouts, task):
    model = ScriptedModel([SUM, submit("42")])
    rollouts.call(roll(task, "r", model, SETTINGS))
    seeds = [params.seed for _, params in model.calls]
    assert seeds == [noise_seed(0, "t-1", "r", step) for step in (0, 1)]
    others = {noise_seed(1, "t-1", "r", 0), noise_seed(0, "t-1", "r2", 0), noise_seed(0, "t-2", "r", 0), *seeds}
    assert len(others) == 5


def test_the_same_state_has_the_same_key_whatever_came_before(rollouts, task):
    start = ScriptedModel([run_cell("x = object(); x"), submit("1")])
    first = rollouts.call(roll(task, "a", start, SETTINGS))
    second = rollouts.call(roll(task, "b", ScriptedModel(["??", run_cell("x = object(); x"), submit("1")]), SETTINGS))
    keys = [[call.event["state_key"] for call in made.calls()] for made in (first, second)]
    assert keys[0] == [keys[1][0], keys[1][2]]
    assert keys[1][0] == keys[1][1]


def test_states_whose_kernels_differ_have_different_keys_though_their_notebooks_are_the_same(rollouts, task):
    die = "import os\nos._exit(1)"

    def key(*actions):
        """What the call after these actions saw."""
        made = rollouts.call(roll(task, "r", ScriptedModel([*actions, submit("1")]), SETTINGS))
        assert made.n_steps == len(actions) + 1
        return [call.event["state_key"] for call in made.calls()][-1]

    live = key(run_cell("x = 1"), act("insert_cell", source=die))
    gone = key(run_cell("x = 1"), act("insert_cell", source=die), act("restart_kernel"))
    assert live != gone
    lost = key(run_cell("x = 1"), run_cell(die))
    assert lost == gone, "lost variables are as gone as those of a kernel that was restarted"
    anew = act("restart_kernel"), act("run_cell", code="x = 1", cell="c1")
    again = key(run_cell("x = 1"), act("insert_cell", source=die), *anew)
    assert again == live, "what ran before the restart is gone"


def test_running_out_of_steps_is_the_agents_and_ungraded_is_nobodys(rollouts, task):
    settings = RolloutSettings(policy="full", limits=EnvLimits(max_steps=2))
    made = rollouts.call(roll(task, "r", ScriptedModel(lambda prompt: "hm"), settings))
    assert (made.outcome, made.reward, made.truncated, made.error) == (Outcome.NO_ANSWER, 0.0, True, "")


def test_a_prompt_that_cannot_fit_ends_the_attempt(rollouts, task):
    model = ScriptedModel(lambda prompt: SUM, ByteTokenizer(), context_length=450)
    made = rollouts.call(roll(task, "r", model, SETTINGS))
    assert (made.outcome, made.truncated, made.n_steps) == (Outcome.NO_ANSWER, True, 0)
    assert "raise the context length" in made.reason


class Unlucky(ScriptedModel):
    """Fails so many times before it follows its script."""

    def __init__(self, failures, script):
        super().__init__(script)
        self.failures = failures

    async def sample(self, prompt, params):
        if self.failures:
            self.failures.pop()
            raise ModelError("the server hung up")
        return await super().sample(prompt, params)


def test_a_host_side_failure_is_tried_again_in_a_fresh_environment(rollouts, task, tmp_path, monkeypatch):
    monkeypatch.setattr("nbagent.rollout.RETRY_S", 0.01)
    run = RunFolder.create(tmp_path / "run", "")
    made = rollouts.call(roll(task, "r", Unlucky([1, 1], [SUM, submit("42")]), SETTINGS, run))
    assert (made.outcome, made.start["attempt"]) == (Outcome.CORRECT, 2)
    lines = run.rollout_path("r").read_text().splitlines()
    ends = [json.loads(line) for line in lines if json.loads(line)["kind"] == "end"]
    assert [(end["outcome"], end["reward"]) for end in ends] == [("infrastructure", None)] * 2 + [("correct", 1.0)]
    assert ends[0]["error"] == "ModelError: the server hung up"
    assert run.load("r").events[0]["attempt"] == 2


def test_a_host_side_failure_past_the_bound_is_the_outcome_and_has_no_reward(rollouts, task, tmp_path, monkeypatch):
    monkeypatch.setattr("nbagent.rollout.RETRY_S", 0.01)
    run = RunFolder.create(tmp_path / "run", "")
    made = rollouts.call(roll(task, "r", Unlucky([1] * 9, [SUM]), SETTINGS, run))
    assert (made.outcome, made.reward, samples(made)) == (Outcome.INFRASTRUCTURE, None, [])
    assert run.done_ids() == set()


@dataclass(frozen=True)
class Broken:
    def verify(self, answer):
        raise ZeroDivisionError("a bug in the verifier")


def test_a_bug_is_recorded_with_its_class_logged_and_not_hidden(rollouts, task, caplog):
    broken = Task("t-2", task.question, task.capsule, Broken())
    made = rollouts.call(roll(broken, "r", ScriptedModel([submit("42")]), SETTINGS))
    assert made.outcome is Outcome.INFRASTRUCTURE
    assert made.error == "ZeroDivisionError: a bug in the verifier"
    assert "Traceback" in caplog.text


def test_bad_settings_stop_the_run(rollouts, task):
    with pytest.raises(UsageError, match="unknown context policy 'all'"):
        rollouts.call(roll(task, "r", ScriptedModel([]), RolloutSettings(policy="all")))
    with pytest.raises(UsageError, match="unknown action format 'xml'"):
        rollouts.call(roll(task, "r", ScriptedModel([]), RolloutSettings(action_format="xml")))


def test_samples_of_a_remote_model_are_refused(rollouts, task):
    made = rollouts.call(roll(task, "r", ScriptedModel([submit("42")]), SETTINGS))
    with pytest.raises(UsageError, match="no token ids"):
        samples(made)
    assert next(iter(made.calls())).messages[0]["role"] in ("system", "user")


def script(prompt):
    """Runs the sum until the notebook shows it."""
    return submit("42") if "\n42" in prompt else SUM


def test_many_rollouts_at_once_come_back_in_order(rollouts, task):
    jobs = [(task, f"r-{i}") for i in range(12)]
    ended = []
    made = rollouts.run(jobs, ScriptedModel(script, ByteTokenizer()), SETTINGS, progress=lambda: ended.append(1))
    assert [trajectory.rollout_id for trajectory in made] == [rollout for _, rollout in jobs]
    assert {trajectory.outcome for trajectory in made} == {Outcome.CORRECT}
    assert len(ended) == 12


def test_rollouts_take_their_kernels_from_a_pool(task, caplog, monkeypatch):
    monkeypatch.setattr("nbagent_kernels.pool.FLOOR_BYTES", 1 << 60)
    monkeypatch.setattr("nbagent_kernels.pool.total_bytes", lambda: 1 << 60)
    with Rollouts() as own:  # a pool that is kept has its floor already
        made = own.run([(task, f"r-{i}") for i in range(3)], ScriptedModel(script, ByteTokenizer()), SETTINGS)
    assert {trajectory.outcome for trajectory in made} == {Outcome.CORRECT}
    assert "waiting for memory: sessions open or coming up: 1" in caplog.text


class Counting(ScriptedModel):
    """Waits for every rollout that lives before it answers."""

    def __init__(self, script):
        super().__init__(script)
        self.live, self.most, self.waiting, self.rounds = 0, 0, [], []

    def enter(self):
        self.live += 1
        self.most = max(self.most, self.live)

    def leave(self):
        self.live -= 1
        asyncio.get_running_loop().call_soon(self.answer)

    def answer(self):
        if self.waiting and len(self.waiting) == self.live:
            self.rounds.append(len(self.waiting))
            for future in self.waiting:
                future.set_result(None)
            self.waiting = []

    async def sample(self, prompt, params):
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(future)
        asyncio.get_running_loop().call_soon(self.answer)
        await future
        return await super().sample(prompt, params)


def test_a_model_that_counts_rollouts_never_sees_a_round_cut_short(rollouts, task, monkeypatch):
    model = Counting(script)
    monkeypatch.setattr(rollouts, "concurrency", 4)
    rollouts.run([(task, f"r-{i}") for i in range(8)], model, SETTINGS)
    assert model.rounds == [4, 4, 4, 4]
    assert model.live == 0


def test_ctrl_c_cancels_all_rollouts_and_comes_up(rollouts, task, tmp_path):
    run = RunFolder.create(tmp_path / "run", "")
    jobs = [(task, f"r-{i}") for i in range(4)]
    started = threading.Event()

    def slow(prompt):
        started.set()
        return run_cell("import time; time.sleep(60)")

    def interrupt():
        started.wait(30)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        rollouts.run(jobs, ScriptedModel(slow), SETTINGS, run)
    assert time.monotonic() - began < 30
    assert run.done_ids() == set()
    assert [run.load(rollout).end for rollout in run.rollout_ids()] == [None] * 4


def test_a_full_disk_stops_the_run_and_names_the_path(rollouts, task, tmp_path):
    run = RunFolder.create(tmp_path / "run", "")
    (run.path / "blobs").rmdir()
    (run.path / "blobs").symlink_to("/dev/full")
    with pytest.raises(StorageError, match="blobs"):
        rollouts.run([(task, "r")], ScriptedModel(script), SETTINGS, run)
    assert issubclass(StorageError, InfrastructureError)
