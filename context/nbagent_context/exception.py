"""The line that says what failed: found in an answer, and kept when the text around it is cut.

An exception's message may have many lines, of which the first says what is wrong and the others give hints; what is cut
to head and tail keeps the hints. So that line is looked after by itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nbagent_context.cut import ELIDED, first_line, head_tail
from nbagent_context.failure import exception_line
from nbagent_context.types import Exchange

MESSAGE_CHARS = 5
"""More characters of a message than these, a word, are enough of a line whose middle is left out."""
_FRAME = re.compile(r"at(?: In\[\d+\])?: |in \S+:\d+|(?:from|while handling) [\w.]+: ")
_NAME = re.compile(r"[A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Iteration|Group)\b")


def exception_in(outputs: Sequence[Mapping[str, Any]]) -> str:
    """`KeyError: 'gene'`: of a cell's outputs, the exception's name and the first line of its message; '' for none."""
    error = next((output for output in reversed(outputs) if output.get("output_type") == "error"), None)
    if error is None:
        return ""
    return _first(exception_line(error).split("\n"))


def exception_of(exchange: Exchange) -> str:
    """What a failed exchange failed with, in one line; '' for one that did not fail.

    Where the exchange does not carry it, it is looked for in the answer: the line after the last frame, else the last
    one that begins with an exception's name. An answer that ends with the environment's word on what happened (a kernel
    that died, a text that was no action) has that.
    """
    if exchange.exception or not exchange.failed:
        return exchange.exception
    lines = exchange.observation.rstrip().split("\n")
    if exchange.shown:
        frames = [number for number, line in enumerate(lines[:-1]) if _FRAME.match(line)]
        if frames:
            return _first(lines[frames[-1] + 1 :])
        named = [number for number, line in enumerate(lines) if _NAME.match(line)]
        if named:
            return _first(lines[named[-1] :])
    return lines[-1].strip()


def _first(lines: Sequence[str]) -> str:
    """Name and first line of a message; some begin with a line break, as scikit-learn's "All the 5 fits failed."."""
    name = lines[0].rstrip()
    more = next((line.strip() for line in lines[1:] if line.strip()), "") if name.endswith(":") else ""
    return f"{name} {more}" if more else lines[0]


def head_line_tail(text: str, chars: int, line: str) -> str:
    """As `head_tail`, but the beginning of `line` stays, half of the characters long, where it stands in the text.

    The whole may be longer than `chars` by the few characters that nothing is cut below.
    """
    short = head_tail(text, chars)
    if not line or short == text or _stands(line, short):
        return short
    broken = line.replace(": ", ": \n", 1)
    before, found, after = text.rpartition(line if line in text else broken)
    if not found:
        before, after = text, ""
    kept = first_line(line, chars // 2)
    before, after, room = before.rstrip("\n"), after.lstrip("\n"), max(chars - len(kept) - 2, 0)
    first = min(len(before), max(room // 2, room - len(after)))
    parts = head_tail(before, first), kept, head_tail(after, room - first)
    return "\n".join(part for part in parts if part)


def _stands(line: str, text: str) -> bool:
    """Whether a text has the line, whole or with its middle left out, more than the exception's name of it."""
    least = line.find(" ") + MESSAGE_CHARS
    heads = (other.split(ELIDED, 1)[0].rstrip() if ELIDED in other else other for other in text.split("\n"))
    return any(head == line or (len(head) > least and line.startswith(head)) for head in heads)
