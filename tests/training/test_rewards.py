"""Only verdicts of the policy `strict` train a model."""

import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from nbagent.errors import UsageError
from nbagent.tasks import Task
from nbagent_bixbench.grade import POLICIES, KeyVerifier
from nbagent_bixbench.modes import ChoiceVerifier
from nbagent_training.practice import check_rewards


def task(name, **verifier):
    return Task(name, "?", Path(), KeyVerifier("1", **verifier))


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "strict"])
def test_other_policies_are_refused(policy):
    with pytest.raises(UsageError, match=f"task b cannot be trained on: it is graded by policy .{policy}."):
        check_rewards([task("a"), task("b", policy=policy)])


@pytest.mark.parametrize(("policy", "refused"), [("strict", False), ("official-zeroshot", True)])
def test_choices_train_under_strict_alone(policy, refused):
    tasks = [replace(task("a"), verifier=ChoiceVerifier((), policy))]
    with pytest.raises(UsageError, match="only strict") if refused else nullcontext():
        check_rewards(tasks)


def test_free_text_keys_are_refused_and_counted():
    tasks = [task("a"), task("b", eval_mode="llm_verifier"), task("c", eval_mode="llm_verifier")]
    with pytest.raises(UsageError, match=r"task b cannot be trained on \(2 such tasks\): its key is free text"):
        check_rewards(tasks)


def test_names_numbers_and_ranges_train_and_so_does_a_verifier_of_ones_own():
    check_rewards([task("a"), task("b", eval_mode="range_verifier"), replace(task("c"), verifier=None)])


@pytest.mark.slow
def test_a_run_refuses_before_it_trains(tmp_path):
    from nbagent.runfolder import RunFolder
    from nbagent_training.recipe import TrainRecipe
    from nbagent_training.run import TrainingRun

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("a\n1\n")
    rows = ["question,answer,data_folder,eval_mode,id", "Why?,because,data,llm_verifier,why"]
    (tmp_path / "questions.csv").write_text("\n".join(rows) + "\n")
    recipe = TrainRecipe.model_validate(
        {"tasks": {"train": str(tmp_path / "questions.csv"), "n_heldout": 2}, "warm_start": {"steps": 1}}
    )
    with pytest.raises(UsageError, match="task why cannot be trained on: its key is free text"):
        TrainingRun(recipe, RunFolder.create(tmp_path / "run", "x = 1\n"), Console(file=sys.stderr)).go()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
