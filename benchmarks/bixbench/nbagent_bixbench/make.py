"""Write drawn tasks in BixBench's own format: `BixBench.jsonl` and a `CapsuleFolder-<uuid>.zip` per capsule."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from nbagent.errors import UsageError
from nbagent_bixbench.draw import DrawnTask, draft_tasks

VERSION = "nbagent-1"
"""The rows' `version`; published rows have e.g. `1.5`."""

CANARY = "made by `nbagent tasks make`; no row of the published BixBench is in this file"

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time stamp of every zip entry, so that the same seed gives the same bytes."""


def make_tasks(
    out: Path,
    n: int,
    seed: int,
    families: Sequence[str] | None = None,
    split: str = "train",
    progress: Callable[[int], None] | None = None,
    flawed: float = 0.0,
) -> Path:
    """Draw `n` tasks and write them to `out`; the same arguments give the same bytes. Returns `out`.

    `progress` is told how many more tasks are drawn. The folder appears when it is complete, or not at all.
    `flawed` is the share of notebooks that show their family's usual mistake (their metadata says so), for training on
    demonstrations of mixed quality; the keys are right all the same.

    Raises:
        UsageError: `out` is not an empty or new folder, `n` is not positive, `flawed` is no share; and what
            `draft_tasks` raises.
    """
    if not 0 <= flawed <= 1:
        raise UsageError(f"flawed {flawed} is not a share between 0 and 1")
    if n < 1:
        raise UsageError(f"number of tasks {n} is not positive")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already and not an empty folder; name a new one")
    tasks = draft_tasks(n, seed, split, families, progress)
    half = out.with_name(out.name + ".partial")
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        _write(half, tasks, f"{split} {seed}", flawed)
        if out.exists():
            out.rmdir()
        half.rename(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return out


def _write(folder: Path, tasks: list[DrawnTask], name: str, flawed: float) -> None:
    capsules: dict[int, list[int]] = {}
    for index, task in enumerate(tasks):
        capsules.setdefault(task.capsule, []).append(index)
    rows: dict[int, dict[str, Any]] = {}
    for number, members in enumerate(capsules.values(), start=1):
        capsule = _uuid(name, "capsule", str(number), tasks[members[0]].content)
        notebooks = {}
        for place, index in enumerate(members, start=1):
            row = _row(tasks[index], number, place, capsule, name)
            rows[index] = row
            rival = _rival(tasks[index], row["id"], flawed)
            notebooks[f"{row['question_id']}_executed.ipynb"] = _notebook(tasks[index], rival)
        _write_zip(folder / f"CapsuleFolder-{capsule}.zip", capsule, tasks[members[0]], notebooks)
    lines = [json.dumps(rows[index], ensure_ascii=False) for index in range(len(tasks))]
    (folder / "BixBench.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(task: DrawnTask, number: int, place: int, capsule: str, name: str) -> dict[str, Any]:
    question_id = f"nb-{number}-q{place}"
    return {
        "id": _uuid(name, question_id, task.question, task.content),
        "question_id": question_id,
        "short_id": f"nb-{number}",
        "question": task.question,
        "ideal": task.ideal,
        "distractors": list(task.distractors),
        "eval_mode": task.eval_mode,
        "capsule_uuid": capsule,
        "data_folder": f"CapsuleFolder-{capsule}.zip",
        "categories": task.family,
        "hypothesis": f"The data give an answer to: {task.question}",
        "result": f"The reference notebook prints {task.answer}.",
        "answer": True,
        "paper": task.paper,
        "version": VERSION,
        "canary": CANARY,
    }


def _write_zip(path: Path, capsule: str, task: DrawnTask, notebooks: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for folder, files in ((f"CapsuleData-{capsule}", task.files), (f"CapsuleNotebook-{capsule}", notebooks)):
            for name, data in files.items():
                entry = zipfile.ZipInfo(f"{folder}/{name}", EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                archive.writestr(entry, data)


def _rival(task: DrawnTask, task_id: str, flawed: float) -> tuple[str, str] | None:
    """The wrong analysis that a task's notebook shows, its family's usual mistake; None for the right one."""
    return task.rivals[0] if task.rivals and Random(f"{task_id} flawed").random() < flawed else None


def _notebook(task: DrawnTask, rival: tuple[str, str] | None) -> bytes:
    cells: list[dict[str, Any]] = [{"cell_type": "markdown", "id": "question", "metadata": {}, "source": task.question}]
    run = list(zip(task.cells, task.outputs, strict=True))
    if rival is not None:
        run[-1] = rival
    for number, (source, output) in enumerate(run, start=1):
        stream = {"name": "stdout", "output_type": "stream", "text": output}
        cells.append(
            {
                "cell_type": "code",
                "execution_count": number,
                "id": f"c{number}",
                "metadata": {},
                "outputs": [stream],
                "source": source,
            }
        )
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            **({"nbagent": {"flawed": True}} if rival is not None else {}),
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1).encode()


def _uuid(*parts: str) -> str:
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))
