"""Policy `summarize`: everything that was said, until it is too much; then the model writes a memory in its place.

After Lu et al., "Scaling LLM Multi-turn RL with End-to-end Summarization-based Context Management" (SUPO,
arXiv:2510.06727): the next stretch begins with the task and the memory. Here the last exchanges stay in full as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nbagent_context.cut import head_tail
from nbagent_context.elide import HIGH, full_tokens
from nbagent_context.exchanges import conversation, ending_of, items_of, left_behind
from nbagent_context.history import memories_of
from nbagent_context.types import (
    Brief,
    Budget,
    BudgetTooSmall,
    Count,
    Elision,
    History,
    Notebook,
    SummaryRequest,
    Window,
    exchanges_of,
    measure,
)

ASK = (
    "\n\nSteps {first} to {last} will be left out from now on. Write what you must remember of them and of your memory "
    "so far: values found, with their names; variables and cells there are; what failed and why; what is left to do. "
    "Plain text of at most {tokens} tokens, no action."
)


@dataclass(frozen=True, slots=True)
class Summarize:
    """Prompts are prefixes of each other from one memory to the next."""

    keep: int = 2
    """Exchanges that a memory leaves in full, the newest ones."""
    threshold: float = 0.7
    """A memory is asked for when the exchanges take more than this share of the room they have."""
    max_tokens: int = 256
    """Longest memory in tokens; a longer one is cut."""
    max_summaries: int = 8
    """Memories in an attempt; after the last one old exchanges are dropped without."""

    def __post_init__(self) -> None:
        if self.keep < 1 or self.max_tokens < 1 or self.max_summaries < 0 or not 0 < self.threshold <= HIGH:
            raise ValueError(
                f"context policy 'summarize': keep and max_tokens must be at least 1, 0 < threshold <= {HIGH}"
            )

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window | SummaryRequest:
        """The next prompt, or the request for a memory.

        Raises:
            BudgetTooSmall: the smallest form of what must survive does not fit.
        """
        exchanges, memories = exchanges_of(history), memories_of(history)
        covered = memories[-1].covers if memories else 0
        written = memories[-1].text if memories else ""
        fitting = _fitting(written, self.max_tokens, count)
        opening = _opening(fitting, covered)
        items = items_of(exchanges, covered, self.keep, notebook)
        if len(exchanges) - covered > self.keep and len(memories) < self.max_summaries:
            fixed = sum(count(part) for part in [brief.instruction, brief.task, *opening] if part)
            room = budget.tokens - 2 * budget.per_message - fixed
            if sum(item.kept.sizes(count)[1] + 2 * budget.per_message for item in items) > self.threshold * room:
                request = self._request(brief, notebook, history, notice, opening, covered, budget, count)
                if request is not None:
                    return request
        for text in _shorter(fitting):
            try:
                opening = _opening(text, covered)
                made = conversation(brief, opening, items, ending_of(notice), notebook, exchanges, budget, count)
                break
            except BudgetTooSmall:
                # The memory need not survive; what must does without it, or not at all.
                if not text:
                    raise
        if not covered:
            return made
        aged = left_behind(exchanges[:covered], items, "replaced by a memory" if written else "no memory", count)
        # What is lost of the memory itself is lost of what it replaced.
        aged = replace(aged, tokens_saved=aged.tokens_saved - sum(map(count, opening)))
        cut = [_cut(written, text, "size" if text == fitting else "budget", count)] if text != written else []
        return replace(made, elisions=(aged, *cut, *made.elisions))

    def _request(
        self,
        brief: Brief,
        notebook: Notebook,
        history: History,
        notice: str,
        opening: list[str],
        covered: int,
        budget: Budget,
        count: Count,
    ) -> SummaryRequest | None:
        """The prompt so far with a question at its end; None where there is no room for it and its answer."""
        exchanges = exchanges_of(history)
        covers = len(exchanges) - self.keep
        ask = ASK.format(first=covered, last=covers - 1, tokens=self.max_tokens)
        # The prompt after it has the memory's heading and the notice where this one has the question.
        after = sum(count(part) for part in [*_opening(" ", covers), *ending_of(notice)])
        taken = self.max_tokens + max(after - count(ask), 0)
        room = replace(budget, tokens=budget.tokens - taken, image_tokens=0)
        items = items_of(exchanges, covered, self.keep, notebook)
        try:
            made = conversation(brief, opening, items, [ask], notebook, exchanges, room, count, (1, 1))
        except BudgetTooSmall:
            return None
        return SummaryRequest(
            made.messages, measure(made.messages, budget, count), covers, self.max_tokens, made.elisions
        )


def _opening(text: str, covered: int) -> list[str]:
    return [f"\nYour memory of steps 0 to {covered - 1}:\n{text}"] if text else []


def _fitting(text: str, tokens: int, count: Count) -> str:
    """The memory, cut where the model wrote more than it was asked for."""
    while text and (taken := count(text)) > tokens:
        shorter = head_tail(text, len(text) * tokens // taken)
        text = shorter if len(shorter) < len(text) else text[: min(len(text) * tokens // taken, len(text) - 1)]
    return text


def _shorter(text: str) -> list[str]:
    """A memory at every length, the whole first, nothing last."""
    return list(dict.fromkeys([text, *(head_tail(text, len(text) // part) for part in (2, 4)), ""]))


def _cut(written: str, shown: str, why: str, count: Count) -> Elision:
    saved = full_tokens(written, count) - (count(shown) if shown else 0)
    return Elision("memory", "head_tail" if shown else "dropped", saved, why)
