"""Run folders: what they refuse, what they keep, how a run resumes from them."""

import json

import pytest

from nbagent.errors import RunFolderError, TrajectoryError
from nbagent.recipe import Recipe
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.trajectory import Recorder


def test_a_new_run_has_its_recipe_first_and_all_its_folders(tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "a", "seed = 1\n")
    assert run.recipe.read_text() == "seed = 1\n"
    assert {path.name for path in run.path.iterdir()} == {
        "recipe.toml",
        "run.json",
        "rollouts",
        "blobs",
        "notebooks",
        "checkpoints",
    }
    assert run.description()["created"].endswith("+00:00")
    assert RunFolder.open(run.path).recipe.read_text() == "seed = 1\n"


def test_another_runs_folder_is_refused(tmp_path):
    RunFolder.create(tmp_path / "a", "seed = 1\n")
    with pytest.raises(RunFolderError, match=r"a: holds another run; give another --out, or --resume"):
        RunFolder.create(tmp_path / "a", "seed = 1\n")


def test_a_folder_of_other_files_is_refused_even_to_resume(tmp_path):
    (tmp_path / "thesis.doc").touch()
    for resume in (False, True):
        with pytest.raises(RunFolderError, match="holds files that are no run"):
            RunFolder.create(tmp_path, "", resume=resume)
    with pytest.raises(RunFolderError, match="is a file, not a folder"):
        RunFolder.create(tmp_path / "thesis.doc", "")


def test_resuming_needs_the_same_recipe(tmp_path):
    RunFolder.create(tmp_path / "a", "seed = 1\nlr = 2\n")
    assert RunFolder.create(tmp_path / "a", "seed = 1\nlr = 2\n", resume=True).recipe.exists()
    with pytest.raises(
        RunFolderError, match=r"recipe\.toml: the run there has another recipe \(`lr = 2`, not `lr = 3`\)"
    ):
        RunFolder.create(tmp_path / "a", "seed = 1\nlr = 3\n", resume=True)


class Inner(Recipe):
    lr: float = 1e-5
    name: str | None = None


class Grown(Recipe):
    """A recipe that has got settings since the run began: `inner.lr`, `inner.name`, `more` and `late`."""

    folder: str
    seed: int = 0
    inner: Inner = Inner()
    more: Inner = Inner(lr=2.0)
    late: tuple[str, ...] = ("a",)


def test_a_run_goes_on_under_a_program_with_new_settings_as_long_as_they_are_at_their_defaults(tmp_path):
    old = 'folder = "m"\nseed = 1\n\n[inner]\n'
    RunFolder.create(tmp_path / "a", old)
    run = RunFolder.create(tmp_path / "a", Grown(folder="m", seed=1), resume=True)
    assert run.recipe.read_text() == old
    for other, words in (
        (Grown(folder="m", seed=1, inner=Inner(lr=1e-4)), r"\(`inner.lr = 1e-05`, not `inner.lr = 0.0001`\)"),
        (Grown(folder="m", seed=1, inner=Inner(name="x")), r'\(no `inner.name`, not `inner.name = "x"`\)'),
        (Grown(folder="m", seed=1, more=Inner()), r"\(`more.lr = 2.0`, not `more.lr = 1e-05`\)"),
        (Grown(folder="m", seed=1, late=()), r'\(`late = \["a"\]`, not `late = \[\]`\)'),
        (Grown(folder="m"), r"\(`seed = 1`, not `seed = 0`\)"),
        (Grown(folder="n", seed=1), r'\(`folder = "m"`, not `folder = "n"`\)'),
    ):
        with pytest.raises(RunFolderError, match=words):
            RunFolder.create(tmp_path / "a", other, resume=True)


def test_a_setting_that_the_program_lost_is_a_difference_and_a_torn_recipe_is_one_line(tmp_path):
    run = RunFolder.create(tmp_path / "a", 'folder = "m"\ngone = 3\n')
    with pytest.raises(RunFolderError, match=r"\(`gone = 3`, not no `gone`\)"):
        RunFolder.create(tmp_path / "a", Grown(folder="m"), resume=True)
    run.recipe.write_text("folder =")
    with pytest.raises(RunFolderError, match="not TOML any more"):
        RunFolder.create(tmp_path / "a", Grown(folder="m"), resume=True)


