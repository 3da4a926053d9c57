"""Policy `drop`: the task, the notebook as it stands, what the notebook does not show, and the last exchanges in full.

Outputs stay as long as there is room; then those of a batch of the oldest cells shrink to a line, cells before them to
one line each, and the oldest go (`elide.py`). Between two batches each prompt is a prefix of the next, but for the
notice and what the notebook does not show. A `frugal` one cuts older outputs at once, so that prompts stay short.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_up
from itertools import groupby

from nbagent_context.cache import Cache
from nbagent_context.cut import ELIDED, head_tail
from nbagent_context.elide import (
    SURVIVES_CHARS,
    Form,
    Forms,
    Item,
    answer_tokens,
    batches,
    cut_before,
    fit,
    least,
    record,
)
from nbagent_context.exception import exception_in, exception_of, head_line_tail
from nbagent_context.history import newest_error, newest_output
from nbagent_context.images import newest_images
from nbagent_context.render import CellView, cell_view, content_chars, content_key, language_of
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

ACTIONS = 1 / 8
"""Share of the room that the list of own actions may take before its older half goes."""
SHORT_CHARS = 80
"""Characters of why an action in the list failed."""
_made = Cache()
_numbers = count_up()
_settings: dict[Drop, int] = {}
"""A number for each, which is quicker to hash for every cell; no two have the same, whatever threads ask."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The default policy. One system and one user message."""

    keep: int = 1
    """Exchanges that stay in full, the newest ones; at least 1."""
    output_chars: int = 3000
    """Longest output shown, in characters; longer ones lose their middle."""
    old_chars: int = 80
    """Characters of the one line that is left of an older output; 0 leaves only a mark."""
    frugal: bool = False
    """Cut every output as soon as it is older than the last `keep`, room or not: shorter prompts, and less is known."""

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError("context policy 'drop': keep must be at least 1, the newest answer is always shown")

    def window(
        self, brief: Brief, notebook: Notebook, history: History, notice: str, budget: Budget, count: Count
    ) -> Window:
        """The next prompt.

        Raises:
            BudgetTooSmall: the smallest form of what must survive does not fit.
        """
        exchanges = exchanges_of(history)
        system = [brief.instruction] if brief.instruction else []
        ends = [f"{brief.task}\n", *([f"{notice}\n"] if notice else [])]
        fixed = budget.per_message * (1 + len(system)) + sum(count(text) for text in [*system, *ends])
        error, output, newest = newest_error(exchanges, notebook), newest_output(exchanges, notebook), exchanges[-1:]
        recent = {e.step: e for e in (*([error] if error else []), *exchanges[-self.keep :])}
        untold = _untold(exchanges, notebook)
        cells = self._cells(notebook, recent.values(), {e.cell_id for e in (error, output, *newest) if e})
        last = self._last(recent.values(), untold, {e.step for e in (error, *newest) if e})
        older = [exchange for exchange in exchanges if exchange.step in untold and exchange.step not in recent]

        def gaps() -> int:
            return sum(count(gap) for gap in _gaps(cells)) if None in [item.shown for item in cells] else 0

        needed = fixed + least([*cells, *last], 0, count, gaps)
        if needed > budget.tokens:
            raise BudgetTooSmall(needed, budget.tokens)
        # What must survive comes first: images and the list of actions get what it leaves.
        images, left_out = newest_images(notebook, exchanges, budget, budget.tokens - needed)
        pictured = budget.image_tokens * len(images)
        fixed += pictured
        listed, actions_left_out = self._actions(older, budget.tokens - fixed, budget.tokens - needed - pictured, count)
        fixed += sum(count(text) for text in listed)
        mark = count(_gap(["c100000", "c100000"]))
        tokens = fixed + fit([*cells, *last], budget.tokens - fixed, mark, 0, count, gaps)
        told = {int(item.name): item.shown for item in last if item.shown is not None}
        answers = [text for form in told.values() for text in form.texts]
        user = message("user", [ends[0], *_texts(cells), *listed, *answers])
        user["content"] += images
        if notice:
            user["content"].append({"type": "text", "text": ends[1]})
        messages = (*([message("system", system)] if system else []), user)
        elisions = [*record(cells, "cell", count), *actions_left_out, *record(last, "exchange", count)]
        answered = [step for step, form in told.items() if step in untold and form.level != "dropped"]
        elisions += [*cut_before([recent[step] for step in answered], count), *left_out]
        return Window(messages=messages, tokens=tokens, elisions=tuple(elisions))

    def _cells(self, notebook: Notebook, recent: Iterable[Exchange], must: set[str]) -> list[Item]:
        """The notebook's cells; those in `must` keep something of their output whatever happens."""
        kept = {exchange.cell_id for exchange in recent} | must
        language, settings = language_of(notebook), _settings.setdefault(self, next(_numbers))
        items = []
        for cell in notebook["cells"]:
            name, key = cell["id"], (settings, *content_key(cell, language))
            made: tuple[CellView, str, Forms] | None = _made.get(key)
            if made is None:
                view = cell_view(cell, language, self.old_chars)
                failure = exception_in(cell.get("outputs", ()))
                line = Form((f"{view.line}\n",), "", "line", "budget")
                old, shown = self._aged(view, failure), self._shown(view, failure, self.output_chars, "size")
                made = view, failure, Forms(_whole(view), old if self.frugal else shown, old, line)
                _made.put(key, made, 3 * content_chars(key))
            protected = self._protected(*made, name in must) if name in kept else ()
            items.append(Item(name, made[2], protected, spare=name not in must))
        return items

    def _shown(self, view: CellView, failure: str, chars: int, why: str) -> Form:
        """Source and output, each at most `chars` long; `failure` is the output's line that must not be cut out."""
        source, output = view.source, view.output
        if len(source) > chars:
            source = f"{head_tail(source, chars)}\n"
        if len(output) > chars:
            output = head_line_tail(output, chars, failure)
        if source is view.source and output is view.output:
            return _whole(view)
        what = "output of" if source is view.source else ""
        return Form((source, f"{output}\n") if output else (source,), what, "head_tail", why)

    def _aged(self, view: CellView, failure: str) -> Form:
        form = self._shown(view, failure, self.output_chars, "size")
        if len(view.output_line) >= len(view.output):
            return form
        level: Level = "line" if self.old_chars else "dropped"
        why = "age" if self.frugal else "budget"
        return Form((form.texts[0], f"{view.output_line}\n"), "output of", level, why)

    def _protected(self, view: CellView, failure: str, forms: Forms, must: bool) -> tuple[Form, ...]:
        sizes = [self.output_chars // 2**i for i in range(1, 12) if self.output_chars // 2**i > SURVIVES_CHARS]
        shrinking = [self._shown(view, failure, self.output_chars, "size")]
        shrinking += [self._shown(view, failure, size, "budget") for size in (*sizes, SURVIVES_CHARS)]
        if not must:
            shrinking += [replace(forms.old, why="budget") if forms.old.level else forms.old, forms.line]
        return tuple(dict.fromkeys(shrinking))

    def _last(self, recent: Iterable[Exchange], untold: set[int], must: set[int]) -> list[Item]:
        """The last exchanges, as far as the notebook does not show them."""
        items = []
        for exchange in recent:
            answer = exchange.observation if exchange.step in untold else ""
            whole = "".join(f"{text}\n" for text in (exchange.thought, answer) if text)
            if not whole and exchange.step not in untold:
                continue
            head = f"> {exchange.short or 'not an action'}\n"
            full = Form((f"{head}{whole}",))
            forms = [full] if len(whole) <= self.output_chars else []
            for size in (self.output_chars, self.output_chars // 4, SURVIVES_CHARS):
                if len(whole) > size:
                    why = "budget" if forms else "size"
                    cut = head_line_tail(whole, size, exception_of(exchange) if answer else "")
                    forms.append(Form((f"{head}{cut}\n",), "", "head_tail", why))
            line = _action_line(exchange)
            # A line names a failure, which the notebook may show already: a short thought alone takes less.
            if exchange.step not in must and len(line) <= len(full.texts[0]):
                forms.append(Form((line,), "answer of", "dropped", "budget"))
            name, kept = str(exchange.step), Forms(full, full, full, full)
            items.append(Item(name, kept, tuple(forms), spare=exchange.step not in must))
        return items

    def _actions(
        self, older: Sequence[Exchange], room: int, most: int, count: Count
    ) -> tuple[list[str], list[Elision]]:
        """Older actions, a line each, in `most` tokens; when they pass their share of the room the older half goes."""
        lines = [_action_line(exchange) for exchange in older]
        sizes = [count(line) for line in lines]
        _, gone, _ = batches(sizes, sizes, [0] * len(sizes), int(room * ACTIONS), int(room * ACTIONS / 2))
        while sum(sizes[gone:]) + (count(_earlier(gone)) if gone else 0) > most and gone < len(lines):
            gone += 1
        listed = ([_earlier(gone)] if gone else []) + lines[gone:]
        if gone == len(lines) and gone and count(listed[0]) > most:
            listed = []
        elisions = []
        answers = [answer_tokens(exchange, count) + count("\n") for exchange in older if exchange.observation]
        if answers:
            what = f"answer of exchange {older[0].step}" if len(older) == 1 else f"answers of {len(answers)} exchanges"
            elisions.append(Elision(what, "dropped", sum(answers), "age"))
        if gone:
            elisions.append(Elision(f"{gone} actions", "dropped", sum(sizes[:gone]), "budget"))
        return listed, elisions


def _untold(exchanges: Sequence[Exchange], notebook: Notebook) -> set[int]:
    """Steps whose action and answer the notebook does not show: no run, or a run whose cell was touched since."""
    there = {cell["id"] for cell in notebook["cells"]}
    touched: set[str] = set()
    steps = set()
    for exchange in reversed(exchanges):
        if not exchange.shown or exchange.cell_id not in there or exchange.cell_id in touched:
            steps.add(exchange.step)
        touched.add(exchange.cell_id)
    return steps


def _action_line(exchange: Exchange) -> str:
    failed = f": {exception_of(exchange)[:SHORT_CHARS]}" if exchange.failed and exchange.short else ""
    return f"> {exchange.short or 'not an action'}{failed}\n"


def _earlier(number: int) -> str:
    return f"> {ELIDED} {number} earlier actions\n"


def _whole(view: CellView) -> Form:
    return Form((view.source, f"{view.output}\n") if view.output else (view.source,))


def _gap(names: Sequence[str]) -> str:
    return f"[{names[0]}]\n{ELIDED}\n" if len(names) == 1 else f"[{names[0]} … {names[-1]}]\n{ELIDED}\n"


def _texts(items: Sequence[Item]) -> list[str]:
    """The items' texts, with a mark for those left out in a row that has the first and the last id."""
    texts: list[str] = []
    gone: list[str] = []
    for item in items:
        if item.shown is None:
            gone.append(item.name)
            continue
        if gone:
            texts.append(_gap(gone))
            gone = []
        texts += item.shown.texts
    return [*texts, _gap(gone)] if gone else texts


def _gaps(items: Sequence[Item]) -> list[str]:
    """The marks among `_texts`."""
    rows = groupby(items, key=lambda item: item.shown is None)
    return [_gap([item.name for item in row]) for gone, row in rows if gone]
