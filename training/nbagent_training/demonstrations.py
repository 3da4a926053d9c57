"""Demonstrations: reference notebooks turned into step samples, with the prompts an agent would have seen.

Each code cell becomes one step that runs it, the key's printed form becomes the step that submits the answer, and the
context policy makes each step's prompt from the notebook so far: what is learned is what will be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nbformat

from nbagent.action import ActionFormat
from nbagent.env import EnvLimits, brief_of
from nbagent.errors import TaskFormatError
from nbagent.prompts import PromptBuilder
from nbagent.tasks import Task
from nbagent.wording import steps_left
from nbagent_context import Exchange, Policy, Window
from nbagent_context.render import output_text

Step = tuple[Window, str]
"""A prompt's window and the text to be learned."""


def reference_cells(task: Task) -> list[dict[str, Any]]:
    """Code cells of a task's reference notebook, with their outputs.

    Raises:
        TaskFormatError: the task has no reference notebook, or one without an executed code cell.
    """
    if task.reference is None:
        raise TaskFormatError(f"{task.task_id}: has no reference notebook, so it cannot be a demonstration")
    notebook = nbformat.reads(task.reference.read_text(encoding="utf-8"), as_version=4)
    cells = [dict(cell) for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if not cells or not output_text(cells[-1]["outputs"]):
        raise TaskFormatError(f"{task.reference}: its last code cell prints no answer, so it cannot be a demonstration")
    return cells


def demonstrate(
    task: Task, action_format: ActionFormat, policy: Policy, prompts: PromptBuilder, limits: EnvLimits
) -> list[Step]:
    """The steps of one demonstration.

    Raises:
        TaskFormatError: the task has no usable reference notebook.
        BudgetTooSmall: a prompt does not fit the context.
    """
    cells = reference_cells(task)
    brief = brief_of(task, action_format)
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "", "display_name": "", "language": task.language}
    history: list[Exchange] = []
    steps: list[Step] = []
    budget, count = prompts.budget(), prompts.count

    def window() -> Window:
        left = limits.max_steps - len(history)
        notice = steps_left(left) if left <= limits.warn_steps else ""
        return policy.window(brief, notebook, history, notice, budget, count)

    for number, cell in enumerate(cells):
        text = action_format.render("run_cell", {"code": cell["source"]})
        steps.append((window(), text))
        cell_id = f"c{number + 1}"
        shown = nbformat.v4.new_code_cell(
            cell["source"], id=cell_id, outputs=cell["outputs"], execution_count=number + 1
        )
        notebook.cells.append(shown)
        observation = output_text(cell["outputs"])
        history.append(Exchange(number, text, "run_cell", observation, cell_id, shown=True, short=f"run_cell {cell_id}"))
    answer = output_text(cells[-1]["outputs"]).strip()
    steps.append((window(), action_format.render("submit_answer", {"answer": answer})))
    return steps


def text_of_steps(steps: Sequence[Step]) -> str:
    """A demonstration as one text, to train a tokenizer on: the last prompt shows nearly everything."""
    window, action = steps[-1]
    parts = [part["text"] for message in window.messages for part in message["content"]]
    return "".join([*parts, *(text for _, text in steps[:-1]), action])
