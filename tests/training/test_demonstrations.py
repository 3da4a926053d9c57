"""What is learned is what will be asked: a demonstration's prompts equal those of a rollout that does the same."""

import pytest

from nbagent.actions import action_format
from nbagent.env import EnvLimits
from nbagent.errors import TaskFormatError
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ScriptedModel
from nbagent.prompts import PromptBuilder
from nbagent.rollout import RolloutSettings, roll
from nbagent.tasks import Outcome, open_tasks
from nbagent_context import policy, text_of
from nbagent_training.demonstrations import demonstrate, reference_cells

FAMILIES = "library_size,variant_count,cluster_size,iris_count"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    source = open_tasks(f"bundled:train?n=4&seed=5&families={FAMILIES}", tmp_path_factory.mktemp("set"))
    return list(source.tasks())


@pytest.mark.parametrize(("fmt", "name"), [("fenced", "drop"), ("hermes", "drop"), ("hermes", "full")])
async def test_prompts_equal_those_of_a_rollout(tasks, fmt, name):
    limits = EnvLimits(max_steps=4, warn_steps=2)
    for task in tasks:
        shown = demonstrate(task, fmt, policy(name), PromptBuilder(None, 1 << 30, 0), limits)
        model = ScriptedModel([text for _, text in shown])
        settings = RolloutSettings(
            action_format=fmt, policy=name, limits=limits, sampling=SamplingParams(max_new_tokens=64)
        )
        trajectory = await roll(task, "r1", model, settings)
        assert trajectory.outcome is Outcome.CORRECT, trajectory.reason
        asked = [call.messages for call in trajectory.calls()]
        assert len(asked) == len(shown) == 3
        for messages, (window, _) in zip(asked, shown, strict=True):
            assert [(m["role"], text_of(m)) for m in messages] == [(m["role"], text_of(m)) for m in window.messages]


def test_demonstrations_are_read_back_by_the_parser(tasks):
    from nbagent.models.base import Completion

    shown = demonstrate(tasks[0], "fenced", policy("drop"), PromptBuilder(None, 1 << 30, 0), EnvLimits())
    actions = [action_format("fenced").parse(Completion(text, "stop")) for _, text in shown]
    assert [a.tool for a in actions] == ["run_cell", "run_cell", "submit_answer"]
    assert [a.args["code"] for a in actions[:2]] == [c["source"] for c in reference_cells(tasks[0])]


def test_a_task_without_a_reference_is_named(tasks):
    from dataclasses import replace

    with pytest.raises(TaskFormatError, match="has no reference notebook"):
        reference_cells(replace(tasks[0], reference=None))
