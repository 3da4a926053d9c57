"""Read answers from whatever file or folder holds them: ours, any agent's, or the published formats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from nbagent.errors import UsageError
from nbagent.runfolder import RunFolder
from nbagent.score import Attempt
from nbagent.tasks import Outcome, open_tasks
from nbagent_bixbench.grade import KeyVerifier
from nbagent_bixbench.policies import EvalMode
from nbagent_bixbench.results import RESULTS_FILE, Result, read_results
from nbagent_bixbench.source import BixBenchSource
from nbagent_bixbench.trajectory_json import is_trajectory, read_trajectories, trajectory_result
from nbagent_bixbench.zero_shot_csv import is_zero_shot_csv, read_zero_shot_csv


@dataclass(frozen=True, slots=True)
class Answers:
    """What a file or folder holds."""

    kind: str
    """What it is, in words."""
    results: list[Result]


def read_answers(path: Path) -> Answers:
    """The answers of a file or folder, whose format is told by its content.

    Raises:
        UsageError: it is none of the formats, or a row cannot be used; names file and line.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file or folder")
    return _folder(path) if path.is_dir() else _file(path)


def _folder(path: Path) -> Answers:
    if (path / RESULTS_FILE).exists():
        return Answers("run folder", read_results(path))
    if (path / "recipe.toml").exists():
        return Answers("run folder of nbagent score", _scored(RunFolder.open(path)))
    files = sorted(path.rglob("*.json"))
    if files:
        return Answers("published trajectories", read_trajectories(files))
    raise UsageError(f"{path}: holds no answers: no {RESULTS_FILE}, no run of nbagent score, no trajectory JSON")


def _file(path: Path) -> Answers:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start})") from None
    if text.lstrip().startswith("{"):
        try:
            whole = json.loads(text)
        except (ValueError, RecursionError):
            whole = None
        if is_trajectory(whole):
            return Answers("published trajectory", [trajectory_result(whole, path)])
        return Answers("results", read_results(path))
    if is_zero_shot_csv(text):
        return Answers("published zero-shot CSV", read_zero_shot_csv(text, path))
    raise UsageError(
        f"{path}: is no file of answers: neither result rows (JSON Lines), nor a CSV with the columns predicted and "
        "target, nor a trajectory JSON with problem_id"
    )


def _scored(run: RunFolder) -> list[Result]:
    """The attempts of `nbagent score`, whose keys are looked up in the set of tasks that it used."""
    keys = _keys(run)
    results = []
    replicas: dict[str, int] = {}
    for trajectory in run.trajectories():
        attempt = Attempt.of(trajectory)
        key = keys.get((attempt.task_id, trajectory.question))
        if key is None:
            raise UsageError(f"{run.path}: the key of {attempt.task_id!r} is in none of the sets that the run used")
        replica = replicas.get(attempt.task_id, 0)
        replicas[attempt.task_id] = replica + 1
        results.append(
            Result(
                attempt.task_id,
                replica,
                "open",
                cast(EvalMode, key.eval_mode),
                key.ideal,
                attempt.answer,
                attempt.outcome if attempt.outcome is Outcome.INFRASTRUCTURE else Outcome.UNGRADED,
                question=attempt.question,
                categories=(attempt.family,) if attempt.family else (),
                steps=attempt.n_steps,
                prompt_tokens=attempt.prompt_tokens,
                completion_tokens=attempt.completion_tokens,
                seconds=attempt.seconds,
                cost=attempt.cost or None,
                error=attempt.error,
                language=str(trajectory.start.get("language") or "python"),
                trajectory=f"rollouts/{attempt.rollout_id}.jsonl",
                notebook=f"notebooks/{attempt.rollout_id}.ipynb",
            )
        )
    if not results:
        raise UsageError(f"{run.path}: holds no attempts")
    return results


def _keys(run: RunFolder) -> Mapping[tuple[str, str], KeyVerifier]:
    """The keys of all sets that a run used, by task id and question; capsules stay packed where they can."""
    found: dict[tuple[str, str], KeyVerifier] = {}
    for entry in run.description()["tasks"]:
        cache = run.path / entry["cache"] if entry.get("cache") else None
        source = open_tasks(entry.get("path") or entry["location"], cache)
        if isinstance(source, BixBenchSource):
            found |= {(row.question_id, row.question): KeyVerifier(row.ideal, row.eval_mode) for row in source.rows}
            continue
        for task in source.tasks():
            if isinstance(task.verifier, KeyVerifier):
                found[task.task_id, task.question] = task.verifier
    return found
