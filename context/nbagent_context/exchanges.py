"""Prompts as a conversation: the task, then what the model wrote and what it was answered, as messages in turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from nbagent_context.cache import Cache
from nbagent_context.cut import first_line, head_tail
from nbagent_context.elide import (
    HIGH,
    LOW,
    SURVIVES_CHARS,
    Form,
    Forms,
    Item,
    cut_before,
    fit,
    full_tokens,
    least,
    record,
)
from nbagent_context.exception import exception_of, head_line_tail
from nbagent_context.history import newest_error, newest_output
from nbagent_context.images import newest_images
from nbagent_context.types import (
    Brief,
    Budget,
    BudgetTooSmall,
    Count,
    Elision,
    Exchange,
    Notebook,
    Window,
    message,
)

OUTPUT_CHARS = 3000
"""Longest text and longest answer shown, in characters."""
LINE_CHARS = 80
"""Characters of the one line that is left of an older answer."""
_made = Cache()


def exchange_item(exchange: Exchange, must: bool, recent: bool) -> Item:
    """An exchange as an item of two texts, protected where it `must` keep something or is `recent`."""
    # All that the forms depend on; hashing and comparing the exchange itself takes several times as long.
    key = exchange.text, exchange.observation, exchange.cell_id, exchange.exception, exchange.failed, exchange.shown
    kept: Forms | None = _made.get(key)
    if kept is None:
        answer = exception_of(exchange) or exchange.observation
        answer = answer.replace(f"[{exchange.cell_id}]\n", f"[{exchange.cell_id}] ", 1)
        short = head_tail(exchange.text, SURVIVES_CHARS), first_line(answer, LINE_CHARS)
        full = Form((exchange.text, exchange.observation))
        whole = _cut(exchange, OUTPUT_CHARS, "size")
        kept = Forms(full, whole, whole, Form(short, "", "line", "budget"))
        _made.put(key, kept, 2 * len(exchange.text) + 2 * len(exchange.observation))
    if not must and not recent:
        return Item(str(exchange.step), kept)
    smaller = [_cut(exchange, size, "budget") for size in (OUTPUT_CHARS // 2, OUTPUT_CHARS // 4, SURVIVES_CHARS)]
    forms = [kept.whole, *smaller] if must else [kept.whole, *smaller, kept.line]
    return Item(str(exchange.step), kept, tuple(dict.fromkeys(forms)), spare=not must)


def _cut(exchange: Exchange, chars: int, why: str) -> Form:
    answer = head_line_tail(exchange.observation, chars, exception_of(exchange))
    texts = head_tail(exchange.text, chars), answer
    return Form(texts, "", "head_tail", why) if texts != (exchange.text, exchange.observation) else Form(texts)


def items_of(exchanges: Sequence[Exchange], start: int, keep: int, notebook: Notebook) -> list[Item]:
    """Exchanges from number `start` on, and wherever they are the newest output and the newest error that still stands.

    Those two and the newest exchange keep head and tail; of the newest `keep` at least a line stays while it fits.
    """
    error, output = newest_error(exchanges, notebook), newest_output(exchanges, notebook)
    must = {e.step for e in (error, output, *exchanges[-1:]) if e is not None}
    last = {e.step for e in exchanges[-keep:]} if keep else set()
    shown = [*(e for e in exchanges[:start] if e.step in must), *exchanges[start:]]
    return [exchange_item(e, e.step in must, e.step in last) for e in shown]


def conversation(
    brief: Brief,
    opening: Sequence[str],
    items: Sequence[Item],
    ending: Sequence[str],
    notebook: Notebook,
    exchanges: Sequence[Exchange],
    budget: Budget,
    count: Count,
    marks: tuple[float, float] = (HIGH, LOW),
) -> Window:
    """The prompt of settled-on items.

    Args:
        brief: instruction and task.
        opening: texts after the task.
        items: exchanges, oldest first.
        ending: texts at the very end.
        notebook: whose newest images are shown to a model that sees.
        exchanges: all of them.
        budget: of the prompt.
        count: of texts.
        marks: water marks of elision.

    Raises:
        BudgetTooSmall: what must survive does not fit.
    """
    system = [brief.instruction] if brief.instruction else []
    fixed = budget.per_message * (1 + len(system))
    fixed += sum(count(text) for text in [*system, brief.task, *opening, *ending] if text)
    per_item = 2 * budget.per_message

    def gaps() -> int:
        return sum(count(gap) for _, gap in _shown(items) if gap)

    needed = fixed + least(items, per_item, count, gaps)
    if needed > budget.tokens:
        raise BudgetTooSmall(needed, budget.tokens)
    images, left_out = newest_images(notebook, exchanges, budget, budget.tokens - needed)
    room = budget.tokens - fixed - budget.image_tokens * len(images)
    mark = count(_gap(100_000, 100_001))
    # What is no item leaves three gaps at most, with an error and an output that are kept between them. They are
    # reserved all the time, so that the room, and with it what goes, is the same from one prompt to the next.
    tokens = budget.tokens - room + fit(items, room, mark, per_item, count, gaps, 3 * mark, marks)
    messages = [message("system", system)] if system else []
    messages.append(message("user", [brief.task, *opening]))
    for form, gap in _shown(items):
        if gap:
            messages[-1]["content"] += message("", [gap])["content"]
        text, answer = form.texts
        messages += [message("assistant", [text]), message("user", [answer])]
    messages[-1]["content"] += [*images, *message("", ending)["content"]]
    seen = {item.name for item in items if item.shown is not None}
    cut = cut_before([exchange for exchange in exchanges if str(exchange.step) in seen], count)
    return Window(tuple(messages), tokens, (*record(items, "exchange", count), *cut, *left_out))


def _shown(items: Sequence[Item]) -> Iterator[tuple[Form, str]]:
    """What is shown of items, each with the mark that stands before it for what is not; '' for none."""
    shown = [(int(item.name), item.shown) for item in items if item.shown is not None]
    for (before, _), (step, form) in pairwise([(-1, None), *shown]):
        assert form is not None
        yield form, _gap(before + 1, step - 1) if step > before + 1 else ""


def _gap(first: int, last: int) -> str:
    return f"\n[step {first} not shown]" if first == last else f"\n[steps {first} to {last} not shown]"


def ending_of(notice: str) -> list[str]:
    """The notice as the end of the last message."""
    return [f"\n{notice}"] if notice else []


def left_behind(exchanges: Sequence[Exchange], items: Sequence[Item], why: str, count: Count) -> Elision:
    """The record of exchanges that are no items any more; those among them that are kept all the same do not count."""
    kept = {item.name for item in items}
    gone = [exchange for exchange in exchanges if str(exchange.step) not in kept]
    saved = sum(full_tokens(text, count) for exchange in gone for text in (exchange.text, exchange.observation))
    return Elision(f"{len(gone)} exchanges before step {len(exchanges)}", "dropped", saved, why)
