"""Execute reference notebooks: many per kernel to draw tasks, or a kernel for one, to check that it is the same.

Each notebook runs in a namespace of its own with its capsule as the current folder. Sharing a kernel saves its start
(tens of milliseconds) and nothing else; a test compares the outputs with those of a kernel per notebook.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nbagent_bixbench.batch_cell import run_batch
from nbagent_kernels.session import open_session
from nbagent_kernels.types import CellResult, SessionSpec

T = TypeVar("T")

BATCH = 400
"""Notebooks per call, so that progress is seen and files do not pile up."""


@dataclass(frozen=True, slots=True)
class Notebook:
    """A reference notebook and its capsule."""

    files: Mapping[str, bytes]
    """Data files; notebooks that share the very same mapping share a folder."""
    cells: tuple[str, ...]
    """Sources, in order."""
    extras: tuple[str, ...] = ()
    """Sources to run in place of the last cell, each from the state before it."""


@dataclass(frozen=True, slots=True)
class Executed:
    """What a notebook printed."""

    outputs: tuple[str, ...]
    """Printed text of each cell, as printed (with its line ends)."""
    extras: tuple[str | None, ...] = ()
    """Printed text of each extra; None where it raised."""
    error: str = ""
    """`Type: message` of the cell that raised; then `outputs` ends before it."""


def execute(
    notebooks: Sequence[Notebook], backend: str = "process", progress: Callable[[int], None] | None = None
) -> list[Executed]:
    """Execute notebooks, many in one kernel. `progress` is told how many more are done.

    Raises:
        RuntimeError: the kernel failed.
        KernelError: no kernel came up.
    """
    if not notebooks:
        return []
    if backend == "process":
        return _execute_process(notebooks, progress)
    return _blocking(_execute(notebooks, backend, progress))


def execute_alone(notebook: Notebook, backend: str = "fork") -> Executed:
    """Execute one notebook in a kernel of its own, cell by cell; extras are not run."""
    return _blocking(_alone(notebook, backend))


async def _execute(
    notebooks: Sequence[Notebook], backend: str, progress: Callable[[int], None] | None
) -> list[Executed]:
    source = f"{inspect.getsource(run_batch)}\nrun_batch('batch')"
    done: list[Executed] = []
    session = await open_session(SessionSpec(), backend)
    try:
        for start in range(0, len(notebooks), BATCH):
            chunk = notebooks[start : start + BATCH]
            folder = session.workdir / "batch"
            _write_jobs(folder, chunk)
            result = await session.execute(source, timeout=600)
            if result.status != "ok":
                raise RuntimeError(f"reference notebooks did not run: {result.status} {result.cause} {_text(result)}")
            for item in json.loads((folder / "results.json").read_text()):
                done.append(Executed(tuple(item["outputs"]), tuple(item["extras"]), item["error"]))
            shutil.rmtree(folder)
            if progress:
                progress(len(chunk))
    finally:
        await session.close()
    return done


def _execute_process(notebooks: Sequence[Notebook], progress: Callable[[int], None] | None) -> list[Executed]:
    done: list[Executed] = []
    for start in range(0, len(notebooks), BATCH):
        chunk = notebooks[start : start + BATCH]
        with tempfile.TemporaryDirectory() as place:
            _write_jobs(Path(place) / "batch", chunk)
            source = f"{inspect.getsource(run_batch)}\nrun_batch('batch')"
            subprocess.run([sys.executable, "-c", source], cwd=place, check=True)
            for item in json.loads((Path(place) / "batch" / "results.json").read_text()):
                done.append(Executed(tuple(item["outputs"]), tuple(item["extras"]), item["error"]))
        if progress:
            progress(len(chunk))
    return done


def _write_jobs(folder: Path, notebooks: Sequence[Notebook]) -> None:
    folder.mkdir()
    places: dict[int, str] = {}
    jobs = []
    for notebook in notebooks:
        place = places.get(id(notebook.files))
        if place is None:
            place = places[id(notebook.files)] = f"c{len(places)}"
            (folder / place).mkdir()
            for name, data in notebook.files.items():
                (folder / place / name).write_bytes(data)
        jobs.append({"capsule": place, "cells": notebook.cells, "extras": notebook.extras})
    (folder / "jobs.json").write_text(json.dumps(jobs))


async def _alone(notebook: Notebook, backend: str) -> Executed:
    session = await open_session(SessionSpec(), backend)
    outputs: list[str] = []
    try:
        for name, data in notebook.files.items():
            (session.workdir / name).write_bytes(data)
        for cell in notebook.cells:
            result = await session.execute(cell, timeout=60)
            if result.status != "ok":
                return Executed(tuple(outputs), (), _text(result) or result.cause)
            outputs.append(_text(result))
    finally:
        await session.close()
    return Executed(tuple(outputs))


def _text(result: CellResult) -> str:
    parts = []
    for output in result.outputs:
        if output["output_type"] == "stream" and output["name"] == "stdout":
            parts.append(str(output["text"]))
        elif output["output_type"] == "error":
            parts.append(f"{output['ename']}: {output['evalue']}")
    return "".join(parts)


def _blocking(work: Coroutine[Any, Any, T]) -> T:
    # A thread of its own, because the caller may already be on an asyncio loop.
    box: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            box.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="reference-notebooks")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return box[0]
