"""Demonstrations: reference notebooks turned into step samples, with the prompts an agent would have seen.

Each code cell becomes one step that runs it, what the last one printed becomes the step that submits the answer, and
the context policy makes each step's prompt from the notebook so far, in the environment's own words: what is learned
is what will be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import nbformat

from nbagent import wording
from nbagent.actions import action_format
from nbagent.env import EnvLimits, brief_of
from nbagent.errors import TaskFormatError
from nbagent.notebook import NotebookDocument
from nbagent.prompts import PromptBuilder
from nbagent.tasks import Task
from nbagent.tools import TOOLS, tool_name
from nbagent.verbs import run_observation
from nbagent_context import Exchange, Memory, Policy, SummaryRequest, Window, exchanges_of
from nbagent_context.render import output_text

Step = tuple[Window | SummaryRequest, str]
"""What a prompt shows, and the text to be learned."""
Remember = Callable[[Sequence[Exchange], str], str]
"""Writes the memory of a demonstration, from the exchanges that it covers and the memory before ('' for none)."""


def reference_cells(task: Task) -> list[dict[str, Any]]:
    """Code cells of a task's reference notebook, with their outputs.

    Raises:
        TaskFormatError: the task has no reference notebook, or one whose last cell prints nothing.
    """
    if task.reference is None:
        raise TaskFormatError(f"{task.task_id}: has no reference notebook, so it cannot be a demonstration")
    notebook = nbformat.reads(task.reference.read_text(encoding="utf-8"), as_version=4)
    cells = [dict(cell) for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if not cells or not output_text(cells[-1]["outputs"]):
        raise TaskFormatError(f"{task.reference}: its last code cell prints no answer, so it cannot be a demonstration")
    return cells


def demonstrate(
    task: Task,
    format_name: str,
    policy: Policy,
    prompts: PromptBuilder,
    limits: EnvLimits,
    remember: Remember | None = None,
) -> list[Step]:
    """The steps of one demonstration; memories that the policy asks for are steps too where `remember` writes them.

    Raises:
        TaskFormatError: the task has no usable reference notebook.
        BudgetTooSmall: a prompt does not fit the context.
    """
    cells = reference_cells(task)
    fmt = action_format(format_name, task.language)
    brief = brief_of(task, fmt)
    named = any(tool_name(tool) == "edit_cell" for tool in fmt.available(TOOLS))
    document = NotebookDocument(task.language)
    history: list[Exchange | Memory] = []
    steps: list[Step] = []
    budget, count = prompts.budget(), prompts.count

    def learn(text: str) -> None:
        number = len(exchanges_of(history))
        left = limits.max_steps - number
        notice = wording.steps_left(left) if left <= limits.warn_steps else ""
        window = policy.window(brief, document.node, history, notice, budget, count)
        if isinstance(window, SummaryRequest):
            before = next((entry.text for entry in reversed(history) if isinstance(entry, Memory)), "")
            memory = remember(exchanges_of(history)[: window.covers], before) if remember else ""
            if remember:
                steps.append((window, memory))
            history.append(Memory(memory, window.covers, number))
            window = policy.window(brief, document.node, history, notice, budget, count)
        steps.append((window, text))

    for number, cell in enumerate(cells):
        text = fmt.render("run_cell", {"code": cell["source"]})
        learn(text)
        cell_id = document.append(cell["source"])
        document.set_outputs(cell_id, cell["outputs"], number + 1)
        observation = run_observation(cell["outputs"], limits.observation_chars, cell_id if named else "")
        history.append(
            Exchange(
                number,
                text,
                "run_cell",
                observation,
                cell_id,
                shown=True,
                short=wording.short("run_cell", cell_id),
            )
        )
    learn(fmt.render("submit_answer", {"answer": output_text(cells[-1]["outputs"]).strip()}))
    return steps


def text_of_steps(steps: Sequence[Step]) -> str:
    """A demonstration as one text, to train a tokenizer on: the last prompt shows nearly everything."""
    window, action = steps[-1]
    parts = [part["text"] for message in window.messages for part in message["content"]]
    return "".join([*parts, *(text for _, text in steps[:-1]), action])
