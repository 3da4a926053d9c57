"""The tools of the notebook as OpenAI-style JSON schemas, and the check of a call against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nbagent.recipe import nearest

_Texts = dict[str, str]


def _tool(
    name: str, description: str, required: dict[str, str], optional: dict[str, str] | None = None
) -> dict[str, Any]:
    # All arguments are strings: one thing less that a model can get wrong.
    properties = {key: {"type": "string", "description": text} for key, text in (required | (optional or {})).items()}
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS: list[dict[str, Any]] = [
    _tool(
        "run_cell",
        "Run code in a new cell at the end of the notebook, or, with `cell`, put it in place of that cell's code and "
        "run it. Variables live on from cell to cell.",
        {"code": "The code."},
        {"cell": "Id of the cell to replace, e.g. c2."},
    ),
    _tool(
        "edit_cell",
        "Change a cell's text without running it.",
        {"cell": "Id of the cell, e.g. c2.", "source": "The new text."},
    ),
    _tool(
        "insert_cell",
        "Insert a code cell without running it.",
        {"source": "The code."},
        {"before": "Id of the cell that it goes before; without it, the end of the notebook."},
    ),
    _tool("delete_cell", "Delete a cell. What it defined stays in memory.", {"cell": "Id of the cell, e.g. c2."}),
    _tool(
        "add_markdown",
        "Add a markdown cell.",
        {"text": "The markdown."},
        {"before": "Id of the cell that it goes before; without it, the end of the notebook."},
    ),
    _tool("restart_kernel", "Start a fresh kernel: variables go, the notebook and the files stay.", {}),
    _tool("list_dir", "List a folder.", {}, {"path": "Path from the working directory; without it, that itself."}),
    _tool("read_file", "Read a text file; a long one loses its middle.", {"path": "Path from the working directory."}),
    _tool("submit_answer", "Submit the final answer. This ends the task.", {"answer": "The answer, kept short."}),
]
"""Schemas of all tools, in the order in which they are shown."""


def tool_name(schema: Mapping[str, Any]) -> str:
    """Name in an OpenAI-style schema."""
    return str(schema["function"]["name"])


def complaint(tool: str, args: Mapping[str, Any], tools: Sequence[Mapping[str, Any]] = TOOLS) -> str:
    """What is wrong with a call, in one line without a full stop; '' where it is right.

    An optional argument may be None, which is as good as leaving it out.
    """
    schema = next((schema for schema in tools if tool_name(schema) == tool), None)
    if schema is None:
        return f"there is no tool {tool[:40]!r}{nearest(tool[:64], [tool_name(schema) for schema in tools])}"
    parameters = schema["function"]["parameters"]
    properties, required = parameters["properties"], parameters["required"]
    for name in args:
        if name not in properties:
            return f"{tool} has no argument {name[:40]!r}{nearest(name[:64], list(properties))}"
    for name in required:
        if args.get(name) is None:
            return f"{tool} needs the argument {name!r} (a string)"
    for name, value in args.items():
        if value is None:
            continue
        if not isinstance(value, str):
            return f"{tool}: {name!r} must be a string, not {_json_type(value)}"
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            return f"{tool}: {name!r} has half a surrogate pair, which is no text"
    return ""


def _json_type(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"
