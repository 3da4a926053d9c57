"""Policy `drop`: the task, the notebook as it stands, what the notebook does not show, and the last exchanges in full.

Older outputs shrink to a line, so prompts do not grow with every step and are not prefixes of each other. When the
budget is short, parts shrink further in a fixed order; the task, every cell's id and the newest output survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from nbagent_context.render import ELIDED, cell_text, first_line, head_tail, language_of, output_text
from nbagent_context.types import (
    Brief,
    Budget,
    BudgetTooSmall,
    Count,
    Elision,
    Exchange,
    History,
    Level,
    Notebook,
    Window,
    exchanges_of,
    message,
)


@dataclass(slots=True)
class _Part:
    """One part of the prompt with the smaller forms it may be replaced by, in order."""

    what: str
    forms: list[str]
    levels: list[Level] = field(default_factory=list)
    why: str = ""
    at: int = 0

    @property
    def text(self) -> str:
        return self.forms[self.at]

    def shrink(self, why: str) -> bool:
        if self.at + 1 >= len(self.forms):
            return False
        self.at += 1
        self.why = why
        return True


@dataclass(frozen=True, slots=True)
class Drop:
    """The default policy."""

    keep: int = 1
    """Exchanges whose answers stay in full, the newest ones."""
    output_chars: int = 3000
    """Longest output shown, in characters; longer ones lose their middle."""
    old_chars: int = 80
    """Characters of the one line that is left of an older output; 0 leaves only a mark."""

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window:
        """One system and one user message.

        Raises:
            BudgetTooSmall: the smallest form of every part does not fit.
        """
        exchanges = exchanges_of(history)
        newest = exchanges[len(exchanges) - self.keep :] if self.keep else []
        recent = {exchange.cell_id for exchange in newest if exchange.cell_id}
        parts = [_Part("task", [f"{brief.task}\n"])]
        parts += self._cells(notebook, recent)
        parts += self._unshown(exchanges)
        if notice:
            parts.append(_Part("notice", [f"{notice}\n"]))
        system = [brief.instruction] if brief.instruction else []
        fixed = budget.per_message * (1 + len(system)) + sum(count(text) for text in system)
        tokens = fixed + sum(count(part.text) for part in parts if part.text)
        order = [p for p in parts if p.what.startswith("output") or p.what.startswith("exchange")] + [
            p for p in parts if p.what.startswith("source")
        ]
        while tokens > budget.tokens:
            part = next((p for p in order if p.at + 1 < len(p.forms)), None)
            if part is None:
                raise BudgetTooSmall(tokens, budget.tokens)
            before = count(part.text)
            part.shrink("budget")
            tokens += count(part.text) - before
        elisions = tuple(
            Elision(part.what, part.levels[part.at - 1], count(part.forms[0]) - count(part.text), part.why)
            for part in parts
            if part.at
        )
        messages = [message("system", system)] if system else []
        messages.append(message("user", [part.text for part in parts]))
        return Window(messages=tuple(messages), tokens=tokens, elisions=elisions)

    def _cells(self, notebook: Notebook, recent: set[str]) -> list[_Part]:
        language = language_of(notebook)
        parts: list[_Part] = []
        for cell in notebook["cells"]:
            source = cell_text(cell, language)
            small = f"[{cell['id']}]\n{ELIDED}\n"
            forms = [source, small] if len(small) < len(source) else [source]
            parts.append(_Part(f"source of {cell['id']}", forms, ["dropped"]))
            if cell["cell_type"] != "code":
                continue
            text = output_text(cell["outputs"])
            if not text:
                continue
            part = _Part(f"output of {cell['id']}", [f"{text}\n"])
            if len(text) > self.output_chars:
                part.forms.append(f"{head_tail(text, self.output_chars)}\n")
                part.levels.append("head_tail")
                part.shrink("size")
            line = f"{first_line(text, self.old_chars)}\n" if self.old_chars else f"{ELIDED}\n"
            if len(line) < len(part.text):
                part.forms.append(line)
                part.levels.append("line" if self.old_chars else "dropped")
                if cell["id"] not in recent:
                    part.shrink("age")
            parts.append(part)
        return parts

    def _unshown(self, history: Sequence[Exchange]) -> list[_Part]:
        """Answers that the notebook does not show: files read, malformed actions, notices of a lost kernel."""
        parts = []
        for place, exchange in enumerate(history):
            if exchange.shown:
                continue
            old = place < len(history) - self.keep
            what = exchange.short or "not an action"
            full = f"> {what}\n{head_tail(exchange.observation, self.output_chars)}\n"
            part = _Part(f"exchange {exchange.step}", [full, f"> {what}\n"], ["dropped"])
            if old:
                part.shrink("age")
            parts.append(part)
        return parts
