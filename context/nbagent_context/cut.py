"""Long text made shorter: whole rows and whole columns go, from the middle, and a mark says how many.

A line is cut inside a value only where it has no separators at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from nbagent_context.cache import Cache
from nbagent_context.columns import DELIMITERS, Table, table_of

ELIDED = "…"
SHORTEST = 60
"""No text of so many characters is cut: a mark takes about half of that."""
ROWS = 8
"""Of a table so many rows are to be seen, so its width is at most this part of the room, but not less than WIDTH."""
WIDTH = 120
MARKED = 40
"""Characters that a line keeps at least when its middle goes, the mark with them, but for tables of narrow columns."""
_SEPARATOR = re.compile(r",\s*|;\s*|\t|\s+")
_LARGE = 200_000
"""Characters of a line beyond which its values are not looked for."""
_cuts = Cache()


def head_tail(text: str, chars: int) -> str:
    """At most `chars` characters (or SHORTEST, where that is more): head, mark, tail. Idempotent.

    Lines that are too long lose columns or values from their middle, then rows go from the middle.
    """
    chars = max(chars, SHORTEST)
    if len(text) <= chars:
        return text
    cut: str | None = _cuts.get((text, chars))
    if cut is None:
        cut = _cut(text, chars)
        _cuts.put((text, chars), cut, len(text) + chars)
    return cut


def _cut(text: str, chars: int) -> str:
    lines = text.split("\n")
    half = (chars - 30) // 2
    width = half if len(lines) < ROWS else min(half, max(chars // ROWS, WIDTH))
    top, hidden = len(lines), 0
    reach = _reach(lines, chars), _reach(lines[::-1], chars)
    if sum(reach) < len(lines):
        top, hidden = reach[0], len(lines) - sum(reach)
        lines[top : len(lines) - reach[1]] = []
    tables = _tables(lines, width)
    narrow = _narrowed(lines, tables, width)
    if not hidden and sum(map(len, narrow)) + len(narrow) - 1 <= chars:
        return "\n".join(narrow)
    room = chars - len(_mark(len(lines) + hidden)) - 2
    head, tail = _shown(narrow, top if hidden else None, room)
    gone = len(lines) - head - tail
    if gone and head + tail:
        # Again, with columns that are as wide as what is shown of them.
        lines[head : head + gone], tables[head : head + gone] = [], []
        top, hidden = head, hidden + gone
        narrow = _narrowed(lines, tables, width)
        head, tail = _shown(narrow, top, room)
    cut = len(lines) + hidden - head - tail
    return "\n".join([*narrow[:head], _mark(cut), *narrow[len(narrow) - tail :]])


def _mark(lines: int) -> str:
    return f"{ELIDED} {lines} lines cut {ELIDED}"


def _reach(lines: Sequence[str], chars: int) -> int:
    """So many of the first lines could be shown at the most; one that loses its middle keeps about MARKED."""
    for number, line in enumerate(lines):
        chars -= min(len(line) + 1, MARKED)
        if chars < 0:
            return number
    return len(lines)


def _shown(lines: Sequence[str], top: int | None, room: int) -> tuple[int, int]:
    """How many lines fit of the head and of the tail; where lines are gone already, that is after the first `top`."""
    head = _fitting(lines[:top], room - room // 2)
    left = room - sum(len(line) + 1 for line in lines[:head])
    return head, _fitting(lines[head if top is None else top :][::-1], left)


def first_line(text: str, chars: int) -> str:
    """The first line, at most `chars` characters, and a mark where more was there."""
    text = text.strip()
    line = text.split("\n", 1)[0][:chars]
    return line if line == text else f"{line}{ELIDED}"


def _fitting(lines: Sequence[str], room: int) -> int:
    """How many of the first lines fit."""
    for number, line in enumerate(lines):
        room -= len(line) + 1
        if room < -1:
            return number
    return len(lines)


def _tables(lines: Sequence[str], width: int) -> list[Table | None]:
    """Of each line the table that it is a row of. A table has rows that are too long; others are shown as they are."""
    tables: list[Table | None] = []
    start = 0
    for at in range(1, len(lines) + 1):
        if at == len(lines) or not _together(lines[at - 1], lines[at], width):
            rows = lines[start:at]
            long = any(len(row) > width for row in rows)
            tables += [table_of(rows, width) if long else None] * len(rows)
            start = at
    return tables


def _together(line: str, following: str, width: int) -> bool:
    """Whether two lines may be rows of one table: both are too long, or they have as many delimiters."""
    if min(len(line), len(following)) > width:
        return True
    return any(line.count(delimiter) == following.count(delimiter) > 2 for delimiter in DELIMITERS)


def _narrowed(lines: Sequence[str], tables: Sequence[Table | None], width: int) -> list[str]:
    """Lines that fit: rows of a table without its middle columns, others without their middle values."""
    narrow: list[str] = []
    for table, run in groupby(zip(lines, tables, strict=True), lambda pair: pair[1]):
        rows = [line for line, _ in run]
        fitting = table.narrowed(rows, width, ELIDED) if table else None
        narrow += fitting or [line if len(line) <= width else _line(line, width) for line in rows]
    return narrow


def _line(line: str, width: int) -> str:
    """One long line with its middle values left out; its middle characters where it has no separators."""
    half = max((width - 30) // 2, 1)
    head, tail = line[:half], line[-half:]
    ends = [mark.end() for mark in _SEPARATOR.finditer(head) if mark.end() < half]
    starts = [mark.start() for mark in _SEPARATOR.finditer(tail)]
    if len(line) < _LARGE and ends and starts and ends[-1] >= half // 2 and starts[0] <= half // 2:
        head, tail = head[: ends[-1]].rstrip(), tail[starts[0] :].lstrip(" \t,;")
        cut = len(_SEPARATOR.findall(line[len(head) : len(line) - len(tail)].strip(" \t,;"))) + 1
        return f"{head} {ELIDED} {cut} values cut {ELIDED} {tail}"
    return f"{head}{ELIDED} {len(line) - 2 * half} characters cut {ELIDED}{tail}"
