"""HTML as the text that its reader would see."""

from __future__ import annotations

import html
import re

from nbagent_context.clean import clean

# What is not shown ends at its end tag or, as in a browser, with the page. Each part ends where the next can begin, so
# that the time does not grow faster than the text.
_UNSEEN_OR_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|svg|template|noscript)\b.*?(?:</\1[^<>]*+>|\Z)"
    r"|<(/?[a-z][a-z0-9]*+)[^<>]*+>|<![^<>]*+>",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SPACE = re.compile(r"\s+")
_CELL = frozenset(["/td", "/th"])
_LINE = frozenset(
    "br hr p div li ul ol dl dt dd tr table caption thead tbody pre section article h1 h2 h3 h4 h5 h6".split()
)


def html_text(source: str) -> str:
    """Text without tags, scripts and styles: a line for each block and row, tabs between cells; '' for none."""
    if "<pre" not in source:
        source = _SPACE.sub(" ", source)
    text = clean(_ENTITY.sub(lambda found: html.unescape(found[0]), _UNSEEN_OR_TAG.sub(_instead, source)))
    lines = ["\t".join(cell.strip(" ") for cell in line.rstrip().split("\t")) for line in text.split("\n")]
    return "\n".join(line for line in lines if line.strip())


def _instead(found: re.Match[str]) -> str:
    tag = (found[2] or "").lower()
    if tag in _CELL:
        return "\t"
    return "\n" if tag.removeprefix("/") in _LINE else ""
