"""Prompts as a conversation: the task, then what the model wrote and what it was answered, as messages in turn."""

from __future__ import annotations

from collections.abc import Sequence

from nbagent_context.cache import Cache
from nbagent_context.cut import first_line, head_tail
from nbagent_context.elide import HIGH, LOW, SURVIVES_CHARS, Form, Forms, Item, full_tokens, record, settle
from nbagent_context.history import last_line, newest_error
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
    measure,
    message,
)

OUTPUT_CHARS = 3000
"""Longest text and longest answer shown, in characters."""
LINE_CHARS = 80
"""Characters of the one line that is left of an older answer."""
_made = Cache()


def exchange_item(exchange: Exchange, must: bool, recent: bool) -> Item:
    """An exchange as an item of two texts, protected where it `must` keep something or is `recent`."""
    kept: Forms | None = _made.get(exchange)
    if kept is None:
        answer = last_line(exchange.observation) if exchange.failed else exchange.observation
        answer = answer.replace(f"[{exchange.cell_id}]\n", f"[{exchange.cell_id}] ", 1)
        short = head_tail(exchange.text, SURVIVES_CHARS), first_line(answer, LINE_CHARS)
        full = Form((exchange.text, exchange.observation))
        whole = _cut(exchange, OUTPUT_CHARS, "size")
        kept = Forms(full, whole, whole, Form(short, "", "line", "budget"))
        _made.put(exchange, kept, 2 * len(exchange.text) + 2 * len(exchange.observation))
    if not must and not recent:
        return Item(str(exchange.step), kept)
    smaller = [_cut(exchange, size, "budget") for size in (OUTPUT_CHARS // 2, OUTPUT_CHARS // 4, SURVIVES_CHARS)]
    forms = [kept.whole, *smaller] if must else [kept.whole, *smaller, kept.line]
    return Item(str(exchange.step), kept, tuple(dict.fromkeys(forms)))


def _cut(exchange: Exchange, chars: int, why: str) -> Form:
    texts = head_tail(exchange.text, chars), head_tail(exchange.observation, chars)
    return Form(texts, "", "head_tail", why) if texts != (exchange.text, exchange.observation) else Form(texts)


def items_of(exchanges: Sequence[Exchange], start: int, keep: int, notebook: Notebook) -> list[Item]:
    """Exchanges from number `start` on, and the newest error that still stands, wherever it is.

    The newest `keep` may shrink but stay, the newest one and the error keep head and tail.
    """
    error = newest_error(exchanges, notebook)
    shown = [error] if error and error not in exchanges[start:] else []
    newest, last = exchanges[-1:], exchanges[-keep:] if keep else []
    return [exchange_item(e, e is error or e in newest, e in last) for e in [*shown, *exchanges[start:]]]


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
    images, left_out = newest_images(notebook, exchanges, budget)
    system = [brief.instruction] if brief.instruction else []
    mark = count(_gap(100_000, 100_000))
    fixed = budget.per_message * (1 + len(system)) + budget.image_tokens * len(images)
    fixed += sum(count(text) for text in [*system, brief.task, *opening, *ending] if text)
    # Exchanges that are no items leave two gaps at most, with an error that is kept between them.
    fixed += 2 * mark
    _, fits = settle(items, budget.tokens - fixed, mark, 2 * budget.per_message, count, marks)
    messages = [message("system", system)] if system else []
    messages.append(message("user", [brief.task, *opening]))
    following = 0
    for item in items:
        if item.shown is None:
            continue
        step = int(item.name)
        if step > following:
            messages[-1]["content"] += message("", [_gap(following, step - 1)])["content"]
        following = step + 1
        text, answer = item.shown.texts
        messages += [message("assistant", [text]), message("user", [answer])]
    messages[-1]["content"] += [*images, *message("", ending)["content"]]
    tokens = measure(messages, budget, count)
    if not fits and tokens > budget.tokens:
        raise BudgetTooSmall(tokens, budget.tokens)
    return Window(tuple(messages), tokens, (*record(items, "exchange", count), *left_out))


def _gap(first: int, last: int) -> str:
    return f"\n[step {first} not shown]" if first == last else f"\n[steps {first} to {last} not shown]"


def ending_of(notice: str) -> list[str]:
    """The notice as the end of the last message."""
    return [f"\n{notice}"] if notice else []


def left_behind(exchanges: Sequence[Exchange], items: Sequence[Item], why: str, count: Count) -> Elision:
    """The record of exchanges that are no items any more; an error among them that is one is not counted."""
    gone = [exchange for exchange in exchanges if str(exchange.step) != items[0].name]
    saved = sum(full_tokens(text, count) for exchange in gone for text in (exchange.text, exchange.observation) if text)
    return Elision(f"{len(gone)} exchanges before step {len(exchanges)}", "dropped", saved, why)
