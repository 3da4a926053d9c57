"""Training from the rollouts of a run that is over."""

import json

import pytest
import torch
from typer.testing import CliRunner

from nbagent.agent import Agent
from nbagent.cli import app
from nbagent.errors import RecipeError, UsageError
from nbagent.models.base import Completion, Prompt
from nbagent.models.sampler import sample_batch
from nbagent.recipe import load_recipe, to_toml
from nbagent.runfolder import RunFolder
from nbagent.score_run import ScoreRecipe
from nbagent.tasks import open_tasks
from nbagent.trajectory import Recorder
from nbagent_training.groups import batch_of
from nbagent_training.lineage import practice_id, practised_in
from nbagent_training.offline import offline_recipe, passed_over
from nbagent_training.recipe import Grpo, TrainRecipe
from nbagent_training.recorded import Recorded, own_examples, recorded

RUN = CliRunner()


@pytest.fixture
def folder(tiny, tokenizer, tmp_path):
    path = tmp_path / "model"
    tiny.save_pretrained(path)
    tokenizer.save_pretrained(path)
    Agent(action_format="fenced", max_new_tokens=8).write_beside(path)
    return path


@pytest.fixture
def tasks(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x,y\n1,3\n")
    rows = "".join(f"What is x + y? Variant {i}.,4,data,sums,t{i}\n" for i in range(3))
    (tmp_path / "q.csv").write_text("question,answer,data_folder,family,id\n" + rows)
    return open_tasks(str(tmp_path / "q.csv"))


def sampled(model, tokenizer, n, seed=0):
    """n completions of one prompt, sampled as rollouts are."""
    prompt = tokenizer("import pandas as pd")["input_ids"]
    made = sample_batch(
        model.eval(),
        [prompt] * n,
        max_new_tokens=[8] * n,
        temperatures=[1.0] * n,
        seeds=list(range(seed, seed + n)),
        stop_ids=frozenset([tokenizer.eos_token_id]),
        pad_id=tokenizer.pad_token_id,
    )
    return prompt, made


def write(run, tokenizer, task, name, prompt, completions, reward, version=0, parent=None):
    """The log of a rollout whose calls were sampled, with a verdict of our choice; of a branch, (rollout, step)."""
    first = parent[1] if parent else 0
    recorder = Recorder(run.blobs, run.rollout_path(name))
    start = {"rollout_id": name, "task_id": task.task_id, "question": task.question, "family": task.family}
    origin = {"rollout": parent[0], "step": parent[1]} if parent else None
    recorder.record("start", **start, attempt=0, parent=origin)
    for step, made in enumerate(completions, first):
        text = tokenizer.decode(made.ids[:-1] if made.stopped else made.ids)
        completion = Completion(text, "stop", made.ids, made.logprobs)
        recorder.call(
            step,
            Prompt([], ids=prompt),
            completion,
            version=version,
            seconds=0.0,
            elisions=[],
            state_key="",
            notice="",
        )
    outcome = {1.0: "correct", 0.0: "incorrect", None: "infrastructure"}[reward]
    recorder.record("end", outcome=outcome, reason="", reward=reward, truncated=False, error="")
    recorder.close()


@pytest.fixture
def scored(tiny, tokenizer, folder, tasks, tmp_path):
    """A run as `nbagent score --n 4` leaves it: t0 mixed, t1 mixed with an equal pair and a failure, t2 never right."""
    recipe = ScoreRecipe(tasks=str(tmp_path / "q.csv"), model=str(folder), n=4, agent=Agent(action_format="fenced"))
    run = RunFolder.create(tmp_path / "score", to_toml(recipe.model_dump(mode="json")))
    run.add_tasks(tasks.fingerprint())
    prompt, made = sampled(tiny, tokenizer, 8)
    rewards = {"t0": [1.0, 0.0, 0.0, 1.0], "t1": [1.0, 1.0, 0.0, None], "t2": [0.0, 0.0, 0.0, 0.0]}
    for task in tasks.tasks():
        for i, reward in enumerate(rewards[task.task_id]):
            calls = [made[0]] if task.task_id == "t1" and i < 2 else made[i : i + 1 + i % 2]
            write(run, tokenizer, task, f"{task.task_id}-{i}", prompt, calls, reward)
    return run


def test_rollouts_are_grouped_by_task_and_weights_and_failures_are_in_no_group(scored):
    groups = {group.task_id: group for group in recorded(scored)}
    assert groups["t0"].rewards == [1.0, 0.0, 0.0, 1.0]
    assert groups["t1"].rollout_ids == ["t1-0", "t1-1", "t1-2"]
    assert [groups[f"t{i}"].mixed for i in range(3)] == [True, True, False]


def test_a_pass_takes_every_group_that_teaches_once_and_a_resumed_run_the_same(scored, tokenizer, tmp_path):
    into = RunFolder.create(tmp_path / "into", "x = 1\n")
    source = Recorded(scored.path, tokenizer, into, Grpo(), seed=0)
    assert (len(source), source.n_left_out) == (2, 1)
    names = [[g.task.task_id for g in source.next_groups(1, v)] for v in range(6)]
    assert all(sorted(names[v] + names[v + 1]) == ["t0", "t1"] for v in (0, 2, 4))
    again = Recorded(scored.path, tokenizer, into, Grpo(), seed=0)
    assert [g.task.task_id for g in again.next_groups(2, 2)] == [*names[4], *names[5]]
    (group,) = source.next_groups(1, 0)
    assert all(t.reward is not None for t in group.trajectories)


def test_what_carries_a_gradient_is_what_the_recipe_makes_of_it(scored, tokenizer, tmp_path):
    """Discounted returns of attempts that all end alike differ where their numbers of calls do."""
    into = RunFolder.create(tmp_path / "into", "x = 1\n")
    for name in ("t0-1", "t0-2", "t1-2"):
        scored.rollout_path(name).unlink()
    with pytest.raises(UsageError, match=r"under grpo\.grouping trajectory none of its 3 groups has a gradient"):
        Recorded(scored.path, tokenizer, into, Grpo(), seed=0)
    discounted = Recorded(scored.path, tokenizer, into, Grpo(grouping="state", gamma=0.9), seed=0)
    assert (len(discounted), discounted.n_left_out) == (1, 2)
    (group,) = discounted.next_groups(1, 0)
    assert [t.rollout_id for t in group.trajectories] == ["t0-0", "t0-3"]


def test_attempts_that_never_asked_the_model_are_compared_and_nothing_to_learn(
    scored, tiny, tokenizer, tasks, tmp_path
):
    """As where the first prompt did not fit: they have a return, and are in the statistics of a run that makes them."""
    task = tasks.tasks()[2]
    prompt, made = sampled(tiny, tokenizer, 1)
    for i in range(4):
        scored.rollout_path(f"t2-{i}").unlink()
    for i in range(2):
        write(scored, tokenizer, task, f"t2-{i}", prompt, [], 0.0)
    assert [group.task_id for group in recorded(scored)] == ["t0", "t1"], "a group of such attempts alone"
    write(scored, tokenizer, task, "t2-2", prompt, made, 1.0)
    source = Recorded(scored.path, tokenizer, RunFolder.create(tmp_path / "into", ""), Grpo(), seed=0)
    (group,) = [g for g in source.next_groups(3, 0) if g.task.task_id == "t2"]
    batch = batch_of([group], Grpo(sigma="none"))
    assert (batch.stats["trajectories"], batch.stats["reward"]) == (3, pytest.approx(1 / 3))
    assert [row.advantage for row in batch.rows] == [pytest.approx(2 / 3)]
    examples = own_examples(scored.path, tokenizer, keep="all", per_task=9, order="shortest", seed=0)
    assert [rows[0].rollout_id for rows in examples if rows[0].task_id == "t2"] == ["t2-2"]


def test_what_would_be_wrong_to_learn_from_is_refused(scored, tokenizer, tasks, tmp_path):
    into = RunFolder.create(tmp_path / "into", "x = 1\n")
    with pytest.raises(UsageError, match="this recipe holds out"):
        Recorded(scored.path, tokenizer, into, Grpo(), seed=0, heldout=tasks.tasks())
    with pytest.raises(UsageError, match=r"was sampled at temperature 1; set grpo\.temperature"):
        Recorded(scored.path, tokenizer, into, Grpo(temperature=0.7), seed=0)
    with pytest.raises(UsageError, match=r"the verifier of task t0 gives none \(3 such tasks\)"):
        Recorded(scored.path, tokenizer, into, Grpo(grouping="rollout"), seed=0)
    from nbagent_training.scratch import make_tokenizer

    other = make_tokenizer(["for x in range(9): pass\n" * 9], 280)
    with pytest.raises(UsageError, match="not this model's"):
        own_examples(scored.path, other, keep="all", per_task=4, order="shortest", seed=0)


def test_held_out_rollouts_of_a_training_run_are_never_taken(tiny, tokenizer, tasks, tmp_path):
    run = RunFolder.create(tmp_path / "trained", "[grpo]\ntemperature = 1.0\n")
    run.add_tasks(tasks.fingerprint())
    prompt, made = sampled(tiny, tokenizer, 2)
    first, second, _ = tasks.tasks()
    for version in range(2):
        for i in range(2):
            write(run, tokenizer, first, f"train-{version:05d}-0-t0-{i}", prompt, [made[i]], float(i), version=version)
    write(run, tokenizer, second, "grpo_sampled-t1-0", prompt, [made[0]], 1.0)
    assert [(g.task_id, g.version) for g in recorded(run)] == [("t0", 0), ("t0", 1)]


def test_groups_of_a_run_whose_rollouts_ran_ahead_are_those_of_its_updates(tiny, tokenizer, tasks, tmp_path):
    """Older weights than the update's made some of a group; what it was compared with is what it was."""
    run = RunFolder.create(tmp_path / "ahead", "[grpo]\ntemperature = 1.0\n[sampler]\nstaleness = 2\n")
    run.add_tasks(tasks.fingerprint())
    prompt, made = sampled(tiny, tokenizer, 4)
    task = tasks.tasks()[0]
    for update, versions in ((1, (0, 0, 1, 1)), (2, (0, 1, 1, 2))):
        for i, version in enumerate(versions):
            name = practice_id(update, 0, "t0", i)
            write(run, tokenizer, task, name, prompt, [made[i]], float(i % 2), version=version)
    for i in range(2):
        name = practice_id(2, 1, "t0", i)
        write(run, tokenizer, task, name, prompt, [made[i]], float(i), version=2)
    assert [(g.version, g.place, len(g.rewards)) for g in recorded(run)] == [(1, 0, 4), (2, 0, 4), (2, 1, 2)]


def test_what_a_practised_rollout_was_for_is_in_its_id():
    assert practised_in(practice_id(12, 3, "a-b", 7)) == (12, 3)
    assert practised_in(practice_id(12, 3, "ä task/" * 99, 7) + "+1.0") == (12, 3)
    assert practised_in("grpo_sampled-t1-0") is None
    assert practised_in("train-me-1-0") is None, "a task of that name in a score"


def test_a_run_of_the_benchmark_is_refused_in_words(tmp_path, tokenizer):
    run = RunFolder.create(tmp_path / "bix", 'tasks = "t"\nmodel = "m"\nmode = "open"\ntemperature = 1.0\n')
    given = TrainRecipe.model_validate({"model": {"folder": "m"}})
    for refused in (
        lambda: offline_recipe(run.path),
        lambda: offline_recipe(run.path, given),
        lambda: own_examples(run.path, tokenizer, keep="all", per_task=1, order="random", seed=0),
    ):
        with pytest.raises(UsageError, match=r"another kind \(it has 'mode'\); only rollouts of `nbagent train`, "):
            refused()


def test_own_examples_are_right_ones_once_each_shortest_first(scored, tokenizer):
    settings = {"keep": "correct", "order": "shortest", "seed": 0}
    examples = own_examples(scored.path, tokenizer, per_task=4, **settings)
    assert [rows[0].task_id for rows in examples] == ["t0", "t0", "t1"], "equal ones of t1 count once"
    lengths = [sum(len(row.completion_ids) for row in rows) for rows in examples[:2]]
    assert lengths == sorted(lengths)
    assert examples[0][0].prompt_ids == tuple(tokenizer("import pandas as pd")["input_ids"])
    assert len(own_examples(scored.path, tokenizer, per_task=1, **settings)) == 2
    assert len(own_examples(scored.path, tokenizer, per_task=9, **{**settings, "keep": "all"})) == 4 + 2 + 4


def test_branches_are_in_the_group_of_their_root_and_what_they_share_counts_once(tiny, tokenizer, tasks, tmp_path):
    run = RunFolder.create(tmp_path / "trained", "[grpo]\ntemperature = 1.0\n")
    run.add_tasks(tasks.fingerprint())
    prompt, made = sampled(tiny, tokenizer, 5)
    root, task = "train-00000-0-t0-0", tasks.tasks()[0]
    write(run, tokenizer, task, root, prompt, made[:3], 1.0)
    write(run, tokenizer, task, f"{root}+1.0", prompt, made[3:5], 0.0, parent=(root, 1))
    write(run, tokenizer, task, f"{root}+1.1", prompt, made[4:5], 1.0, parent=(root, 1))
    source = Recorded(run.path, tokenizer, RunFolder.create(tmp_path / "i", ""), Grpo(grouping="branch"), seed=0)
    (group,) = source.next_groups(1, 0)
    assert [t.rollout_id for t in group.trajectories] == [root, f"{root}+1.0", f"{root}+1.1"]
    batch = batch_of([group], Grpo(grouping="branch"))
    assert batch.stats["branchings"] == 1
    assert len(batch.rows) == 5, "the shared first call has the mean of its only alternative: no gradient"
    examples = own_examples(run.path, tokenizer, keep="all", per_task=9, order="shortest", seed=0)
    ids = [row.completion_ids for rows in examples for row in rows]
    assert sorted(ids) == sorted(m.ids for m in [*made[:3], *made[3:5], made[4]]), "the shared call counts once"


def test_a_recipe_without_a_correction_for_stale_rows_is_refused(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[model]\nfolder = "m"\n[grpo]\nfrom_run = "runs/a"\n')
    with pytest.raises(RecipeError, match=r'set grpo\.loss\.old = "sampler"'):
        load_recipe(path, TrainRecipe)
    path.write_text('[warm_start]\nsteps = 3\nfrom_run = "runs/a"\n')
    with pytest.raises(RecipeError, match=r"warm_start\.from_run: .*set model\.folder"):
        load_recipe(path, TrainRecipe)


def test_the_recipe_of_a_scores_rollouts_is_their_model_for_two_passes(scored, folder):
    recipe = offline_recipe(scored.path)
    assert passed_over(recipe) == []
    assert (recipe.model.folder, recipe.grpo.loss.old) == (str(folder), "sampler")
    assert (recipe.grpo.updates, recipe.grpo.tasks_per_update, recipe.tasks.n_heldout) == (2, 2, 0)
    given = TrainRecipe.model_validate(
        {"model": {"folder": "m"}, "grpo": {"loss": {"correction": "truncate"}, "lr": 0.5}}
    )
    assert offline_recipe(scored.path, given).grpo.loss.old == "trainer"
    assert offline_recipe(scored.path, given).grpo.lr == 0.5
    made_them = {
        "model": {"folder": "m"},
        "tasks": {"train": "q.csv"},
        "grpo": {"group_size": 4, "curriculum": "mixed"},
    }
    taken = offline_recipe(scored.path, TrainRecipe.model_validate(made_them))
    assert passed_over(taken) == ["tasks.train", "grpo.group_size", "grpo.curriculum"]
    for name in ("t0-0", "t0-3", "t1-0", "t1-1"):
        scored.rollout_path(name).unlink()
    with pytest.raises(UsageError, match="in none of its 3 groups do rewards differ"):
        offline_recipe(scored.path)


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ('{model}[grpo.loss]\ncorrection = "truncate"\n[sampler]\nstaleness = 1\n', "sampler.staleness: recorded roll"),
        ('{model}[distill]\nteacher = "vllm:http://x"\n', "distill.teacher: judges the tokens of fresh rollouts"),
        ("[warm_start]\nsteps = 3\n", "grpo.from_run: rollouts hold the ids of their model; set model.folder to it"),
    ],
    ids=["staleness", "teacher", "no folder"],
)
def test_a_recipe_that_does_not_go_with_recorded_rollouts_is_one_line(scored, folder, tmp_path, recipe, said):
    path = tmp_path / "r.toml"
    path.write_text(recipe.format(model=f'[model]\nfolder = "{folder}"\n'))
    made = RUN.invoke(app, ["train", str(path), "--from", str(scored.path), "--out", str(tmp_path / "out")])
    assert made.exit_code == 2, made.output + made.stderr
    assert made.stderr.startswith(f"nbagent: --from {scored.path}: {said}")
    assert made.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_trains_on_the_rows_and_makes_no_rollout(scored, folder, tiny, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Large enough that rows that were right become likelier within four updates.
    (tmp_path / "r.toml").write_text(
        f'bf16 = false\nthreads = 1\n[tasks]\nn_heldout = 0\n[model]\nfolder = "{folder}"\n[agent]\n'
        'action_format = "fenced"\n[grpo]\nupdates = 4\ntasks_per_update = 2\nlr = 1e-3\nwarmup = 0\n'
    )
    made = RUN.invoke(app, ["train", "r.toml", "--from", str(scored.path), "--out", "out"])
    assert made.exit_code == 0, made.output + made.stderr
    assert not list((tmp_path / "out" / "rollouts").iterdir())
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "grpo"] == [1, 2, 3, 4]
    from nbagent.models.hf import load

    trained, _ = load(tmp_path / "out" / "checkpoints" / "final")
    tiny.load_state_dict(load(folder)[0].state_dict())
    right, wrong = (gain(tiny, trained, scored, reward) for reward in (1.0, 0.0))
    assert right > 0 > wrong


