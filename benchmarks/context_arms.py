"""The arms of the ablation, a policy at a budget each, and what of a task's needed fact survives in them.

Budgets are 2k, 4k and 8k tokens divided by a scale, and so are the outputs and the length of a memory. Survival needs
no model: it is the share of tasks in whose prompt of the decisive step the fact that the answer needs still stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from context_tasks import N_FILES, NOTE, PLACES, STEPS, make_task, remember

from nbagent.env import EnvLimits
from nbagent.prompts import PromptBuilder
from nbagent.tasks import Task
from nbagent_context import BudgetTooSmall, text_of
from nbagent_context import policy as policy_of
from nbagent_training.demonstrations import Step, demonstrate

ANSWER = 48
"""Tokens one answer may take; the longest action of a demonstration takes about 35."""
VALUES = 320
"""Values of a file at full scale, two tokens each."""
LIMITS = EnvLimits(max_steps=STEPS + 1, cell_timeout_s=20, warn_steps=0)


@dataclass(frozen=True, slots=True)
class Arm:
    """One policy at one budget."""

    policy: str
    budget: int
    """Tokens of a prompt; the answer's come on top."""
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Policy and options, for a table."""
        return " ".join([self.policy, *(f"{name}={value}" for name, value in self.options.items())])

    @property
    def name(self) -> str:
        """Of its score in the run folder."""
        return "_".join([self.policy, *self.options, str(self.budget)])

    @property
    def context(self) -> int:
        """Tokens of prompt and answer."""
        return self.budget + ANSWER

    def prompts(self, tokenizer: Any) -> PromptBuilder:
        """Makes its prompts."""
        return PromptBuilder(tokenizer, self.context, ANSWER)

    def steps(self, task: Task, tokenizer: Any) -> list[Step]:
        """A demonstration of the task; no steps where the policy refuses the budget."""
        chosen = policy_of(self.policy, **self.options)
        try:
            return demonstrate(task, "fenced", chosen, self.prompts(tokenizer), LIMITS, remember)
        except BudgetTooSmall:
            return []


def arms(scale: int) -> list[Arm]:
    """Every policy at budgets of 2k, 4k and 8k tokens, divided by `scale`."""
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("full", {}),
        ("window", {}),
        ("drop", {}),
        ("drop", {"frugal": True}),
        ("summarize", {"max_tokens": 256 // scale}),
    ]
    return [Arm(policy, budget // scale, options) for policy, options in kinds for budget in (2048, 4096, 8192)]


def long_tasks(folder: Path, n: int, seed: str, scale: int) -> list[Task]:
    """Tasks of nine steps, whose whole history takes about 4,700 tokens divided by `scale`."""
    return [make_task(folder, number, seed, N_FILES, VALUES // scale) for number in range(n)]


@dataclass(frozen=True, slots=True)
class Survival:
    """What an arm's prompts of the decisive step still hold."""

    n: int
    by_place: dict[str, int]
    """Tasks whose background stands there, by where its file names it."""
    too_small: int
    """Tasks whose prompts do not all fit."""
    tokens: float
    """Of the prompt of the decisive step, mean."""


def decisive(steps: Sequence[Step]) -> tuple[int, bool]:
    """Number of the step that computes, and whether its prompt shows the background that its cell needs."""
    number = next(number for number, (_, text) in enumerate(steps) if "sum(" in text)
    window, text = steps[number]
    note = f"background={text.rsplit('-', 1)[1].split(')', 1)[0]}"
    return number, note in NOTE.findall("\n".join(map(text_of, window.messages)))


def survival(arm: Arm, tasks: Sequence[Task], tokenizer: Any) -> Survival:
    """Play every task by its reference under an arm. A memory says what it should, so `summarize` is at its best."""
    by_place, too_small, tokens = dict.fromkeys(PLACES, 0), 0, []
    for task in tasks:
        steps = arm.steps(task, tokenizer)
        if not steps:
            too_small += 1
            continue
        number, shown = decisive(steps)
        tokens.append(len(arm.prompts(tokenizer).build(steps[number][0]).ids or ()))
        by_place[task.family] += shown
    return Survival(len(tasks), by_place, too_small, sum(tokens) / len(tokens) if tokens else 0.0)
