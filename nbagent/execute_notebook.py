"""Execute a notebook in a kernel session, from the first cell to the last, and say what differs from before."""

from __future__ import annotations

import asyncio
import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from nbagent.artefacts import keep_artefacts
from nbagent.backends import container_of, kernels_of, limits_of
from nbagent.blobs import storage_failed
from nbagent.errors import UsageError
from nbagent.normal_form import normal_outputs
from nbagent.notebook import valid_outputs
from nbagent_kernels import CellResult, Session, SessionSpec, Status, open_session

KEPT_BYTES = 256 << 20
"""Most bytes of files that are kept of a notebook: one may take as much memory here on its way."""


@dataclass(frozen=True, slots=True)
class CellRun:
    """What became of one code cell."""

    index: int
    """0-based place in the notebook."""
    cell_id: str
    status: Status
    seconds: float
    cause: str
    """For dead and timeout: what happened."""
    difference: str
    """Where its outputs differ from the notebook's, in one line; '' where they are the same or not comparable."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a notebook."""

    cells: tuple[CellRun, ...]
    """The code cells that were run, in order."""
    skipped: tuple[int, ...]
    """0-based places of code cells that were not run: those after a failure, where that ends the run, and those
    whose record says that they ended the kernel by running out of time."""
    seconds: float
    """Wall time of the cells."""
    kept: tuple[str, ...] = ()
    """Files that cells wrote or changed and that were copied out, relative to the folder they are in now."""

    @property
    def failed(self) -> tuple[CellRun, ...]:
        """Cells that raised, ran out of time or took the kernel down."""
        return tuple(cell for cell in self.cells if cell.status != "ok")

    @property
    def differences(self) -> tuple[CellRun, ...]:
        """Cells whose outputs differ from those the notebook held."""
        return tuple(cell for cell in self.cells if cell.difference)


async def execute_notebook(
    notebook: NotebookNode,
    spec: SessionSpec,
    backend: str = "fork",
    timeout: float | None = None,
    allow_errors: bool = True,
    run: str = "",
    keep: Path | None = None,
) -> tuple[NotebookNode, Report]:
    """Run every code cell in a fresh session.

    Marks that a replayed notebook carries (`metadata.nbagent`) are followed: where the kernel was restarted or lost,
    the variables go here too, and a cell that timed out is not compared.

    Args:
        notebook: nbformat v4; is not changed.
        spec: the session to run it in.
        backend: where it runs.
        timeout: seconds one cell may run; None for no limit.
        allow_errors: go on after a cell that failed; a cell tagged `raises-exception` may always raise.
        run: what its container is labelled with.
        keep: folder into which the files that cells wrote are copied, KEPT_BYTES at most; None: they go.

    Returns:
        The notebook with the new outputs, and what became of each cell.

    Raises:
        KernelError: no kernel came up, or the session failed on the host's side.
        StorageError: `keep` cannot be written.
    """
    executed = copy.deepcopy(notebook)
    runs: list[CellRun] = []
    skipped: list[int] = []
    stopped = False
    state_kept = True
    container = spec.container or container_of(backend, spec.language, run)
    spec = replace(spec, container=container, limits=limits_of(backend, spec.limits))
    session = await open_session(spec, kernels_of(backend))
    try:
        for index, cell in enumerate(executed["cells"]):
            mark = cell["metadata"].get("nbagent", {})
            if mark.get("kernel") == "restart" or (mark.get("kernel") == "lost" and state_kept):
                await session.restart()
            if cell["cell_type"] != "code":
                continue
            timed_out = mark.get("status") == "timeout"
            if stopped or (timed_out and not mark["state_kept"]):
                skipped.append(index)
                state_kept = True
                continue
            result = await _run(session, cell, timeout)
            state_kept = result.state_kept
            before = notebook["cells"][index]["outputs"]
            runs.append(
                CellRun(
                    index=index,
                    cell_id=str(cell.get("id", "")),
                    status=result.status,
                    seconds=result.seconds,
                    cause=result.cause,
                    difference="" if timed_out else difference(before, cell["outputs"]),
                )
            )
            may_raise = allow_errors or "raises-exception" in cell["metadata"].get("tags", ())
            stopped = not (result.status == "ok" or allow_errors or (result.status == "error" and may_raise))
        kept = await _keep(session, spec.capsule, keep) if keep is not None else ()
    finally:
        await session.close()
    return executed, Report(tuple(runs), tuple(skipped), sum(run.seconds for run in runs), kept)


