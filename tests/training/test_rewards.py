"""Only verdicts of the policy `strict` train a model, and grouping `rollout` only where steps are rewarded."""

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


class Rewarding(KeyVerifier):
    def step_reward(self, tool, observation, failed):
        return 0.0 if failed else 0.1


def test_rollout_is_refused_for_tasks_without_step_rewards():
    rewarding = replace(task("a"), verifier=Rewarding("1"))
    for grouping in ("trajectory", "branch", "state", "step_index", ""):
        check_rewards([rewarding, task("b")], grouping)
    check_rewards([rewarding], "rollout")
    with pytest.raises(UsageError, match=r"of task b gives none \(2 such tasks\); take grouping = .trajectory."):
        check_rewards([rewarding, task("b"), task("c")], "rollout")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "grouping", "why"),
    [
        ("Why?,because,data,llm_verifier,a", "trajectory", "task a cannot be trained on: its key is free text"),
        ("How many?,1,data,str_verifier,a", "rollout", "grpo.grouping: .* the verifier of task a gives none;"),
    ],
)
def test_a_run_refuses_before_it_trains(tmp_path, asked, grouping, why):
    from nbagent.runfolder import RunFolder
    from nbagent_training.recipe import TrainRecipe
    from nbagent_training.run import TrainingRun

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("a\n1\n")
    rows = ["question,answer,data_folder,eval_mode,id", asked]
    (tmp_path / "questions.csv").write_text("\n".join(rows) + "\n")
    recipe = TrainRecipe.model_validate(
        {
            "tasks": {"train": str(tmp_path / "questions.csv"), "n_heldout": 2},
            "warm_start": {"steps": 1},
            "grpo": {"grouping": grouping, "failed_penalty": 0.5},
        }
    )
    with pytest.raises(UsageError, match=why):
        TrainingRun(recipe, RunFolder.create(tmp_path / "run", "x = 1\n"), Console(file=sys.stderr)).go()
    assert not list((tmp_path / "run").glob("checkpoints/*"))
