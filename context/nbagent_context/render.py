"""Cells and outputs as the text a model reads, long and short, made once for each content."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbagent_context.clean import clean, quiet
from nbagent_context.cut import ELIDED, first_line
from nbagent_context.failure import error_text, exception_line
from nbagent_context.images import image_name
from nbagent_context.markup import html_text

_JSON = "application/json"
_HTML = "text/html"
PLAIN_FIRST = ("text/plain", "text/markdown", "text/latex", _JSON, _HTML)
LINE_CHARS = 48
"""Characters of code, and of output, in the one line that is left of a cell."""


def _text(value: Any, mime: str = "") -> str:
    if mime == _JSON:
        return json.dumps(value, ensure_ascii=False, default=str)
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def output_text(outputs: Sequence[Mapping[str, Any]], cell_id: str = "") -> str:
    """All outputs of a cell as text, in their order; images and other media as one placeholder line each."""
    return "\n".join(piece for output in outputs if (piece := _piece(output, cell_id)))


def _piece(output: Mapping[str, Any], cell_id: str) -> str:
    kind = output.get("output_type")
    if kind == "stream":
        return quiet(clean(_text(output.get("text", "")))).rstrip("\n")
    if kind == "error":
        return error_text(output)
    data = output.get("data", {})
    mime = _shown_mime(data)
    if mime.startswith("image/"):
        return image_name(cell_id, mime, data[mime])
    if mime == _HTML:
        source = _text(data[mime])
        return html_text(source) or f"[{mime}, {len(source)} characters]"
    if mime in PLAIN_FIRST:
        return clean(_text(data[mime], mime)).rstrip("\n")
    return f"[{mime}]" if mime else ""


def _shown_mime(data: Mapping[str, Any]) -> str:
    """An image where there is one, else the plainest text, else whatever comes first."""
    image = next((mime for mime in data if mime.startswith("image/")), None)
    return image or next((mime for mime in PLAIN_FIRST if mime in data), None) or next(iter(data), "")


def one_line(outputs: Sequence[Mapping[str, Any]], text: str, chars: int) -> str:
    """Of an error the exception, else the first line of the first output that is no warning; with a mark for more.

    At most `chars` characters and the mark. `text` is that of all outputs.
    """
    error = next((output for output in outputs if output.get("output_type") == "error"), None)
    if error is not None:
        told = exception_line(error)
    else:
        pieces = ((output, _piece(output, "")) for output in outputs)
        told = next((piece for output, piece in pieces if piece and not _is_stderr(output)), text)
    line = first_line(told, chars)
    return line if line == text or line.endswith(ELIDED) else f"{line}{ELIDED}"


def _is_stderr(output: Mapping[str, Any]) -> bool:
    return output.get("output_type") == "stream" and output.get("name") == "stderr"


def cell_text(cell: Mapping[str, Any], language: str = "python") -> str:
    """A cell's id and source, without its outputs.

    The execution count stands beside the id where it is not the id's own number: `[c3]` was the third run, `[c3 In 7]`
    the seventh, `[c3 not run]` none.
    """
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return f"[{cell['id']}]\n{source}\n"
    fence = "```"
    while fence in source:
        fence += "`"
    return f"{_head(cell)}\n{fence}{language}\n{source}\n{fence}\n"


def _head(cell: Mapping[str, Any]) -> str:
    name, count = cell["id"], cell.get("execution_count", "")
    if count is None:
        return f"[{name} not run]"
    return f"[{name}]" if count == "" or name == f"c{count}" else f"[{name} In {count}]"


def language_of(notebook: Mapping[str, Any]) -> str:
    """Language of the notebook's kernel, lower case, `python` where it does not say."""
    metadata = notebook.get("metadata", {})
    name = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language")
    return str(name or "python").lower()


@dataclass(frozen=True, slots=True)
class CellView:
    """A cell as text."""

    source: str
    """Id and source, whole."""
    output: str
    """All outputs; '' for none."""
    output_line: str
    """One line of them, without a line break."""
    line: str
    """The whole cell on one line."""


def cell_view(cell: Mapping[str, Any], language: str, line_chars: int) -> CellView:
    """A cell's texts. `line_chars`: of an output's one line; 0 leaves a mark."""
    outputs = cell.get("outputs", ())
    text = output_text(outputs, cell["id"])
    code = first_line(_text(cell["source"]), LINE_CHARS)
    line = f"{_head(cell) if cell['cell_type'] == 'code' else '[' + cell['id'] + ']'} {code}"
    if text and line_chars:
        line += f" → {one_line(outputs, text, LINE_CHARS)}"
    shortest = one_line(outputs, text, line_chars) if line_chars else ELIDED
    return CellView(cell_text(cell, language), text, shortest if text else "", line)


def content_key(cell: Mapping[str, Any], language: str) -> tuple[Hashable, ...]:
    """All that a cell's texts depend on, to keep what was made of it.

    Strings are taken as they are: their hashes are kept, and comparing a string with itself is free.
    """
    source = cell["source"]
    # `_hashable` written out, here and below: this is done for every cell of every prompt.
    return (
        cell["id"],
        cell["cell_type"],
        source if type(source) is str else _text(source),
        cell.get("execution_count", ""),
        language,
        *[_output_key(output) for output in cell.get("outputs", ())],
    )


def _output_key(output: Mapping[str, Any]) -> Hashable:
    kind = output.get("output_type")
    if kind == "stream":
        text = output.get("text", "")
        return (kind, output.get("name") == "stderr", text if type(text) is str else _text(text))
    if kind == "error":
        return (kind, output.get("ename"), output.get("evalue"), *output.get("traceback", ()))
    data = output.get("data", {})
    mime = _shown_mime(data)
    value = data.get(mime, "") if mime in PLAIN_FIRST or mime.startswith("image/") else ""
    return (mime, _text(value, mime) if mime == _JSON else _hashable(value))


def _hashable(value: Any) -> str:
    return value if type(value) is str else _text(value)


def content_chars(key: tuple[Hashable, ...]) -> int:
    """About the characters that a key holds."""
    return 64 + sum(
        len(part) if isinstance(part, str) else content_chars(part) if isinstance(part, tuple) else 8 for part in key
    )
