"""A replay of every family of bundled task re-executes to equal outputs."""

import json

import nbformat
import pytest

from nbagent.models.scripted import ScriptedModel
from nbagent.replay import rerun
from nbagent.rollout import RolloutSettings
from nbagent.rollouts import Rollouts
from nbagent.runfolder import RunFolder
from nbagent.tasks import Outcome, open_tasks
from nbagent_context.render import output_text

SETTINGS = RolloutSettings(policy="full")


def script(task):
    """The reference notebook's cells, then what the last one printed."""
    cells = [cell for cell in nbformat.read(task.reference, as_version=4).cells if cell.cell_type == "code"]
    calls = [{"name": "run_cell", "arguments": {"code": cell.source}} for cell in cells]
    calls.append({"name": "submit_answer", "arguments": {"answer": output_text(cells[-1].outputs).strip()}})
    return ScriptedModel([f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls])


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_no_output_differs(tmp_path, split):
    run = RunFolder.create(tmp_path / "run", "")
    source = open_tasks(f"bundled:{split}?n=30&seed=4", tmp_path / "run" / "tasks")
    run.add_tasks(source.fingerprint(), tmp_path / "run" / "tasks")
    tasks = source.tasks()
    assert len({task.family for task in tasks}) >= 12
    with Rollouts(concurrency=2) as rollouts:
        for task in tasks:
            (made,) = rollouts.run([(task, task.task_id)], script(task), SETTINGS, run)
            assert made.outcome is Outcome.CORRECT, (task.task_id, made.reason)
        for task in tasks:
            report = rollouts.call(rerun(run, task.task_id))
            assert (report.differences, report.failed) == ((), ())
