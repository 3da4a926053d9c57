"""Long text made shorter: whole rows and whole columns go, from the middle, and a mark says how many.

A line is cut inside a value only where it has no separators at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby

from nbagent_context.cache import Cache

ELIDED = "…"
SHORTEST = 60
"""No text of so many characters is cut: a mark takes about half of that."""
ROWS = 8
"""Of a table so many rows are to be seen, so its width is at most this part of the room, but not less than WIDTH."""
WIDTH = 120
_SEPARATOR = re.compile(r",\s*|;\s*|\t|\s+")
_LARGE = 200_000
"""Characters of a table or line beyond which its columns or values are not looked for."""
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
    # A line takes a character at least, so lines further from both ends than this cannot be shown.
    reach = chars // 2 + 1
    hidden = max(len(lines) - 2 * reach, 0)
    if hidden:
        lines[reach:-reach] = []
    half = (chars - 30) // 2
    lines = _narrowed(lines, half if len(lines) < ROWS else min(half, max(chars // ROWS, WIDTH)))
    if not hidden and sum(map(len, lines)) + len(lines) - 1 <= chars:
        return "\n".join(lines)
    room = chars - len(f"{ELIDED} {len(lines) + hidden} lines cut {ELIDED}") - 2
    head = _fitting(lines, room - room // 2)
    tail = _fitting(lines[head:][::-1], room - sum(len(line) + 1 for line in lines[:head]))
    cut = len(lines) + hidden - head - tail
    return "\n".join([*lines[:head], f"{ELIDED} {cut} lines cut {ELIDED}", *lines[len(lines) - tail :]])


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


def _narrowed(lines: list[str], width: int) -> list[str]:
    narrow: list[str] = []
    for long, run in groupby(lines, lambda line: len(line) > width):
        block = list(run)
        if not long:
            narrow += block
            continue
        table = _columns(block, width) if len(block) > 2 and sum(map(len, block)) <= _LARGE else None
        narrow += table or [_line(line, width) for line in block]
    return narrow


def _columns(lines: list[str], width: int) -> list[str] | None:
    """A table with its middle columns left out, the same in every row; None where it is no table."""
    for delimiter in "\t,":
        numbers = {line.count(delimiter) for line in lines}
        if len(numbers) == 1 and numbers.pop() > 2:
            rows = [line.split(delimiter) for line in lines]
            widths = [max(map(len, column)) + 1 for column in zip(*rows, strict=True)]
            left, right = _outer(widths, width - 2)
            return (
                [delimiter.join([*row[:left], ELIDED, *row[len(row) - right :]]) for row in rows]
                if left and right
                else None
            )
    longest = max(map(len, lines))
    blank = [
        not "".join(characters).strip() for characters in zip(*(line.ljust(longest) for line in lines), strict=True)
    ]
    starts = [at for at in range(longest) if blank[at] and not (at and blank[at - 1])]
    if not starts or starts[0]:
        starts.insert(0, 0)
    spans = list(zip(starts, [*starts[1:], longest], strict=True))
    left, right = _outer([end - start for start, end in spans], width - 3)
    if len(spans) < 4 or not left or not right:
        return None
    return [
        f"{line[: spans[left - 1][1]].ljust(spans[left - 1][1])} {ELIDED} {line[spans[-right][0] :]}" for line in lines
    ]


def _outer(widths: Sequence[int], room: int) -> tuple[int, int]:
    """How many columns of the left and of the right side fit; the left side may take two thirds."""
    left, used = 0, 0
    while left < len(widths) - 1 and used + widths[left] <= room * 2 // 3:
        used += widths[left]
        left += 1
    right = 0
    while right < len(widths) - left - 1 and used + widths[-right - 1] <= room:
        used += widths[-right - 1]
        right += 1
    return left, right


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
