"""Policy `window`: the task and the last exchanges, nothing else; the notebook is not shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nbagent_context.exchanges import conversation, ending_of, items_of, left_behind
from nbagent_context.types import Brief, Budget, Count, History, Notebook, Window, exchanges_of


@dataclass(frozen=True, slots=True)
class LastExchanges:
    """At least the last `n` exchanges. System and task, then each as an assistant and a user message.

    Exchanges leave in batches: until `n + batch` are there nothing leaves, and each prompt is a prefix of the next.
    """

    n: int = 4
    """Exchanges shown at least."""
    batch: int = 4
    """Exchanges that leave together; 1 shows exactly `n`, and no prompt is a prefix of the next."""

    def __post_init__(self) -> None:
        if self.n < 1 or self.batch < 1:
            raise ValueError("context policy 'window': n and batch must be at least 1")

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window:
        """The next prompt.

        Raises:
            BudgetTooSmall: the smallest form of what must survive does not fit.
        """
        exchanges = exchanges_of(history)
        start = max((len(exchanges) - self.n) // self.batch, 0) * self.batch
        items = items_of(exchanges, start, 1, notebook)
        made = conversation(brief, [], items, ending_of(notice), notebook, exchanges, budget, count)
        if not start:
            return made
        return replace(made, elisions=(left_behind(exchanges[:start], items, "age", count), *made.elisions))
