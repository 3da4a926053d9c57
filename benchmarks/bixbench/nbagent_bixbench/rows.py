"""Rows of a set: one JSON object per line (or a Parquet file), checked field by field; every problem is kept.

Three schemas are told apart by their fields (see `nbagent_bixbench.schemas`): BixBench 1.5 and Verified-50, the older
one with a row per capsule, and BixBench-Hypothesis.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbagent.errors import TaskFormatError
from nbagent.validation import Problem
from nbagent_bixbench.schemas import rows_of
from nbagent_bixbench.types import Row


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, in its order.

    Raises:
        TaskFormatError: the file cannot be read or a row cannot be used; names file, line and field.
    """
    rows, problems = examine_rows(path)
    if problems:
        more = f" (and {len(problems) - 1} more; `nbagent bixbench check` lists them)" if len(problems) > 1 else ""
        raise TaskFormatError(f"{problems[0]}{more}")
    return rows


def examine_rows(path: Path) -> tuple[list[Row], list[Problem]]:
    """The rows that can be used, and everything that is wrong with the file.

    Raises:
        TaskFormatError: the file cannot be read at all.
    """
    rows: list[Row] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, record in _records(path):
        if isinstance(record, str):
            problems.append(Problem(path, line, record))
            continue
        found, wrong = rows_of(record, line)
        problems += [Problem(path, line, what) for what in wrong]
        for row in found:
            # The published ids differ in case (`Bix-33-q6`), so two that differ only in that are one id.
            first = seen.get(row.question_id.lower())
            if first is not None:
                problems.append(Problem(path, line, f"question_id {row.question_id!r} is taken by line {first}"))
                continue
            seen[row.question_id.lower()] = line
            rows.append(row)
    if not rows and not problems:
        problems.append(Problem(path, 0, "holds no questions"))
    return rows, problems


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Line numbers with objects, or with what is wrong with the line."""
    try:
        if path.suffix == ".parquet":
            from pyarrow import ArrowException, parquet

            try:
                yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
            except ArrowException as error:
                raise TaskFormatError(f"{path}: cannot be read: {error}") from error
            return
        # By bytes: str.splitlines would also split at U+2028 and U+0085, which JSON texts may hold.
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise TaskFormatError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
            json.dumps(record, ensure_ascii=False).encode()
        except UnicodeDecodeError as error:
            yield number, f"not UTF-8 text: {error}"
        except UnicodeEncodeError:
            yield number, "holds half a surrogate pair, which is no text"
        except RecursionError:
            yield number, "not JSON that can be read: nested too deeply"
        except ValueError as error:
            yield number, f"not JSON: {error}"
        else:
            whole = isinstance(record, dict)
            yield number, record if whole else f"a row must be a JSON object, this is a {type(record).__name__}"
