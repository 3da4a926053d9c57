"""The notebook an agent works in: an nbformat v4.5 document that validates after every operation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any, Literal

from nbformat import NotebookNode, from_dict
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

CellType = Literal["code", "markdown"]
_KERNELS = {"python": ("python3", "Python 3"), "r": ("ir", "R"), "bash": ("bash", "Bash")}
_DEEPEST = 100


class UnknownCell(KeyError):
    """There is no cell with this id."""

    def __str__(self) -> str:
        return f"there is no cell {self.args[0]!r}"


class NotebookDocument:
    """A notebook whose cells have the ids c1, c2, …, in the order of their making; an id is never used twice.

    Attributes:
        node: the nbformat node; read it freely, change it through the methods only.
    """

    def __init__(self, language: str = "python") -> None:
        name, title = _KERNELS.get(language.lower(), (language, language))
        self.node: NotebookNode = new_notebook(
            metadata={
                "kernelspec": {"name": name, "display_name": title, "language": language},
                "language_info": {"name": language},
            }
        )
        self._made = 0

    def copy(self) -> NotebookDocument:
        """Another notebook with the same cells, whose ids go on from the same number."""
        other = NotebookDocument()
        other.node, other._made = deepcopy(self.node), self._made
        return other

    @property
    def ids(self) -> list[str]:
        """Ids of the cells, in the notebook's order."""
        return [cell["id"] for cell in self.node["cells"]]

    def index(self, cell_id: str) -> int:
        """Place of a cell, 0-based. Raises UnknownCell."""
        for index, cell in enumerate(self.node["cells"]):
            if cell["id"] == cell_id:
                return index
        raise UnknownCell(cell_id)

    def cell(self, cell_id: str) -> NotebookNode:
        """The cell with this id. Raises UnknownCell."""
        return self.node["cells"][self.index(cell_id)]

    def insert(self, index: int, source: str, cell_type: CellType = "code", cell_id: str | None = None) -> str:
        """A new cell at `index` (0-based; the end where that is beyond it); returns its id.

        `cell_id` is for rebuilding a notebook from its log. Raises ValueError where it was used before.
        """
        if cell_id is None:
            cell_id = f"c{self._made + 1}"
        number = int(cell_id[1:]) if cell_id[:1] == "c" and cell_id[1:].isascii() and cell_id[1:].isdigit() else 0
        if number <= self._made:
            raise ValueError(f"the cell id {cell_id!r} is not c{self._made + 1} or a later one")
        self._made = number
        make = new_code_cell if cell_type == "code" else new_markdown_cell
        self.node["cells"].insert(max(index, 0), make(_text(source), id=cell_id))
        return cell_id

    def append(self, source: str, cell_type: CellType = "code") -> str:
        """A new cell at the end; returns its id."""
        return self.insert(len(self.node["cells"]), source, cell_type)

    def replace(self, cell_id: str, source: str) -> None:
        """Another source; a code cell loses its outputs, which were not those of the new one. Raises UnknownCell."""
        cell = self.cell(cell_id)
        cell["source"] = _text(source)
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None

    def delete(self, cell_id: str) -> None:
        """Remove a cell. Raises UnknownCell."""
        del self.node["cells"][self.index(cell_id)]

    def set_outputs(self, cell_id: str, outputs: Iterable[Mapping[str, Any]], execution_count: int | None) -> None:
        """What an execution gave. Raises UnknownCell, and ValueError for a markdown cell."""
        cell = self.cell(cell_id)
        if cell["cell_type"] != "code":
            raise ValueError(f"{cell_id} is a markdown cell and has no outputs")
        cell["outputs"] = [from_dict(output) for output in valid_outputs(outputs)]
        cell["execution_count"] = _count(execution_count)


def valid_outputs(outputs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The outputs as nbformat allows them; those that already are come back equal.

    Code can make a kernel send anything (`display({"text/plain": 5}, raw=True)`), and a notebook must still validate.
    """
    return [_valid_output(output) for output in outputs]


def _valid_output(output: Mapping[str, Any]) -> dict[str, Any]:
    kind = output.get("output_type")
    if kind == "stream":
        return {
            "output_type": kind,
            "name": _text(output.get("name", "stdout")),
            "text": _lines(output.get("text", "")),
        }
    if kind == "error":
        trace = output.get("traceback")
        return {
            "output_type": kind,
            "ename": _text(output.get("ename", "")),
            "evalue": _text(output.get("evalue", "")),
            "traceback": [_text(line) for line in trace] if isinstance(trace, list) else [],
        }
    if kind in ("display_data", "execute_result"):
        data, metadata = output.get("data"), output.get("metadata")
        valid: dict[str, Any] = {
            "output_type": kind,
            "data": {_text(k): _media(str(k), v) for k, v in data.items()} if isinstance(data, Mapping) else {},
            "metadata": _json(metadata) if isinstance(metadata, Mapping) else {},
        }
        if kind == "execute_result":
            valid["execution_count"] = _count(output.get("execution_count"))
        return valid
    return {"output_type": "stream", "name": "stderr", "text": f"[an output of unknown type {_text(kind)[:40]!r}]\n"}


def _media(mime: str, value: Any) -> Any:
    if re.fullmatch(r"application/(.*\+)?json", mime):
        return _json(value)
    return _lines(value)


def _lines(value: Any) -> str | list[str]:
    return [_text(line) for line in value] if isinstance(value, list) else _text(value)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _json(value: Any, depth: int = 0) -> Any:
    """JSON values as they are, but for text that UTF-8 cannot write and for what is nested too deeply to be copied."""
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        return {_text(key): _json(inner, depth + 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner, depth + 1) for inner in value]
    return (
        value
        if value is None or isinstance(value, bool | int | float)
        else _text(value if isinstance(value, str) else str(value))
    )


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(_json(value), default=str)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # Half a surrogate pair would stop the notebook from being written.
        return text.encode("utf-8", "replace").decode("utf-8")
    return text
