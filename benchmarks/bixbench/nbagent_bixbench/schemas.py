"""The schemas in which sets are published, read into rows: BixBench 1.5 and Verified-50, the older one, hypotheses."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from nbagent.errors import UsageError
from nbagent_bixbench.grade import EVAL_MODES, key_range
from nbagent_bixbench.types import Row

REQUIRED = ("question_id", "question", "ideal", "distractors", "eval_mode", "capsule_uuid", "data_folder", "categories")
"""Fields without which a row of BixBench 1.5 is no task (Verified-50 lacks `id`, `short_id` and `version`)."""

OLDER = ("uuid", "questions")
"""Fields of the older schema: a row per capsule, `questions` a JSON text of its 296 questions' share."""

HYPOTHESIS = ("id", "hypothesis", "answer", "input_data_path")
"""Fields without which a row of BixBench-Hypothesis is no task."""

MARKS = ({"question_id", "eval_mode"}, {"uuid", "questions"}, {"hypothesis", "input_data_path"})
"""Fields by which a file of rows is known, one set for each schema."""

LANGUAGES = ("python", "r")
"""Languages of the analyses."""

_TEXTS = ("question_id", "question", "ideal", "eval_mode", "capsule_uuid", "data_folder", "id", "short_id", "paper")


def rows_of(record: Mapping[str, Any], line: int) -> tuple[list[Row], list[str]]:
    """The rows of one record, and what is wrong with it; a record with a problem gives no row."""
    if "questions" in record and "question" not in record:
        return _older(record, line)
    if "question" not in record and ("input_data_path" in record or "protocol" in record):
        wrong = list(_wrong_hypothesis(record))
        return ([] if wrong else [_hypothesis_row(record, line)]), wrong
    wrong = list(_wrong(record))
    return ([] if wrong else [_row(record, line)]), wrong


def _wrong(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"field {name!r} is missing" for name in REQUIRED if name not in record)
    yield from _wrong_texts(record, (*_TEXTS, "version"))
    for name in ("question_id", "question", "ideal", "data_folder"):
        if name in record and isinstance(record[name] or "", str) and not (record[name] or "").strip():
            yield f"field {name!r} is empty"
    mode, ideal = record.get("eval_mode"), record.get("ideal")
    if "eval_mode" in record and mode not in EVAL_MODES:
        yield f"field 'eval_mode' is {mode!r}; one of {', '.join(EVAL_MODES)}"
    if mode == "range_verifier" and isinstance(ideal, str) and ideal.strip():
        try:
            key_range(ideal)
        except UsageError as error:
            yield f"field 'ideal': {error}"
    yield from _wrong_truth(record)
    folder = record.get("data_folder")
    if isinstance(folder, str) and folder.strip() and PurePosixPath(folder).name != folder:
        yield f"data_folder {folder!r} must be a file name"
    for name, read in (("distractors", _texts), ("categories", categories_of)):
        if name in record:
            try:
                read(record[name])
            except ValueError as error:
                yield f"field {name!r} {error}"


