"""Tables in text: how their columns are parted, and rows without their middle columns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_QUOTED = re.compile(r'"[^"]*+"')
DELIMITERS = "\t|;,"


@dataclass(frozen=True, slots=True)
class Delimited:
    """Rows whose fields a character parts: CSV, Markdown."""

    delimiter: str
    quoted: bool
    """Whether one inside double quotes parts nothing."""
    number: int
    """Fields of most rows."""

    def narrowed(self, rows: Sequence[str], width: int, mark: str) -> list[str] | None:
        """Rows with `mark` in place of the same fields from their middle; None where no two fields fit."""
        split = [self._fields(row) for row in rows]
        measured = [fields for fields in split if len(fields) >= self.number] or split
        left, right = _outer(
            min(map(len, measured)),
            lambda at: max(len(fields[at]) for fields in measured) + 1,
            lambda at: max(len(fields[-at - 1]) for fields in measured) + 1,
            width - len(mark) - 1,
        )
        if not left or not right:
            return None
        return [
            self.delimiter.join([*fields[:left], mark, *fields[len(fields) - right :]])
            if len(fields) > left + right
            else row
            if len(row) <= width
            else f"{row[: width - len(mark)]}{mark}"
            for row, fields in zip(rows, split, strict=True)
        ]

    def _fields(self, row: str) -> list[str]:
        if not self.quoted or '"' not in row:
            return row.split(self.delimiter)
        fields, at = [], 0
        for masked in _masked(row).split(self.delimiter):
            fields.append(row[at : at + len(masked)])
            at += len(masked) + 1
        return fields


@dataclass(frozen=True, slots=True)
class Aligned:
    """Rows whose columns stand below each other."""

    spans: tuple[tuple[int, int], ...]
    """Start and end of each column, from the left; what is not known in the middle is one."""

    def narrowed(self, rows: Sequence[str], width: int, mark: str) -> list[str] | None:
        """Rows with `mark` in place of the same columns from their middle; None where no two columns fit."""
        spans = self.spans
        sizes = [end - start for start, end in spans]
        left, right = _outer(len(spans), lambda at: sizes[at], lambda at: sizes[-at - 1], width - len(mark) - 2)
        if not left or not right:
            return None
        end, start = spans[left - 1][1], spans[-right][0]
        return [f"{row[:end].ljust(end)} {mark} {row[start:]}" for row in rows]


Table = Delimited | Aligned


def table_of(rows: Sequence[str], width: int) -> Table | None:
    """How the columns of rows are parted, as far as `width` characters from both sides; None where they are no table.

    Rows with another number of fields than most may be one in four: a header, a comma more.
    """
    if len(rows) < 3:
        return None
    masked = [_masked(row) for row in rows] if any('"' in row for row in rows) else None
    for delimiter in DELIMITERS:
        for quoted, lines in ((True, masked), (False, rows)):
            (most, often), *_ = Counter(line.count(delimiter) for line in lines or ("",)).most_common(1)
            if most > 2 and often * 4 >= len(rows) * 3:
                return Delimited(delimiter, quoted, most + 1)
    spans = _spans(rows, width)
    return Aligned(spans) if len(spans) > 3 else None


def _masked(row: str) -> str:
    return _QUOTED.sub(lambda found: " " * len(found[0]), row)


def _spans(rows: Sequence[str], width: int) -> tuple[tuple[int, int], ...]:
    """Columns between characters that are blank in every row; they begin with their blanks, as numbers stand right.

    Only columns near the sides can be shown, so the middle of very long rows is not looked at.
    """
    longest = max(map(len, rows))
    if longest <= 2 * width:
        starts = _starts([row.ljust(longest) for row in rows])
    else:
        right = longest - width
        starts = _starts([row[:width].ljust(width) for row in rows])
        starts += [right + at for at in _starts([row[right:].ljust(width) for row in rows]) if at]
    if not starts or starts[0]:
        starts.insert(0, 0)
    return tuple(zip(starts, [*starts[1:], longest], strict=True))


def _starts(rows: Sequence[str]) -> list[int]:
    blank = [not "".join(characters).strip() for characters in zip(*rows, strict=True)]
    return [at for at, here in enumerate(blank) if here and not (at and blank[at - 1])]


def _outer(
    number: int, left_size: Callable[[int], int], right_size: Callable[[int], int], room: int
) -> tuple[int, int]:
    """How many columns of the left and of the right side fit; the left side may take two thirds, one stays out."""
    left = right = used = 0
    while left < number - 1 and (size := left_size(left)) + used <= room * 2 // 3:
        used += size
        left += 1
    while right < number - left - 1 and (size := right_size(right)) + used <= room:
        used += size
        right += 1
    return left, right
