"""Check a file of results: every line on its own, and what holds across lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nbagent.errors import UsageError
from nbagent.validation import Problem
from nbagent_bixbench.grade import key_range
from nbagent_bixbench.results import Result, parse_result


def check_results(path: Path) -> tuple[list[Result], list[Problem]]:
    """The results of a file and everything wrong with it, in the order of its lines.

    Lines that are no result are left out of the results and are among the problems.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; give a file of results, or a run folder that holds one") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start}); write the file as UTF-8") from None
    results: list[Result] = []
    problems: list[Problem] = []
    across = _Across()
    # Not splitlines(): an answer may hold U+2028, which JSON leaves as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            result = parse_result(line)
        except ValueError as error:
            problems.append(Problem(path, number, str(error)))
            continue
        results.append(result)
        problems += [Problem(path, number, what) for what in (*_within(result), *across.take(result, number))]
    if not results and not problems:
        problems.append(Problem(path, 0, "holds no results"))
    return results, problems


def _within(result: Result) -> Iterator[str]:
    """What is wrong with a row by itself and a schema cannot say."""
    if result.mode == "open" and result.eval_mode == "range_verifier":
        try:
            key_range(result.ideal)
        except UsageError as error:
            yield f"field 'ideal': {error}"
    if result.mode == "hypothesis" and result.ideal.casefold() not in ("true", "false"):
        yield f"field 'ideal': the key of a hypothesis is true or false, not {result.ideal!r}"
    kinds = [option.kind for option in result.options]
    if not result.mode.startswith("mcq"):
        if kinds:
            yield f"field 'options': mode {result.mode!r} has none"
        return
    if kinds.count("ideal") != 1:
        yield f"field 'options': one option must be of kind 'ideal', there are {kinds.count('ideal')}"
    if kinds.count("refusal") != (result.mode == "mcq_refusal"):
        yield f"field 'options': mode {result.mode!r} has {kinds.count('refusal')} options of kind 'refusal'"
    for name in ("letter", "text"):
        values = [getattr(option, name) for option in result.options]
        if len(set(values)) != len(values):
            yield f"field 'options': two options have the same {name}"
    if result.choice is not None and result.choice not in [option.text for option in result.options]:
        yield f"field 'choice': {result.choice!r} is no option's text"


class _Across:
    """What earlier lines said of the same question."""

    def __init__(self) -> None:
        self._attempts: dict[tuple[str, int, str, str], int] = {}
        self._keys: dict[str, tuple[str, str, int]] = {}

    def take(self, result: Result, line: int) -> Iterator[str]:
        attempt = (result.question_key, result.replica, result.mode, result.setting)
        first = self._attempts.setdefault(attempt, line)
        if first != line:
            yield f"replica {result.replica} of {result.question_id!r} ({result.mode}) is on line {first} already"
        if result.mode == "hypothesis":
            return
        ideal, eval_mode, where = self._keys.setdefault(result.question_key, (result.ideal, result.eval_mode, line))
        if (ideal, eval_mode) != (result.ideal, result.eval_mode):
            yield f"{result.question_id!r} has another key or eval mode on line {where}"
