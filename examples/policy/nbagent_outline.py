"""Policy `outline`: the task, the first line of every cell, and the newest answer in full.

A policy is a function of what it is given and of nothing else: no clock, no randomness, nothing kept between calls.
That is what lets anybody make a prompt again from the log of an attempt (`nbagent.rebuild`).
"""

from dataclasses import dataclass

from nbagent_context import Brief, Budget, BudgetTooSmall, Elision, History, Window, exchanges_of, message
from nbagent_context.types import Count, Notebook, measure


@dataclass(frozen=True)
class Outline:
    """Fields are the policy's options: `policy_options = { chars = 40 }` in a recipe."""

    chars: int = 60
    """Characters shown of a cell's first line."""

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window:
        """The prompt of the next step. Raises BudgetTooSmall."""
        lines, saved = [], 0
        for cell in notebook["cells"]:
            lines.append(f"[{cell['id']}] {cell['source'].splitlines()[0][: self.chars] if cell['source'] else ''}\n")
            saved += count(cell["source"]) - count(lines[-1])
        # Each text is a part, encoded on its own: what stays the same from step to step comes first.
        parts = [f"{brief.task}\n", *lines, *[e.observation for e in exchanges_of(history)[-1:]]]
        messages = (message("system", [brief.instruction]), message("user", [*parts, f"\n{notice}" if notice else ""]))
        tokens = measure(messages, budget, count)
        if tokens > budget.tokens:
            raise BudgetTooSmall(tokens, budget.tokens)
        elision = Elision(f"{len(lines)} cells", "line", saved, "age")
        return Window(messages, tokens, (elision,) if lines else ())
