"""Text as a reader wants it: no terminal codes, no progress bars, warnings once each, repeated lines counted.

What a cell prints is anything, up to a megabyte and made to be slow if somebody likes. So everything here takes time
that grows with the text's length and no faster: patterns whose parts cannot match the same characters, or no patterns.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import NamedTuple

from nbagent_context.warned import folded

REPEATS = 4
"""So many equal lines in a row become one and a count, where that is no longer."""

# In this order: sequences with parameters (colours, cursor), strings up to their end (titles), and the rest, which have
# two characters or a few more (character sets). A string without an end on its line is text.
_ANSI = re.compile(r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]|[\]PX^_][^\x07\x1b\n]*+(?:\x07|\x1b\\)|[ -/]++[0-~]|[0-OQ-WYZ\\`-~])")
_BACKSPACES = re.compile(r"(\x08+)")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_TQDM_BAR = " ▏▎▍▌▋▊▉█#123456789"
_PERCENT = re.compile(r"(\d{1,3})%$")
_COUNTS = re.compile(r" ?[\d.]+[kMGTPEZY]?/([\d.]+[kMGTPEZY]?) \[(.*)\]\s*")
_R_BAR = re.compile(r"  \|=+ *\| {1,3}(\d{1,3})% *")
_MORE = re.compile(r"\[the same \d+ more times\]")


def clean(text: str) -> str:
    """Text as a terminal would leave it: control codes removed, of overwritten lines the last state. Idempotent."""
    if "\x1b" in text:
        text = _ANSI.sub("", text)
    text = text.replace("\r\n", "\n")
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    if "\b" in text:
        text = "\n".join(_typed_over(line) if "\b" in line else line for line in text.split("\n"))
    return _CONTROL.sub("", text)


def _typed_over(line: str) -> str:
    """A line after its backspaces: they move the cursor to the left, and what follows is written over what is there."""
    written: list[str] = []
    cursor = 0
    for piece in _BACKSPACES.split(line):
        if piece[:1] == "\b":
            cursor = max(cursor - len(piece), 0)
        else:
            written[cursor : cursor + len(piece)] = piece
            cursor += len(piece)
    return "".join(written)


def quiet(text: str) -> str:
    """Clean text of a stream without what tells a reader nothing; `clean` comes first. Idempotent.

    Progress bars lose all states but the last, and the last too where it says no more than that all is done; a Python
    warning loses its place and source line and stands once; of four or more equal lines in a row one stays, with the
    number of the others. What comes out is never longer.
    """
    lines = text.split("\n")
    if "%" in text:
        lines = _without_bars(lines)
    if "Warning" in text:
        lines = folded(lines)
    if len(lines) >= REPEATS:
        lines = _counted(lines)
    return "\n".join(lines)


class _Bar(NamedTuple):
    """A line that shows how far something is."""

    name: tuple[str, str]
    """What it says of itself and the number of things to do: the same in all states of one bar."""
    percent: int
    result: bool
    """Whether it ends with more than time and speed: a loss, say."""


def _bar(line: str) -> _Bar | None:
    """The bar that is the whole line; None for all else, tables with percentages above all.

    The shapes are tqdm's, `epoch: 50%|###  | 1/2 [00:01<00:01, 1.00it/s, loss=0.1]` and `50%|###  |`, and that of R's
    txtProgressBar, `  |===   |  50%`.
    """
    if line.count("|") != 2:
        return None
    before, drawn, after = line.split("|")
    if before == "  " and (found := _R_BAR.fullmatch(line)):
        return _Bar(("", ""), int(found[1]), False)
    percent = _PERCENT.search(before[-4:])
    if percent is None or drawn.strip(_TQDM_BAR):
        return None
    name = before[: -len(percent[0])].strip()
    if name and (name[-1] != ":" or "Warning:" in name):
        return None
    if counts := _COUNTS.fullmatch(after):
        return _Bar((name, counts[1]), int(percent[1]), counts[2].count(", ") > 1)
    bare = not name and not after.strip() and len(drawn) > 4 and set("#█") & set(drawn)
    return _Bar(("", ""), int(percent[1]), False) if bare else None


def _without_bars(lines: list[str]) -> list[str]:
    kept: list[str] = []
    furthest: dict[tuple[str, str], int] = {}  # Of what comes after the line, by name.
    for line in reversed(lines):
        bar = _bar(line) if "%" in line else None
        if bar is None:
            kept.append(line)
            continue
        is_last = bar.percent > furthest.get(bar.name, -1)
        furthest[bar.name] = max(bar.percent, furthest.get(bar.name, -1))
        # A result stands at the end of each of several bars with one name, as of epochs.
        if bar.percent >= 100 and (bar.result or not bar.name[0]):
            is_last = bar.result
        if is_last:
            kept.append(line)
    return kept[::-1]


def _counted(lines: list[str]) -> list[str]:
    kept: list[str] = []
    for line, run in groupby(lines):
        number = sum(1 for _ in run)
        more = f"[the same {number - 1} more times]"
        if number < REPEATS or _MORE.fullmatch(line):
            kept += [line] * number
        elif not line.strip():
            kept.append(line)
        elif (number - 1) * (len(line) + 1) <= len(more):
            kept += [line] * number  # A column of numbers: no shorter with a count.
        else:
            kept += [line, more]
    return kept