def gain(before, after, run, reward):
    """Mean rise of the log-prob of t0's completions that had this reward."""
    rises = []
    for name in ("t0-0", "t0-1", "t0-2", "t0-3"):
        trajectory = run.load(name)
        if trajectory.reward == reward:
            for call in trajectory.calls():
                ids = [*call.prompt_ids, *call.event["completion_ids"]]
                rises.append(logprob(after, ids, len(call.prompt_ids)) - logprob(before, ids, len(call.prompt_ids)))
    return sum(rises) / len(rises)


@torch.no_grad()
def logprob(model, ids, start):
    logits = model.eval()(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return float(logits.gather(1, torch.tensor(ids[1:])[:, None])[start - 1 :].mean())


@pytest.mark.slow
@pytest.mark.parametrize(("more", "least"), [("", 0.1), ("[lora]\nrank = 8\n", 0.01)], ids=["all weights", "adapters"])
def test_right_rollouts_are_learned_by_supervision(scored, folder, tiny, tmp_path, monkeypatch, more, least):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text(
        f'bf16 = false\nthreads = 1\n[tasks]\nn_heldout = 0\n[model]\nfolder = "{folder}"\n[warm_start]\nsteps = 8\n'
        f'tokens = 512\nfrom_run = "{scored.path}"\n[grpo]\nupdates = 0\n{more}'
    )
    made = RUN.invoke(app, ["train", "r.toml", "--out", "out"])
    assert made.exit_code == 0, made.output + made.stderr
    assert "3 own rollouts as examples" in made.output
    from nbagent.models.hf import load

    trained, _ = load(tmp_path / "out" / "checkpoints" / "warm")
    tiny.load_state_dict(load(folder)[0].state_dict())
    assert gain(tiny, trained, scored, 1.0) > least
