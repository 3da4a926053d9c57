"""Execute reference notebooks: many in one kernel to draw tasks, or a kernel for each, to check that it is the same.

Each notebook runs in a namespace of its own with its capsule as the current folder. Sharing a kernel saves its start
and nothing else; a test compares the outputs with those of a kernel per notebook.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import shutil
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nbagent_bixbench.batch_cell import run_batch
from nbagent_kernels.session import Session, open_session
from nbagent_kernels.types import CellResult, SessionSpec

T = TypeVar("T")

BATCH = 400
"""Notebooks per cell, so that capsules do not pile up on the disk."""

PRELOAD = ("pandas", "scipy.stats", "anndata")
"""What the reference notebooks import; far quicker to start with than the whole stack."""

BATCH_S = 600.0
"""Seconds for one cell of BATCH notebooks, which take about 3 ms each."""

ALONE_S = 60.0
"""Seconds for one cell of a notebook that has a kernel of its own."""


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


async def open_kernel(backend: str = "fork") -> Session:
    """A session for `execute`. Raises KernelStartError."""
    return await open_session(SessionSpec(preload=PRELOAD), backend)


async def execute(session: Session, notebooks: Sequence[Notebook]) -> list[Executed]:
    """Execute notebooks, many per cell of one session. Raises RuntimeError where the kernel failed."""
    source = f"{inspect.getsource(run_batch)}\nrun_batch('batch')"
    folder = session.workdir / "batch"
    done: list[Executed] = []
    for start in range(0, len(notebooks), BATCH):
        _write_jobs(folder, notebooks[start : start + BATCH])
        result = await session.execute(source, timeout=BATCH_S)
        if result.status != "ok":
            raise RuntimeError(f"reference notebooks did not run: {result.status} {result.cause} {_text(result)}")
        for item in json.loads((folder / "results.json").read_text()):
            done.append(Executed(tuple(item["outputs"]), tuple(item["extras"]), item["error"]))
        shutil.rmtree(folder)
    return done


async def execute_alone(notebooks: Sequence[Notebook], backend: str = "fork") -> list[Executed]:
    """Execute notebooks cell by cell, each in a session of its own; extras are not run. Raises KernelStartError."""
    return [await _alone(notebook, backend) for notebook in notebooks]


def blocking(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, also where the caller's thread has a running loop already."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    box: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            box.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name="reference-notebooks", daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return box[0]


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
    session = await open_kernel(backend)
    outputs: list[str] = []
    try:
        for name, data in notebook.files.items():
            (session.workdir / name).write_bytes(data)
        for cell in notebook.cells:
            result = await session.execute(cell, timeout=ALONE_S)
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