async def _keep(session: Session, files: Path | None, folder: Path) -> tuple[str, ...]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tuple(await keep_artefacts(session, files, folder, KEPT_BYTES))
    except OSError as error:
        storage_failed(folder, error)


async def _run(session: Session, cell: NotebookNode, timeout: float | None) -> CellResult:
    if not cell["source"].strip():
        cell["outputs"], cell["execution_count"] = [], None
        return CellResult([], "ok", 0.0)
    result = await session.execute(cell["source"], timeout)
    cell["outputs"] = [nbformat.from_dict(output) for output in valid_outputs(result.outputs)]
    cell["execution_count"] = result.execution_count
    return result


def difference(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> str:
    """Where two lists of outputs differ in their normal form, in one line; '' where they do not."""
    old, new = normal_outputs(before), normal_outputs(after)
    if old == new:
        return ""
    if len(old) != len(new):
        return f"{len(old)} outputs before, {len(new)} now: {_short(old)} became {_short(new)}"
    number, was, now = next((i, a, b) for i, (a, b) in enumerate(zip(old, new, strict=True), 1) if a != b)
    return f"output {number}: {_apart(str(was), str(now))}"


def _apart(was: str, now: str) -> str:
    start = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    begin = max(0, start - 20)
    return f"{was[begin : start + 40]!r} became {now[begin : start + 40]!r}"


def _short(outputs: list[dict[str, Any]]) -> str:
    text = ", ".join(str(output) for output in outputs)
    return repr(text[:60] + "…" if len(text) > 60 else text)


def read_notebook(path: Path) -> NotebookNode:
    """A notebook of any nbformat version, as v4.

    Raises:
        UsageError: there is no such file, or it is no notebook.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); give a Jupyter notebook (.ipynb)") from None
    try:
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:
        why = str(error).strip().split("\n", 1)[0]
        raise UsageError(
            f"{path}: not a valid notebook ({type(error).__name__}: {why}); save it again in Jupyter"
        ) from None
    return notebook


def write_notebook(notebook: NotebookNode, out: Path) -> Path:
    """Write a notebook; its folder is made where there is none.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
    except OSError as error:
        storage_failed(out, error)
    return out


def exec_notebook(
    path: Path,
    out: Path,
    backend: str = "local",
    timeout: float | None = None,
    allow_errors: bool = False,
    kernel: str | None = None,
    files: Path | None = None,
    keep: Path | None = None,
) -> Report:
    """Run the notebook at `path` and write it with its outputs to `out`, also where a cell failed.

    Args:
        path: the notebook; may be the same as `out`.
        out: where the executed notebook goes.
        backend: where it runs.
        timeout: seconds one cell may run; None for no limit.
        allow_errors: go on after a cell that failed.
        kernel: an installed kernelspec; None: one of the notebook's language.
        files: a folder copied into the working directory, which is otherwise empty.
        keep: folder for the files that the notebook wrote; None: they go.

    Raises:
        UsageError: `path` is no notebook, or `files` no folder.
        KernelError: no kernel came up.
        StorageError: `out` or `keep` cannot be written.
    """
    notebook = read_notebook(path)
    if files is not None and not files.is_dir():
        raise UsageError(f"{files}: no such folder; give the folder of data files that the notebook reads")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        storage_failed(out, error)
    spec = SessionSpec(language=language_of(notebook), kernel=kernel, capsule=files)
    executed, report = asyncio.run(execute_notebook(notebook, spec, backend, timeout, allow_errors, path.stem, keep))
    write_notebook(executed, out)
    return report


def language_of(notebook: NotebookNode) -> str:
    """Language of a notebook's kernel, in lower case; python where it does not say."""
    metadata = notebook["metadata"]
    named = metadata.get("kernelspec", {}).get("language") or metadata.get("language_info", {}).get("name")
    return str(named or "python").lower()
