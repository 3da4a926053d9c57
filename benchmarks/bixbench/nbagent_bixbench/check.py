"""Everything that is wrong with a set, and what is worth knowing of it, by file and line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nbagent.errors import TaskFormatError, UsageError
from nbagent.tasks import Outcome
from nbagent.validation import Problem
from nbagent_bixbench.grade import KeyVerifier, key_range
from nbagent_bixbench.modes import ask, default_mode
from nbagent_bixbench.rows import examine_rows
from nbagent_bixbench.source import BixBenchSource
from nbagent_bixbench.types import Row


@dataclass(frozen=True, slots=True)
class Findings:
    """What a check found."""

    rows: Sequence[Row]
    """The rows that can be used."""
    problems: Sequence[Problem]
    """What must be mended, by line."""
    notes: Sequence[Problem]
    """What published sets have too and is read all the same: reversed ranges, blanks, capitals, files kept out."""
    n_capsules: int
    """Capsules that can be used."""


def check_rows(path: Path) -> Findings:
    """A file of rows: every row field by field, and every key graded against itself.

    Raises:
        TaskFormatError: the file cannot be read at all.
    """
    rows, problems = examine_rows(path)
    notes = []
    for row in rows:
        problems += [Problem(path, row.line, f"{row.question_id}: {what}") for what in _wrong_key(row)]
        notes += [Problem(path, row.line, f"{row.question_id}: {what}") for what in _notable(row)]
    return Findings(rows, sorted(problems, key=lambda problem: problem.line), notes, 0)


def check_capsules(source: BixBenchSource, found: Findings, progress: Callable[[], None] = lambda: None) -> Findings:
    """The same with every capsule unpacked; a capsule that cannot be used is named once, with its first row.

    Args:
        source: the set, of which `found` holds the rows.
        found: what `check_rows` found.
        progress: is called for each capsule.
    """
    problems, notes, n = list(found.problems), list(found.notes), 0
    for folder, row in {row.data_folder: row for row in reversed(found.rows)}.items():
        try:
            capsule = source.capsules([row])[folder]
        except TaskFormatError as error:
            problems.append(Problem(source.path, row.line, str(error)))
        else:
            n += 1
            kept = capsule.kept_out.items()
            notes += [Problem(source.path, row.line, f"{folder}: {name} is kept out: {why}") for name, why in kept]
            if not any(path.is_file() for path in capsule.data.rglob("*")):
                problems.append(Problem(source.path, row.line, f"{folder}: has no data files"))
        progress()
    return Findings(
        found.rows,
        sorted(problems, key=lambda problem: problem.line),
        sorted(notes, key=lambda note: note.line),
        n,
    )


def summary_of(found: Findings) -> str:
    """One line: how many rows of which eval modes, how many capsules."""
    modes = Counter(row.eval_mode if row.question else "hypothesis" for row in found.rows)
    counted = ", ".join(f"{n} {mode}" for mode, n in sorted(modes.items()))
    return f"rows: {len(found.rows)} ({counted or 'none'}), capsules: {found.n_capsules}"


def _wrong_key(row: Row) -> list[str]:
    if not row.question:
        return []
    keys = [str(bound) for bound in key_range(row.ideal)] if row.eval_mode == "range_verifier" else [row.ideal]
    verdicts = [KeyVerifier(row.ideal, row.eval_mode).verify(key) for key in keys]
    wrong = next((v for v in verdicts if v.outcome not in (Outcome.CORRECT, Outcome.UNGRADED)), None)
    if wrong is None:
        return []
    return [f"its own key {row.ideal!r} is graded {wrong.outcome}: {wrong.reason}"]


def _notable(row: Row) -> list[str]:
    notes = []
    if row.question_id != row.question_id.lower():
        notes.append("its id has capitals; ids are compared without case")
    if row.ideal != row.ideal.strip():
        notes.append(f"its key {row.ideal!r} has blanks around it")
    if row.question and row.eval_mode == "range_verifier":
        low, _ = key_range(row.ideal)
        first = row.ideal.strip()[1:].partition(",")[0].strip()
        if KeyVerifier(str(low)).verify(first).outcome is not Outcome.CORRECT:
            notes.append(f"its range {row.ideal.strip()} is reversed; it is read either way")
    if row.distractors:
        try:
            options = ask(row, "mcq").options
        except UsageError as error:
            return [*notes, str(error)]
        if len(options) < len(row.distractors) + 1:
            notes.append("a wrong option repeats another option; it is asked without it")
    if default_mode(row) == "open" and not row.distractors:
        notes.append("it has no wrong options; it cannot be asked as multiple choice")
    return notes
