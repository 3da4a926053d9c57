"""Policy `full`: everything that was said, append-only; refuses when the budget is passed."""

from __future__ import annotations

from dataclasses import dataclass

from nbagent_context.types import Brief, Budget, BudgetTooSmall, Count, History, Notebook, Window, exchanges_of, message


@dataclass(frozen=True, slots=True)
class Full:
    """Every prompt is a prefix of the next one, but for the notice at the end."""

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window:
        """System and task, then each exchange as an assistant and a user message.

        Raises:
            BudgetTooSmall: the history has outgrown the budget.
        """
        messages = [message("system", [brief.instruction])] if brief.instruction else []
        messages.append(message("user", [brief.task]))
        for exchange in exchanges_of(history):
            messages.append(message("assistant", [exchange.text]))
            messages.append(message("user", [exchange.observation]))
        if notice:
            messages[-1]["content"].append({"type": "text", "text": f"\n{notice}"})
        tokens = sum(budget.per_message + sum(count(p["text"]) for p in m["content"]) for m in messages)
        if tokens > budget.tokens:
            raise BudgetTooSmall(tokens, budget.tokens)
        return Window(messages=tuple(messages), tokens=tokens)
