"""Read the published zero-shot files: CSV with `uuid,question,predicted,target,unsure,evaluation_mode`.

Graded files have `grade,correct,sure` as well; older ones call the first column `short_qid` and know no evaluation
mode, because a judge decided every answer. Files of multiple choice hold letters in `predicted` and `target`, and in
`unsure` the letter of the refusal option; the options' texts are not in them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

from nbagent.errors import UsageError
from nbagent.tasks import Outcome
from nbagent_bixbench import official
from nbagent_bixbench.policies import EVAL_MODES, EvalMode
from nbagent_bixbench.results import Mode, Result
from nbagent_bixbench.types import Judgement, JudgeVerdict, Option, OptionKind

_IDS = ("uuid", "short_qid")
_NEEDED = ("predicted", "target")
_LETTER = re.compile("[A-Z]")
_VERDICTS: dict[str, JudgeVerdict] = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "correct"), "correct"),
    **dict.fromkeys(("false", "0", "0.0", "no", "incorrect"), "incorrect"),
    "refused": "refused",
}


def is_zero_shot_csv(text: str) -> bool:
    """Whether a text is such a file, by its first line."""
    return {"predicted", "target"} & set(_columns(text)) != set()


def read_zero_shot_csv(text: str, path: Path) -> list[Result]:
    """The results of a file, in its order.

    A row that names a question again is its next replica; where one uuid has several questions (it may be the
    capsule's), they are told apart by a number. What the file says of `correct` is kept as a judge's verdict where its
    own scorer needs a judge; under the other policies such rows then need none.

    Args:
        text: the file's text.
        path: where it is from, for messages.

    Raises:
        UsageError: a column is missing, or a row has another number of cells; names file and line.
    """
    columns = _columns(text)
    wanted = [*_NEEDED, *(() if "short_qid" in columns else ("uuid", "question", "unsure", "evaluation_mode"))]
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise UsageError(f"{path}:1: no column {', '.join(map(repr, missing))}; there are: {', '.join(columns)}")
    rows = list(_rows(text, path))
    if not rows:
        raise UsageError(f"{path}: holds no answers")
    choices = all(_LETTER.fullmatch(row["target"].strip()) for _, row in rows)
    names = _Names()
    return [_result(row, f"{path}:{line}", choices, *names.take(row)) for line, row in rows]


def _columns(text: str) -> list[str]:
    # A first line without a closing quote would otherwise be read to the end of the file.
    return [name.strip() for name in next(csv.reader([text.partition("\n")[0].rstrip("\r")]), [])]


def _rows(text: str, path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows with the line on which each begins."""
    # An answer may be longer than the 131,072 characters that the csv module takes at first.
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    reader = csv.reader(io.StringIO(text, newline=""))
    columns = [name.strip() for name in next(reader)]
    begin = reader.line_num + 1
    try:
        for cells in reader:
            line, begin = begin, reader.line_num + 1
            if not cells:
                continue
            if len(cells) != len(columns):
                raise UsageError(f"{path}:{line}: {len(cells)} cells under {len(columns)} columns; check its quotes")
            yield line, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise UsageError(f"{path}:{begin}: not CSV: {error}") from None


def _result(row: Mapping[str, str], where: str, choices: bool, question_id: str, replica: int) -> Result:
    eval_mode = row.get("evaluation_mode", "llm_verifier").strip()
    if eval_mode not in EVAL_MODES:
        raise UsageError(f"{where}: evaluation_mode is {eval_mode!r}; one of {', '.join(EVAL_MODES)}")
    predicted, target, unsure = row["predicted"], row["target"], row.get("unsure", "").strip()
    options: tuple[Option, ...] = ()
    mode: Mode = "open"
    if choices:
        refusal = unsure if _LETTER.fullmatch(unsure) else ""
        mode = "mcq_refusal" if refusal else "mcq"
        options = _options(target.strip(), refusal)
    return Result(
        question_id,
        replica,
        mode,
        cast(EvalMode, eval_mode),
        target.strip() if choices else target,
        predicted,
        Outcome.UNGRADED,
        setting="zero-shot",
        question=row.get("question", ""),
        options=options,
        judge=recorded_verdict(row) if not choices and _judged(row, eval_mode) else None,
    )


def _options(target: str, refusal: str) -> tuple[Option, ...]:
    """Letters for texts: four options, five with a refusal, more where the key's letter says so."""
    last = max(target, refusal, "E" if refusal else "D")
    kinds: dict[str, OptionKind] = {target: "ideal", refusal: "refusal"}
    letters = [chr(code) for code in range(ord("A"), ord(last) + 1)]
    return tuple(Option(letter, f"option {letter}", kinds.get(letter, "distractor")) for letter in letters)


def recorded_verdict(row: Mapping[str, str]) -> Judgement | None:
    """The verdict that the fields `grade` and `correct` of a graded file hold, as a judge's; None: they hold none."""
    grade, correct = (_VERDICTS.get(row.get(name, "").strip().lower()) for name in ("grade", "correct"))
    # `refused` is told apart in `grade` only; else `correct` is the plainer of the two.
    verdict = grade if grade == "refused" else correct or grade
    return Judgement(verdict, (verdict,), 1.0, "", "recorded") if verdict else None


def _judged(row: Mapping[str, str], eval_mode: str) -> bool:
    """Whether the published scorer asked a judge about a row, or its own comparison decided."""
    return eval_mode != "str_verifier" or official.compare(row["predicted"], row["target"]) is None


class _Names:
    """Question ids and replicas for rows that name neither reliably."""

    def __init__(self) -> None:
        self._questions: dict[str, dict[str, str]] = {}
        self._replicas: dict[str, int] = {}

    def take(self, row: Mapping[str, str]) -> tuple[str, int]:
        given = next((row[name].strip() for name in reversed(_IDS) if row.get(name, "").strip()), "question")
        known = self._questions.setdefault(given.casefold(), {})
        text = row.get("question", "")
        name = known.setdefault(text, f"{given}#{len(known) + 1}" if known else given)
        replica = self._replicas.get(name, 0)
        self._replicas[name] = replica + 1
        return name, replica
