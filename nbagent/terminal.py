"""What goes to a terminal: text that the agent or a server wrote is shown, never obeyed."""

from __future__ import annotations

import logging
import sys
import unicodedata

from rich.text import Text

_OBEYED = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def plain(text: str, width: int | None = None) -> str:
    r"""The text on one line, with control, direction and invisible characters in escaped form.

    Args:
        text: anything.
        width: cut to this many characters, the last one an ellipsis.

    Example:
        >>> plain("a\x1b[31mred")
        'a\\x1b[31mred'
    """
    shown = "".join(_escaped(character) if _is_obeyed(character) else character for character in text)
    return shown if width is None or len(shown) <= width else shown[: width - 1] + "…"


def foreign(text: str, width: int | None = None, style: str = "") -> Text:
    """The text for rich, which reads no markup in it."""
    return Text(plain(text, width), style=style)


class PlainHandler(logging.Handler):
    """Prints log records on stderr, wherever stderr leads now, with control characters escaped."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        for line in self.format(record).splitlines():
            print(plain(line), file=sys.stderr)


def _is_obeyed(character: str) -> bool:
    return unicodedata.category(character) in _OBEYED


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
