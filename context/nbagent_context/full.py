"""Policy `full`: everything that was said, append-only; refuses when the budget is passed."""

from __future__ import annotations

from dataclasses import dataclass

from nbagent_context.elide import cut_before
from nbagent_context.exchanges import ending_of
from nbagent_context.images import newest_images
from nbagent_context.types import (
    Brief,
    Budget,
    BudgetTooSmall,
    Count,
    History,
    Notebook,
    Window,
    exchanges_of,
    measure,
    message,
)


@dataclass(frozen=True, slots=True)
class Full:
    """Every prompt is a prefix of the next one, but for the notice and the images at the end."""

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window:
        """System and task, then each exchange as an assistant and a user message.

        Raises:
            BudgetTooSmall: the history has outgrown the budget.
        """
        exchanges = exchanges_of(history)
        messages = [message("system", [brief.instruction])] if brief.instruction else []
        messages.append(message("user", [brief.task]))
        for exchange in exchanges:
            messages += [message("assistant", [exchange.text]), message("user", [exchange.observation])]
        ending = message("", ending_of(notice))["content"]
        tokens = measure([*messages, {"content": ending}], budget, count) - budget.per_message
        if tokens > budget.tokens:
            raise BudgetTooSmall(tokens, budget.tokens)
        images, left_out = newest_images(notebook, exchanges, budget, budget.tokens - tokens)
        messages[-1]["content"] += [*images, *ending]
        tokens += budget.image_tokens * len(images)
        return Window(tuple(messages), tokens, (*cut_before(exchanges, count), *left_out))
