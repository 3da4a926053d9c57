"""Result rows: what an agent answered to one question once, one JSON object per line, written by any agent.

    {"format": "nbagent-bixbench-result", "version": 1, "question_id": "bix-900-q1", "replica": 0, "mode": "open",
     "eval_mode": "str_verifier", "ideal": "42", "answer": "42", "outcome": "ungraded"}

is a whole row; `nbagent bixbench regrade` computes the outcome. `result_schema.json` describes every field.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from nbagent.blobs import storage_failed
from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench.grade import EvalMode
from nbagent_bixbench.types import Judgement, Option

Mode = Literal["open", "mcq", "mcq_refusal", "hypothesis"]
Setting = Literal["agentic", "zero-shot"]
Count = Annotated[int, Field(ge=0)]

FORMAT: Literal["nbagent-bixbench-result"] = "nbagent-bixbench-result"
VERSION: Literal[1] = 1
RESULTS_FILE = "results.jsonl"
"""The file's name in a run folder."""
REQUIRED = ("format", "version", "question_id", "replica", "mode", "eval_mode", "ideal", "answer", "outcome")
"""Fields without which a line is no result."""


@dataclass(frozen=True, slots=True)
class Result:
    """One attempt at one question.

    Example:
        >>> row = Result("bix-900-q1", 0, "open", "str_verifier", "42", "42", Outcome.UNGRADED)
        >>> parse_result(result_line(row)) == row
        True
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    question_id: Annotated[str, Field(min_length=1)]
    """The question's id in its set, e.g. `bix-3-q1`; the same up to case is the same question."""
    replica: Count
    """Number of the attempt at this question, from 0."""
    mode: Mode
    """How it was asked: open answer, multiple choice without or with a refusal option, or hypothesis true or false."""
    eval_mode: EvalMode
    """How the set compares an open answer with its key."""
    ideal: str
    """The key as the set has it; for `hypothesis` the text `true` or `false`."""
    answer: str | None
    """What the agent answered, as given; for multiple choice a letter or an option's text; null: nothing."""
    outcome: Outcome
    """How it was graded; `ungraded` where nobody has yet, `infrastructure` where a host-side failure ended it."""
    format: Literal["nbagent-bixbench-result"] = FORMAT
    version: Literal[1] = VERSION
    capsule_uuid: str = ""
    """The capsule the question is about."""
    setting: Setting = "agentic"
    """agentic: with a notebook and the data; zero-shot: one model call without either."""
    question: str = ""
    """The text the agent was given, without the options."""
    options: tuple[Option, ...] = ()
    """Multiple choice: the options as they were shown, in the order of their letters. Else empty."""
    choice: str | None = None
    """Multiple choice: the text of the option that was chosen; null: none, or to be read from the answer."""
    categories: tuple[str, ...] = ()
    """Kinds of analysis."""
    reason: str = ""
    """The verdict's reason, in one sentence."""
    policy: str = ""
    """The policy that graded it."""
    judge: Judgement | None = None
    """What a judge said, where one was asked."""
    model: str = ""
    """Name of the agent's model."""
    steps: Count = 0
    """Model calls that were actions."""
    prompt_tokens: Count = 0
    """Tokens read, summed over the calls."""
    completion_tokens: Count = 0
    """Tokens written, summed over the calls."""
    seconds: Annotated[float, Field(ge=0)] = 0.0
    """From start to end."""
    cost: float | None = None
    """What the calls cost; null: unknown."""
    error: str = ""
    """`class: message` of what broke the attempt, or empty."""
    seed: int = 0
    """Seed of the attempt's noise."""
    images: bool = False
    """Whether the model was shown images."""
    language: str = "python"
    """Language of the kernel."""
    trajectory: str = ""
    """Path of the event log, relative to this file, or empty."""
    notebook: str = ""
    """Path of the notebook, relative to this file, or empty."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything of the agent's own; kept, and no part of any score but where a published scorer's fault hangs on it."""

    @property
    def question_key(self) -> str:
        """What tells questions apart: two published ids are capitalised."""
        return self.question_id.casefold()


_RESULT: TypeAdapter[Result] = TypeAdapter(Result)
_NAMES = tuple(part.name for part in fields(Result))


def result_schema() -> dict[str, Any]:
    """The JSON Schema of a line; `result_schema.json` holds it."""
    made: dict[str, Any] = _trimmed(_RESULT.json_schema())
    made["required"] = list(REQUIRED)
    made["description"] = "One attempt at one question in BixBench's format; a file holds one such object per line."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def parse_result(line: str | bytes) -> Result:
    """A result from its line.

    Raises:
        ValueError: the line is no result; says which field and why, on one line.
    """
    try:
        given = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise ValueError(f"a result is a JSON object, this is a {type(given).__name__}")
    for name in REQUIRED:
        if name not in given:
            raise ValueError(f"field {name!r} is missing")
    try:
        return _RESULT.validate_json(line)
    except ValidationError as error:
        raise ValueError(_first(error)) from None


def result_line(result: Result) -> str:
    """A result as its line, without the newline. Unpaired surrogates, which UTF-8 has not, are spelled out."""
    first: dict[str, Any] = {"format": result.format, "version": result.version}
    return json.dumps(first | _sound(asdict(result)), ensure_ascii=False, allow_nan=False)


def write_result(path: Path, result: Result) -> None:
    """Append a result to a file, which is made where it is not there. Raises StorageError."""
    try:
        with path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(result_line(result) + "\n")
    except OSError as error:
        storage_failed(path, error)


def write_results(path: Path, results: Iterable[Result]) -> None:
    """Write a whole file of results in place of what is there. Raises StorageError."""
    try:
        path.write_text("".join(result_line(result) + "\n" for result in results), encoding="utf-8", newline="\n")
    except OSError as error:
        storage_failed(path, error)


def results_path(path: Path) -> Path:
    """The file itself, or `results.jsonl` in a run folder."""
    return path / RESULTS_FILE if path.is_dir() else path


def read_results(path: Path) -> list[Result]:
    """The results of a file, or of a run folder that holds `results.jsonl`, in the file's order.

    Raises:
        UsageError: the file cannot be used; names the first problem's line.
    """
    from nbagent_bixbench.results_check import check_results

    results, problems = check_results(results_path(path))
    if problems:
        more = f" ({len(problems) - 1} more problems; `nbagent bixbench validate` lists them)" if problems[1:] else ""
        raise UsageError(f"{problems[0]}{more}")
    return results


def _trimmed(node: Any) -> Any:
    """A schema without titles, which repeat the names, and without the examples of docstrings."""
    if isinstance(node, list):
        return [_trimmed(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _trimmed(inner) for key, inner in node.items() if not (key == "title" and isinstance(inner, str))}
    if isinstance(kept.get("description"), str):
        kept["description"] = kept["description"].partition("\n\n")[0]
    return kept


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _first(error: ValidationError) -> str:
    from difflib import get_close_matches

    wrong = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in wrong["loc"])
    if wrong["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = get_close_matches(place, _NAMES, 1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        return f"field {place!r} is unknown{meant or '; what is your own goes into `extra`'}"
    given = repr(wrong.get("input"))
    return f"field {place!r}: {wrong['msg']}, not {given if len(given) <= 60 else given[:59] + '…'}"


def _sound(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_sound(key): _sound(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_sound(inner) for inner in value]
    return value
