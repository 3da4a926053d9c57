"""Replay: notebooks folded from logs, and run again in fresh kernels."""

import json

import nbformat
import pytest

from nbagent.env import EnvLimits
from nbagent.errors import RunFolderError, UsageError
from nbagent.models.scripted import ScriptedModel
from nbagent.replay import notebook_at, replay, rerun
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import open_tasks
from nbagent.validation import problems

SETTINGS = RolloutSettings(policy="full", limits=EnvLimits(cell_timeout_s=20.0))


def call(tool, **args):
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': args})}\n</tool_call>"


SCRIPT = [
    call("add_markdown", text="# The plan"),
    call("run_cell", code="import pandas as pd\ndata = pd.read_csv('counts.csv')\ndata"),
    call("run_cell", code="data.total"),
    call("run_cell", code="data.n.sum(), object()", cell="c3"),
    call("insert_cell", source="never_run()", before="c2"),
    call("run_cell", code="import random, numpy\nprint(random.random(), numpy.random.rand())"),
    call("run_cell", code="import tempfile, warnings\nwarnings.warn(tempfile.mkdtemp())"),
    call("delete_cell", cell="c5"),
    call("restart_kernel"),
    call("run_cell", code="data"),
    call("run_cell", code="import os\nos._exit(3)"),
    call("run_cell", code="import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()"),
    call("read_file", path="counts.csv"),
    call("submit_answer", answer="42"),
]


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """A set of one task, in the form people bring."""
    folder = tmp_path_factory.mktemp("questions")
    (folder / "data").mkdir()
    (folder / "data" / "counts.csv").write_text("gene,n\na,1\nb,41\n")
    row = {"id": "sum", "question": "What is the sum of n?", "answer": "42", "data_folder": "data"}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n")
    return str(folder / "questions.jsonl")


@pytest.fixture(scope="module")
def rollouts():
    with Rollouts() as rollouts:
        yield rollouts


@pytest.fixture(scope="module")
def run(tmp_path_factory, location, rollouts):
    """A run with one rollout, `r`, in which about everything happens."""
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "run", "")
    source = open_tasks(location)
    run.add_tasks(source.fingerprint())
    rollouts.call(roll(source.tasks()[0], "r", ScriptedModel(SCRIPT), SETTINGS, run))
    return run


def sources(notebook, kind="code"):
    return [cell.source.split("\n")[-1] for cell in notebook.cells if cell.cell_type == kind]


def test_the_log_of_the_run_is_sound(run):
    assert problems(run.rollout_path("r")) == []
    assert run.load("r").outcome == "correct"


def test_history_shows_every_execution_in_order(run):
    notebook = notebook_at(run.load("r"))
    nbformat.validate(notebook)
    assert sources(notebook) == [
        "data",
        "data.total",
        "data.n.sum(), object()",
        "print(random.random(), numpy.random.rand())",
        "warnings.warn(tempfile.mkdtemp())",
        "data",
        "os._exit(3)",
        "plt.plot([1, 2]); plt.show()",
    ]
    assert notebook.cells[3].outputs[0].ename == "AttributeError"
    assert "image/png" in notebook.cells[-2].outputs[0].data
    assert sources(notebook, "markdown")[0] == "What is the sum of n?"
    assert "*The kernel was restarted.*" in sources(notebook, "markdown")
    assert "exit code 3" in "".join(sources(notebook, "markdown"))
    about = notebook.metadata.nbagent
    assert (about.task_id, about.question, about.outcome) == ("sum", "What is the sum of n?", "correct")
    assert about.answer == "42"


def test_final_shows_the_cells_as_they_stood(run):
    notebook = notebook_at(run.load("r"), kind="final", framed=False)
    nbformat.validate(notebook)
    assert [cell.id for cell in notebook.cells] == ["c1", "c4", "c2", "c3", "c6", "c7", "c8", "c9"]
    assert notebook.cells[0].source == "# The plan"
    assert sources(notebook)[0] == "never_run()"


def test_the_fold_of_the_log_is_the_notebook_that_the_environment_held(run, rollouts, location, monkeypatch):
    seen = []

    class Looking(ScriptedModel):
        async def sample(self, prompt, params):
            seen.append(nbformat.from_dict(json.loads(json.dumps(envs[-1].notebook))))
            return await super().sample(prompt, params)

    envs = []
    monkeypatch.setattr("nbagent.rollout.NotebookEnv", remember(envs))
    trajectory = rollouts.call(roll(open_tasks(location).tasks()[0], "q", Looking(SCRIPT), SETTINGS))
    for step, notebook in enumerate(seen):
        assert notebook_at(trajectory, step - 1, "final", framed=False).cells == notebook.cells


def remember(envs):
    from nbagent.env import NotebookEnv

    def make(*args, **settings):
        envs.append(NotebookEnv(*args, **settings))
        return envs[-1]

    return make


def test_replay_writes_a_valid_notebook(run, tmp_path):
    for kind in ("history", "final"):
        replay(run, "r", kind, tmp_path / "new" / f"{kind}.ipynb")
        nbformat.validate(nbformat.read(tmp_path / "new" / f"{kind}.ipynb", as_version=4))
    with pytest.raises(RunFolderError, match=r"no rollout 'q' in this run; it has 1, e\.g\. r"):
        replay(run, "q", "history", tmp_path / "x.ipynb")


def test_run_again_in_a_fresh_kernel_a_history_says_the_same(run, rollouts):
    report = rollouts.call(rerun(run, "r"))
    assert report.differences == ()
    assert [cell.status for cell in report.cells] == ["ok", "error", "ok", "ok", "ok", "error", "dead", "ok"]
    assert report.skipped == ()


def test_what_depends_on_chance_is_reported(run, rollouts, location):
    script = [call("run_cell", code="import os\nprint(os.urandom(4).hex())"), call("submit_answer", answer="?")]
    rollouts.call(roll(open_tasks(location).tasks()[0], "chance", ScriptedModel(script), SETTINGS, run))
    (cell,) = rollouts.call(rerun(run, "chance")).differences
    assert (cell.index, cell.status) == (1, "ok")
    assert "became" in cell.difference


def test_a_cell_that_ran_out_of_time_is_not_compared(run, rollouts, location):
    settings = RolloutSettings(policy="full", limits=EnvLimits(cell_timeout_s=1.0))
    script = [
        call(
            "run_cell", code="import itertools\nx = 1\nfor n in itertools.count(): print(n) if n % 10**6 == 0 else None"
        ),
        call("run_cell", code="x"),
        call("submit_answer", answer="?"),
    ]
    rollouts.call(roll(open_tasks(location).tasks()[0], "slow", ScriptedModel(script), settings, run))
    report = rollouts.call(rerun(run, "slow"))
    assert [cell.status for cell in report.cells] == ["timeout", "ok"]
    assert report.differences == ()


def test_a_task_that_is_nowhere_is_one_line_with_what_to_do(run, rollouts, tmp_path, location):
    assert rollouts.call(rerun(run, "r", tasks=location)).differences == ()
    (tmp_path / "none").mkdir()
    with pytest.raises(UsageError, match=r"sum: its task was not found \(.*\); name the set with --tasks"):
        rollouts.call(rerun(run, "r", tasks=str(tmp_path / "none")))
