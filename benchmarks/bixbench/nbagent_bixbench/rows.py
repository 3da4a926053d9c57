"""Rows of a BixBench file: one JSON object per line, checked field by field."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbagent.errors import TaskFormatError, UsageError
from nbagent_bixbench.grade import EVAL_MODES, key_range

REQUIRED = ("question_id", "question", "ideal", "distractors", "eval_mode", "capsule_uuid", "data_folder", "categories")
"""Fields without which a row is no task."""

TEXTS = (
    *(name for name in REQUIRED if name not in ("distractors", "categories")),
    "id",
    "short_id",
    "paper",
    "version",
)
"""Fields that must be text where they are there."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question in the format of BixBench 1.5 (the Verified-50 file lacks `id`, `short_id` and `version`)."""

    question_id: str
    """E.g. `bix-3-q1`; unique in its file up to case."""
    question: str
    """The text given to the agent."""
    ideal: str
    """The key; for `range_verifier` the text `"(lo,hi)"`."""
    distractors: tuple[str, ...]
    """Wrong options."""
    eval_mode: str
    """`str_verifier`, `range_verifier` or `llm_verifier`."""
    capsule_uuid: str
    """Name of the capsule."""
    data_folder: str
    """File name of the capsule's zip, beside the JSONL."""
    categories: tuple[str, ...]
    """Kinds of analysis."""
    line: int
    """Line in the file, from 1."""
    id: str = ""
    """Row id (uuid)."""
    hypothesis: str = ""
    """The capsule's hypothesis; must not reach the agent."""
    result: str = ""
    """The expert's finding; must not reach the agent."""
    answer: bool | None = None
    """Whether the hypothesis is true."""
    paper: str = ""
    """Where the data come from."""
    version: str = ""
    """The set's version."""
    canary: str = ""
    """Marks text that must not be trained on."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order.

    Raises:
        TaskFormatError: the file cannot be read or a row cannot be used; names file, line and field.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskFormatError(f"{path}: cannot be read: {error}") from error
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _row(line, number, f"{path}:{number}")
        first = seen.setdefault(row.question_id.lower(), number)
        if first != number:
            raise TaskFormatError(f"{path}:{number}: question_id {row.question_id!r} is taken by line {first}")
        rows.append(row)
    if not rows:
        raise TaskFormatError(f"{path}: holds no questions")
    return rows


def _row(line: str, number: int, where: str) -> Row:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise TaskFormatError(f"{where}: not JSON: {error}") from error
    if not isinstance(data, dict):
        raise TaskFormatError(f"{where}: a row must be a JSON object, this is a {type(data).__name__}")
    for name in REQUIRED:
        if name not in data:
            raise TaskFormatError(f"{where}: field {name!r} is missing")
    for name in TEXTS:
        if name in data and data[name] is not None and not isinstance(data[name], str):
            raise TaskFormatError(f"{where}: field {name!r} must be text, it is {type(data[name]).__name__}")
    for name in ("question_id", "question", "ideal", "data_folder"):
        if not (data[name] or "").strip():
            raise TaskFormatError(f"{where}: field {name!r} is empty")
    if data["eval_mode"] not in EVAL_MODES:
        raise TaskFormatError(f"{where}: field 'eval_mode' is {data['eval_mode']!r}; one of {', '.join(EVAL_MODES)}")
    if data["eval_mode"] == "range_verifier":
        try:
            key_range(data["ideal"])
        except UsageError as error:
            raise TaskFormatError(f"{where}: field 'ideal': {error}") from error
    truth = data.get("answer")
    if truth is not None and not isinstance(truth, bool):
        raise TaskFormatError(f"{where}: field 'answer' must be true or false, it is {type(truth).__name__}")
    return Row(
        question_id=data["question_id"],
        question=data["question"],
        ideal=data["ideal"],
        distractors=_texts(data["distractors"], f"{where}: field 'distractors'"),
        eval_mode=data["eval_mode"],
        capsule_uuid=data["capsule_uuid"] or "",
        data_folder=data["data_folder"],
        categories=_categories(data["categories"], f"{where}: field 'categories'"),
        line=number,
        id=data.get("id") or "",
        hypothesis=str(data.get("hypothesis") or ""),
        result=str(data.get("result") or ""),
        answer=truth,
        paper=data.get("paper") or "",
        version=data.get("version") or "",
        canary=str(data.get("canary") or ""),
    )


def _texts(value: Any, where: str) -> tuple[str, ...]:
    # Some published rows hold the Python repr of the list instead of the list.
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError) as error:
            raise TaskFormatError(f"{where} is not a list: {value[:60]!r}") from error
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TaskFormatError(f"{where} must be a list of texts")
    return tuple(value)


def _categories(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) and not value.strip().startswith("["):
        value = value.split(",")
    return tuple(item.strip() for item in _texts(value, where) if item.strip())
