"""Read the published per-question trajectory files: `QUESTION.json` or `QUESTION_replica_N.json`.

Fields that are read: `problem_id, agent_answer, ideal_answer, problem, question_format, refusal_option, mcq_options,
model, num_actions, run_name` and of `metadata` the dataset's row. An answer of `0`, `0.0` or `false` is an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.policies import EVAL_MODES, EvalMode
from nbagent_bixbench.results import Mode, Result
from nbagent_bixbench.schemas import categories_of
from nbagent_bixbench.strict import canonical
from nbagent_bixbench.types import Option, OptionKind
from nbagent_bixbench.zero_shot_csv import recorded_verdict

NEEDED = ("problem_id", "agent_answer", "ideal_answer")
"""Fields without which a file is no trajectory."""
DROPPED = "dropped_by_published_scorer"
"""Marks in `extra` an answer that is falsy in Python: the published agentic scorer drops the row like one without."""
_REPLICA = re.compile(r"_replica_(\d+)$")
_LETTERED = re.compile(r"\(?([A-Z])[).:]\s+(.*)", re.DOTALL)
_REFUSAL = "insufficient information"


def is_trajectory(data: Any) -> bool:
    """Whether a JSON value is such a trajectory."""
    return isinstance(data, dict) and "problem_id" in data


def read_trajectories(paths: Sequence[Path]) -> list[Result]:
    """The results of some files, one each, in their order.

    Raises:
        UsageError: a file cannot be used, or they are of several runs.
    """
    found: list[Result] = []
    runs: dict[str, Path] = {}
    seen: dict[tuple[str, int], Path] = {}
    for path in paths:
        data = _load(path)
        if not is_trajectory(data):
            raise UsageError(f"{path}: is no trajectory (no field 'problem_id'); move it away")
        result = trajectory_result(data, path)
        runs.setdefault(str(data.get("run_name") or ""), path)
        if len(runs) > 1:
            names = ", ".join(map(repr, runs))
            raise UsageError(f"{path.parent}: holds the runs {names}; give the folder of one")
        first = seen.setdefault((result.question_key, result.replica), path)
        if first != path:
            raise UsageError(f"{path}: replica {result.replica} of {result.question_id!r} is in {first} already")
        found.append(result)
    return found


def trajectory_result(data: Mapping[str, Any], path: Path) -> Result:
    """The result that a trajectory holds.

    Raises:
        UsageError: a field is missing or cannot be used; names the file.
    """
    missing = [name for name in NEEDED if name not in data]
    if missing:
        raise UsageError(f"{path}: no field {', '.join(map(repr, missing))}")
    row: Mapping[str, Any] = data["metadata"] if isinstance(data.get("metadata"), dict) else {}
    kind = str(data.get("question_format") or "open").lower()
    if kind not in ("open", "mcq", "hypothesis"):
        raise UsageError(f"{path}: question_format is {kind!r}; one of open, mcq, hypothesis")
    mode = cast(Mode, "mcq_refusal" if kind == "mcq" and data.get("refusal_option") else kind)
    eval_mode = row.get("eval_mode") or "llm_verifier"
    if eval_mode not in EVAL_MODES:
        raise UsageError(f"{path}: eval_mode is {eval_mode!r}; one of {', '.join(EVAL_MODES)}")
    ideal = _text(data["ideal_answer"])
    options = tuple(_options(data, ideal, path)) if kind == "mcq" else ()
    if kind == "hypothesis":
        ideal = str(row["answer"] if isinstance(row.get("answer"), bool) else ideal).lower()
    replica = _REPLICA.search(path.stem)
    return Result(
        str(data["problem_id"]),
        int(replica[1]) if replica else 0,
        mode,
        cast(EvalMode, eval_mode),
        next((option.text for option in options if option.kind == "ideal"), ideal),
        None if data["agent_answer"] is None else _text(data["agent_answer"]),
        Outcome.UNGRADED,
        capsule_uuid=_text(row.get("capsule_uuid") or ""),
        question=_text(row.get("question") or data.get("problem") or ""),
        options=options,
        categories=_categories(row.get("categories") or "", path),
        judge=recorded_verdict({name: _text(data[name]) for name in ("grade", "correct") if name in data})
        if kind == "open"
        else None,
        model=_text(data.get("model") or ""),
        steps=data["num_actions"] if isinstance(data.get("num_actions"), int) else 0,
        extra={} if data["agent_answer"] or data["agent_answer"] is None else {DROPPED: True},
    )


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read: {error}") from None


def _text(value: Any) -> str:
    """A JSON value as text: `0` and `false` are something."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _categories(value: Any, path: Path) -> tuple[str, ...]:
    try:
        return categories_of(value)
    except ValueError as error:
        raise UsageError(f"{path}: field 'metadata.categories' {error}") from None


def _options(data: Mapping[str, Any], ideal: str, path: Path) -> Iterator[Option]:
    lettered = list(_lettered(data.get("mcq_options")))
    keys = {canonical(ideal)}
    if isinstance(data.get("metadata"), dict) and data["metadata"].get("ideal") is not None:
        keys.add(canonical(_text(data["metadata"]["ideal"])))
    right = [letter for letter, text in lettered if canonical(text) in keys]
    if not right and ideal.strip() in dict(lettered):
        right = [ideal.strip()]
    if len(right) != 1:
        raise UsageError(f"{path}: {len(right)} of {len(lettered)} mcq_options are the ideal_answer {ideal[:60]!r}")
    for letter, text in lettered:
        refusal = bool(data.get("refusal_option")) and text.lower().startswith(_REFUSAL)
        kind: OptionKind = "ideal" if letter == right[0] else "refusal" if refusal else "distractor"
        yield Option(letter, text, kind)


def _lettered(given: Any) -> Iterator[tuple[str, str]]:
    """Letter and text of options that are a mapping, texts with their letters, or texts in the order of letters."""
    if isinstance(given, dict):
        yield from ((str(letter), _text(text)) for letter, text in given.items())
        return
    texts = [_text(text) for text in given] if isinstance(given, list) else []
    named = [_LETTERED.fullmatch(text) for text in texts]
    for number, (text, match) in enumerate(zip(texts, named, strict=True)):
        yield (match[1], match[2]) if match and all(named) else (chr(ord("A") + number), text)