def _wrong_texts(record: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if record.get(name) is not None and not isinstance(record[name], str):
            yield f"field {name!r} must be text, it is {type(record[name]).__name__}"


def _wrong_truth(record: Mapping[str, Any]) -> Iterator[str]:
    truth = record.get("answer")
    if truth is not None and not isinstance(truth, bool):
        yield f"field 'answer' must be true or false, it is {type(truth).__name__}"


def _row(record: Mapping[str, Any], line: int) -> Row:
    return Row(
        question_id=record["question_id"],
        question=record["question"],
        ideal=record["ideal"],
        distractors=_texts(record["distractors"]),
        eval_mode=record["eval_mode"],
        capsule_uuid=record["capsule_uuid"] or "",
        data_folder=record["data_folder"],
        categories=categories_of(record["categories"]),
        line=line,
        id=record.get("id") or "",
        hypothesis=str(record.get("hypothesis") or ""),
        result=str(record.get("result") or ""),
        answer=record.get("answer"),
        paper=record.get("paper") or "",
        version=record.get("version") or "",
        canary=str(record.get("canary") or ""),
    )


def _older(record: Mapping[str, Any], line: int) -> tuple[list[Row], list[str]]:
    """A capsule with its questions. The older set has no eval modes: every answer was judged."""
    wrong = [f"field {name!r} is missing" for name in OLDER if not record.get(name)]
    wrong += _wrong_texts(record, ("uuid", "short_id", "data_folder", "paper"))
    questions: Any = record.get("questions") or []
    if isinstance(questions, str):
        try:
            questions = json.loads(questions)
        except ValueError as error:
            wrong.append(f"field 'questions' is not JSON: {error}")
    if not isinstance(questions, list) or not all(isinstance(item, dict) for item in questions):
        wrong.append("field 'questions' must be a list of objects")
    if wrong:
        return [], wrong
    capsule, short = record["uuid"], record.get("short_id") or record["uuid"]
    rows = []
    for number, item in enumerate(questions, start=1):
        name = str(item.get("id") or f"q{number}")
        options = [item[key] for key in sorted(item) if key.startswith("distractor") and item[key] is not None]
        flat = {
            **{key: value for key, value in record.items() if key not in ("questions", "id")},
            "question_id": name if name.lower().startswith(short.lower()) else f"{short}-{name}",
            "question": item.get("question"),
            "ideal": item.get("ideal_answer"),
            "distractors": options,
            "eval_mode": "llm_verifier",
            "capsule_uuid": capsule,
            "data_folder": record.get("data_folder") or f"CapsuleFolder-{capsule}.zip",
            "categories": record.get("categories") or [],
        }
        found = [f"question {name!r}: {what}" for what in _wrong(flat)]
        wrong += found
        if not found:
            rows.append(_row(flat, line))
    return rows, wrong


def _wrong_hypothesis(record: Mapping[str, Any]) -> Iterator[str]:
    yield from (f"field {name!r} is missing" for name in HYPOTHESIS if record.get(name) in (None, ""))
    yield from _wrong_texts(record, ("hypothesis", "input_data_path", "nb_primary_language"))
    yield from _wrong_truth(record)
    place = record.get("input_data_path")
    if isinstance(place, str) and (place.startswith("/") or ".." in PurePosixPath(place).parts):
        yield f"input_data_path {place!r} must lie below the folder of the rows"
    language = record.get("nb_primary_language")
    if isinstance(language, str) and language and language.lower() not in LANGUAGES:
        yield f"field 'nb_primary_language' is {language!r}; one of {', '.join(LANGUAGES)}"


def _hypothesis_row(record: Mapping[str, Any], line: int) -> Row:
    rubric, points = record.get("rubric") or "", record.get("max_points")
    return Row(
        question_id=str(record["id"]),
        question="",
        ideal=str(record["answer"]),
        distractors=(),
        eval_mode="str_verifier",
        capsule_uuid=PurePosixPath(record["input_data_path"]).stem,
        data_folder=record["input_data_path"],
        categories=(),
        line=line,
        id=str(record["id"]),
        hypothesis=record["hypothesis"],
        answer=record["answer"],
        language=(record.get("nb_primary_language") or "").lower(),
        protocol=str(record.get("protocol") or ""),
        rubric=rubric if isinstance(rubric, str) else json.dumps(rubric, ensure_ascii=False),
        max_points=points if isinstance(points, int) else None,
        canary=str(record.get("canary") or ""),
    )


def _texts(value: Any) -> tuple[str, ...]:
    # Some published rows hold the Python repr of the list instead of the list.
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"is not a list: {value[:60]!r}") from None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of texts")
    return tuple(value)


def categories_of(value: Any) -> tuple[str, ...]:
    """Categories as published: a comma list, a list, or the repr of one. Raises ValueError for anything else."""
    if isinstance(value, str) and not value.strip().startswith("["):
        value = value.split(",")
    return tuple(item.strip() for item in _texts(value) if item.strip())
