"""What goes when room is short, and the record of it.

A prompt is made of items, oldest first: cells, or exchanges. An item stands whole, as an old one (of a cell's output a
line is left), as one line, or not at all; some are protected and shrink through forms of their own instead. Elision
comes in batches: nothing goes until what stands passes a high-water mark, then the oldest items go until a low-water
mark is reached. Where the marks are passed is found by walking through the items from the first one, so that it depends
on nothing but them, and the next prompt, one item later, finds the same places: prompts stay prefixes of each other
from batch to batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from nbagent_context.cache import Cache
from nbagent_context.types import Count, Elision, Exchange, Level

HIGH, LOW = 3 / 4, 1 / 2
"""Water marks, as shares of the room that the items have."""
SHARE = 1 / 3
"""Share of what stands at the low-water mark that lines of old items may take, and as much again old ones."""
SURVIVES_CHARS = 200
"""Characters that are left of a protected text at the least, head and tail."""
COUNTED_CHARS = 20_000
"""Characters from which the tokens of a longer text are estimated, for the record of what its elision saved."""
_full = Cache()


@dataclass(frozen=True, slots=True)
class Form:
    """One way to show an item."""

    texts: tuple[str, ...]
    what: str = ""
    """What was cut, e.g. `output of`; '' with level None."""
    level: Level | None = None
    """None: nothing was cut."""
    why: str = ""

    def tokens(self, count: Count) -> int:
        """Sum over the texts."""
        return sum([count(text) for text in self.texts])


@dataclass(slots=True)
class Forms:
    """An item at every length; made once for each content, and counted once for each counter."""

    full: Form
    """With nothing cut; what the record of savings compares with."""
    whole: Form
    """While there is room."""
    old: Form
    """When there is less; the same as `whole` where there is nothing between that and a line."""
    line: Form
    """When there is still less."""
    _counted: tuple[Count, tuple[int, int, int, int]] | None = field(default=None, init=False, repr=False)

    def sizes(self, count: Count) -> tuple[int, int, int, int]:
        """Tokens of full, whole, old, line."""
        counted = self._counted
        if counted is None or counted[0] != count:
            full = sum([full_tokens(text, count) for text in self.full.texts])
            counted = count, (full, self.whole.tokens(count), self.old.tokens(count), self.line.tokens(count))
            self._counted = counted
        return counted[1]


@dataclass(slots=True)
class Item:
    """A cell or an exchange, in its place."""

    name: str
    kept: Forms
    protected: tuple[Form, ...] = ()
    """Of a protected item, largest first: it is never dropped, and its other forms are not used."""
    spare: bool = False
    """Of a protected item: it is dropped all the same where there would be no prompt otherwise."""
    shown: Form | None = field(default=None, init=False)
    """What was settled on; None: dropped."""


def fit(
    items: Sequence[Item],
    room: int,
    mark: int,
    per_item: int,
    count: Count,
    gaps: Callable[[], int],
    reserve: int = 0,
    marks: tuple[float, float] = (HIGH, LOW),
) -> int:
    """Choose how each item is shown, so that items and marks take no more than the room; sets their `shown`.

    Args:
        items: oldest first.
        room: tokens, not fewer than `least` takes.
        mark: tokens of a mark for items left out in a row, as far as can be said before they are chosen.
        per_item: tokens an item takes beside its texts.
        count: of texts.
        gaps: says how many tokens the marks take as the items are shown.
        reserve: tokens kept free for marks of what are no items.
        marks: high- and low-water mark, as shares of the room.

    Returns:
        The tokens of what is shown, marks included.
    """
    aim = room - reserve
    while True:
        tokens, fits = settle(items, aim, mark, per_item, count, marks)
        tokens += gaps()
        if tokens <= room:
            return tokens
        if not fits:
            break
        # A mark takes more than was thought: of some tokenizers, that of a shorter text is longer.
        aim -= tokens - room
    spare = [item for item in items if item.spare and item.protected][::-1]
    for item in items:
        item.shown = _shortest(item, count)
    while (tokens := _standing(items, per_item, count) + gaps()) > room and spare:
        spare.pop().shown = None
    return tokens


def least(items: Sequence[Item], per_item: int, count: Count, gaps: Callable[[], int]) -> int:
    """Show of items that must stay the shortest form and of others nothing; the tokens of that, marks included."""
    for item in items:
        item.shown = None if item.spare else _shortest(item, count)
    return _standing(items, per_item, count) + gaps()


def _shortest(item: Item, count: Count) -> Form | None:
    return min(item.protected, key=lambda form: form.tokens(count)) if item.protected else None


def _standing(items: Sequence[Item], per_item: int, count: Count) -> int:
    return sum([item.shown.tokens(count) + per_item for item in items if item.shown is not None])


def settle(
    items: Sequence[Item], room: int, mark: int, per_item: int, count: Count, marks: tuple[float, float] = (HIGH, LOW)
) -> tuple[int, bool]:
    """Choose how each item is shown: sets their `shown`.

    Args:
        items: oldest first.
        room: tokens.
        mark: tokens of the line that stands for items left out in a row.
        per_item: tokens an item takes beside its texts.
        count: of texts.
        marks: high- and low-water mark, as shares of the room.

    Returns:
        The tokens of what is shown, marks not counted, and whether it fits, marks included.
    """
    loose = [item for item in items if not item.protected]
    kept = [item for item in items if item.protected]
    sizes = [item.kept.sizes(count) for item in loose]
    whole = [size[1] + per_item for size in sizes]
    # Calls of min() were about a tenth of a prompt's time, profiled.
    old = [one if one < (short := size[2] + per_item) else short for size, one in zip(sizes, whole, strict=True)]
    lines = [one if one < (short := size[3] + per_item) else short for size, one in zip(sizes, old, strict=True)]
    taken = 0
    for item in kept:
        item.shown = item.protected[0]
        taken += item.shown.tokens(count) + per_item
    standing = _choose(loose, whole, old, lines, int(room * marks[0]), int(room * marks[1]))
    gaps = mark * _runs_left_out(items)
    for item in kept:
        for form in item.protected[1:]:
            if taken + standing + gaps <= room:
                break
            assert item.shown is not None
            taken += form.tokens(count) - item.shown.tokens(count)
            item.shown = form
    limit = room - taken
    while (over := taken + standing + gaps - room) > 0 and any(item.shown for item in loose):
        limit = min(limit, standing) - over
        standing = _choose(loose, whole, old, lines, limit, limit, share=1)
        gaps = mark * _runs_left_out(items)
    return taken + standing, over <= 0


def _runs_left_out(items: Sequence[Item]) -> int:
    gone = [item.shown is None for item in items]
    return sum([now and not before for now, before in zip(gone, [False, *gone], strict=False)]) if any(gone) else 0


def _choose(
    items: Sequence[Item],
    whole: list[int],
    old: list[int],
    lines: list[int],
    high: int,
    low: int,
    share: float = SHARE,
) -> int:
    dropped, lined, aged = batches(whole, old, lines, high, low, share)
    for number, item in enumerate(items):
        if number >= aged:
            item.shown = item.kept.whole
        elif number < dropped:
            item.shown = None
        elif number < lined and lines[number] < old[number]:
            item.shown = item.kept.line
        else:
            item.shown = item.kept.old if old[number] < whole[number] else item.kept.whole
    return sum(lines[dropped:lined]) + sum(old[lined:aged]) + sum(whole[aged:])


def batches(
    whole: Sequence[int], old: Sequence[int], lines: Sequence[int], high: int, low: int, share: float = SHARE
) -> tuple[int, int, int]:
    """How many of the first items are dropped, are at most a line, are at most old; each includes those before it.

    Args:
        whole: tokens of each item.
        old: tokens of each as an old one.
        lines: tokens of each as one line.
        high: nothing goes before so many tokens stand.
        low: then items go until no more than so many do.
        share: of `low` that lines may take, and old items, while there are others.
    """
    dropped = lined = aged = total = of_lines = of_old = 0
    for number, tokens in enumerate(whole):
        total += tokens
        if total <= high:
            continue
        while total > low and dropped <= number:
            if dropped < lined and (of_lines > low * share or lined > number):
                total -= lines[dropped]
                of_lines -= lines[dropped]
                dropped += 1
            elif lined < aged and (of_old > low * share or aged > number):
                total -= old[lined] - lines[lined]
                of_old -= old[lined]
                of_lines += lines[lined]
                lined += 1
            else:
                total -= whole[aged] - old[aged]
                of_old += old[aged]
                aged += 1
    return dropped, lined, aged


def record(items: Sequence[Item], noun: str, count: Count) -> list[Elision]:
    """What was cut, one entry for each kind of cut with the items it struck; `noun` is what items are called.

    One entry for each item would make the log of a long attempt grow with the square of its length.
    """
    found: dict[tuple[str, Level, str], list[tuple[str, int]]] = {}
    for item in items:
        shown = item.shown
        if shown is None:
            found.setdefault(("", "dropped", "budget"), []).append((item.name, item.kept.sizes(count)[0]))
        elif shown.level is not None:
            kept = item.kept
            full, *sizes = kept.sizes(count)
            known = zip((kept.whole, kept.old, kept.line), sizes, strict=True)
            tokens = next((size for form, size in known if form is shown), None)
            tokens = shown.tokens(count) if tokens is None else tokens
            found.setdefault((shown.what, shown.level, shown.why), []).append((item.name, full - tokens))
    return [
        Elision(_subject(what, noun, [name for name, _ in struck]), level, sum(saved for _, saved in struck), why)
        for (what, level, why), struck in found.items()
    ]


def full_tokens(text: str, count: Count) -> int:
    """Tokens of a text that was cut; of a long one estimated from its beginning, since encoding it takes seconds.

    The number is kept here, so that whoever counts need not keep what no prompt shows.
    """
    tokens: int | None = _full.get((text, count))
    if tokens is None:
        beginning = text[:COUNTED_CHARS]
        tokens = count(beginning)
        if beginning != text:
            tokens = tokens * len(text) // COUNTED_CHARS
        _full.put((text, count), tokens, len(text) + 100)
    return tokens


def answer_tokens(exchange: Exchange, count: Count) -> int:
    """Tokens of an exchange's whole answer; of one that the environment cut, estimated from what it left."""
    tokens = full_tokens(exchange.observation, count)
    return max(tokens, tokens * exchange.full_chars // max(len(exchange.observation), 1))


def cut_before(exchanges: Sequence[Exchange], count: Count) -> list[Elision]:
    """The record of those shown answers that the environment had cut before any policy saw them."""
    cut = [exchange for exchange in exchanges if exchange.full_chars]
    if not cut:
        return []
    first, last = cut[0].step, cut[-1].step
    what = f"answer of exchange {first}" if len(cut) == 1 else f"answers of {len(cut)} exchanges, {first} to {last}"
    saved = sum(answer_tokens(exchange, count) - full_tokens(exchange.observation, count) for exchange in cut)
    return [Elision(what, "head_tail", saved, "cut by the environment")]


def _subject(what: str, noun: str, names: Sequence[str]) -> str:
    """`output of c3`, `cell c4`, `output of 12 cells, c1 to c20`."""
    if len(names) == 1:
        return f"{what} {names[0]}" if what else f"{noun} {names[0]}"
    many = f"{len(names)} {noun}s, {names[0]} to {names[-1]}"
    return f"{what} {many}" if what else many