def test_a_run_that_died_while_its_folder_was_made_can_go_on(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.toml").write_text("x = 1\n")
    run = RunFolder.create(tmp_path / "a", "x = 1\n", resume=True)
    assert run.rollouts.is_dir()
    assert run.description()["tasks"] == []


def test_what_is_no_run_cannot_be_opened(tmp_path):
    with pytest.raises(RunFolderError, match="no such folder"):
        RunFolder.open(tmp_path / "b")
    with pytest.raises(RunFolderError, match=r"holds no run \(no recipe.toml\)"):
        RunFolder.open(tmp_path)


def roll(run, name, outcome=None, torn=False):
    recorder = Recorder(run.blobs, run.rollout_path(name))
    recorder.record("start", rollout_id=name, task_id="t", pad="x" * 9000)
    if outcome:
        recorder.record("end", outcome=outcome, reward=None, pad="y" * 9000)
    recorder.close()
    if torn:
        with run.rollout_path(name).open("a") as file:
            file.write('{"v": 1, "kind": "e')


def test_done_are_those_that_ended_by_themselves(tmp_path):
    run = RunFolder.create(tmp_path / "a", "")
    roll(run, "right", "correct")
    roll(run, "host", "infrastructure")
    roll(run, "cut")
    roll(run, "torn", torn=True)
    run.rollout_path("nothing").touch()
    assert run.done_ids() == {"right"}
    assert run.rollout_ids() == ["cut", "host", "nothing", "right", "torn"]
    assert [trajectory.rollout_id for trajectory in run.trajectories()] == ["cut", "host", "right", "torn"]
    with pytest.raises(TrajectoryError, match="the log is empty"):
        run.load("nothing")


def test_a_rollout_that_is_not_there_is_told_with_some_that_are(tmp_path):
    run = RunFolder.create(tmp_path / "a", "")
    with pytest.raises(RunFolderError, match="no rollout 'x' in this run; it has none"):
        run.load("x")
    roll(run, "right")
    with pytest.raises(RunFolderError, match=r"it has 1, e\.g\. right"):
        run.load("x")
    with pytest.raises(RunFolderError, match="not a rollout id"):
        run.load("../../etc/passwd")


def test_rollout_ids_are_file_names_whatever_the_tasks_are_called(tmp_path):
    run = RunFolder.create(tmp_path / "a", "")
    odd = ["a/b", "a_b", "..", "", "é", "x" * 500, "x" * 500 + "y", "a b"]
    names = [rollout_id("score", task, 0) for task in odd] + [rollout_id("..")]
    assert len(set(names)) == len(names)
    for name in names:
        run.rollout_path(name).touch()
    assert rollout_id("grpo_sampled", "bix-1-q2", 0) == "grpo_sampled-bix-1-q2-0"


def test_metrics_are_appended_and_a_torn_line_is_left_out(tmp_path):
    run = RunFolder.create(tmp_path / "a", "")
    assert run.read_metrics() == []
    run.log_metrics({"phase": "grpo", "step": 1})
    run.log_metrics({"phase": "grpo", "step": 2})
    with run.metrics.open("a") as file:
        file.write('{"phase"')
    assert [line["step"] for line in run.read_metrics()] == [1, 2]


def test_task_sets_are_noted_once_and_found_again_from_any_folder(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "a", "")
    (tmp_path / "questions").mkdir()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run.add_tasks({"kind": "own", "location": "questions", "number": 3}, cache=run.path / "tasks" / "train")
    assert json.loads((run.path / "run.json").read_text())["tasks"] == [
        {
            "kind": "own",
            "location": "questions",
            "number": 3,
            "path": str((tmp_path / "questions").resolve()),
            "cache": "tasks/train",
        }
    ]


def test_a_tree_is_set_aside_whole_and_apart_from_earlier_ones(tmp_path):
    run = RunFolder.create(tmp_path / "a", "")
    stale = run.path / "stale"

    def begin(*names):
        for name in names:
            run.rollout_path(name).write_text(name)

    def there():
        return sorted(f"{path.parent.name}/{path.stem}" for path in stale.glob("*/*"))

    begin("r", "s", "s+0.0")
    # One without branches is begun again in its own log.
    assert run.set_aside("r") == 0
    begin("r+0.0", "r+0.1")
    assert run.set_aside("r") == 3
    assert there() == ["torn-0/r", "torn-0/r+0.0", "torn-0/r+0.1"]
    begin("r", "r+1.0")
    assert run.set_aside("r") == 2
    assert there()[3:] == ["torn-1/r", "torn-1/r+1.0"]
    # A kill between two moves.
    begin("r", "r+0.0")
    (stale / "torn-2").mkdir()
    run.rollout_path("r").rename(stale / "torn-2" / "r.jsonl")
    assert run.set_aside("r") == 1
    assert there()[5:] == ["torn-2/r", "torn-2/r+0.0"]
    assert run.rollout_ids() == ["s", "s+0.0"]
