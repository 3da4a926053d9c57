"""What each tool does to the notebook and its kernel, and what the agent reads of it."""

from __future__ import annotations

import asyncio
import errno
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbagent import wording
from nbagent.artefacts import keep_artefacts
from nbagent.errors import InfrastructureError, StorageError
from nbagent.notebook import CellType, NotebookDocument, UnknownCell, valid_outputs
from nbagent_context.cut import head_tail
from nbagent_context.exception import exception_in, head_line_tail
from nbagent_context.render import output_text
from nbagent_kernels import (
    CannotBranch,
    CellResult,
    KernelError,
    KernelPool,
    PathOutside,
    Session,
    SessionSpec,
    open_session,
)

READ_BYTES = 8 << 20
"""Most that is read of a file: far more than is shown, so that the end of most files is among it."""
LISTED_ENTRIES = 200
"""Most entries of a folder that are listed."""
_HOST_ERRNO = {errno.EIO, errno.EMFILE, errno.ENFILE}
"""What reading on the host can fail of for no doing of the agent's. A container's own never comes as one of these."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a tool answered."""

    text: str
    """The observation."""
    short: str
    """The action in one short line."""
    cell_id: str = ""
    """The cell it ran, changed or added."""
    shown: bool = False
    """True when the notebook shows the action and the whole answer."""
    failed: bool = False
    """True when a cell raised, ran out of time or took its kernel along."""
    exception: str = ""
    """Of a cell that raised: the exception's name and the first line of its message."""
    full_chars: int = 0
    """Characters of the whole observation where it was cut; 0 where it was not."""


class Verbs:
    """The tools over one notebook and one session, which opens in the background.

    Args:
        document: the notebook.
        spec: the session to open.
        backend: where it runs.
        record: is called for every event.
        chars: longest observation, in characters.
        ids: name the cell in the observation of its run.
        kernels: gives the session when there is room; None opens one at once.
        session: the session itself, where it is there already.

    Attributes:
        replayed: the session was branched from another by running its cells again.
        waited_s: seconds that calls have waited for the session, which are the host's and not the agent's.
    """

    def __init__(
        self,
        document: NotebookDocument,
        spec: SessionSpec,
        backend: str,
        record: Callable[..., None],
        *,
        chars: int,
        ids: bool,
        kernels: KernelPool | None = None,
        session: Session | None = None,
    ) -> None:
        self._document, self._record, self._chars, self._ids = document, record, chars, ids
        self._spec, self._backend = spec, backend
        self._opening: asyncio.Future[Session] = asyncio.ensure_future(
            _as_is(session)
            if session is not None
            else kernels.acquire(spec)
            if kernels is not None
            else open_session(spec, backend)
        )
        self._closing: asyncio.Task[None] | None = None
        self._seconds = 0.0
        self._step = 0
        self.replayed = False
        self.waited_s = 0.0

    async def take(self, step: int, tool: str, args: dict[str, str], seconds: float) -> Reply:
        """Do what a checked call asks for; `seconds` is how long a cell may run.

        Raises:
            InfrastructureError: no session came up, or it failed on the host's side.
        """
        self._step, self._seconds = step, seconds
        verbs: dict[str, Callable[..., Awaitable[Reply]]] = {
            "run_cell": self._run_cell,
            "edit_cell": self._edit_cell,
            "insert_cell": self._insert_cell,
            "delete_cell": self._delete_cell,
            "add_markdown": self._add_markdown,
            "restart_kernel": self._restart_kernel,
            "list_dir": self._list_dir,
            "read_file": self._read_file,
        }
        try:
            with _on_the_host():
                return await verbs[tool](**args)
        except UnknownCell as error:
            return Reply(wording.no_cell(error.args[0], self._document.ids), short=wording.short(tool, error.args[0]))

    async def branch(self, document: NotebookDocument, record: Callable[..., None]) -> Verbs:
        """The tools over a copy of the notebook and a session that continues from this one's state.

        A kernel that cannot be forked is made again by running its cells once more.

        Raises:
            KernelError: that failed too.
            OSError: its files could not be copied.
        """
        session, replayed = await self._session(), False
        try:
            other = await session.branch()
        except CannotBranch:
            other, replayed = await session.branch(method="replay"), True
        verbs = Verbs(document, self._spec, self._backend, record, chars=self._chars, ids=self._ids, session=other)
        verbs.replayed, verbs.waited_s = replayed, self.waited_s
        return verbs

    async def keep(self, folder: Path, max_bytes: int) -> None:
        """Copy what cells wrote; see keep_artefacts. Nothing where no session came up."""
        if self._opening.done() and not self._opening.cancelled() and self._opening.exception() is None:
            with _on_the_host():
                await keep_artefacts(self._opening.result(), self._spec.capsule, folder, max_bytes)

    async def close(self) -> None:
        """End the session. A caller that is cancelled meanwhile leaves the closing to run to its end."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._end())
        await asyncio.shield(self._closing)

    async def _end(self) -> None:
        self._opening.cancel()
        await asyncio.wait({self._opening})
        # A session that never came up has nothing to close; whoever needed it has been told.
        if not self._opening.cancelled() and self._opening.exception() is None:
            with _on_the_host():
                await self._opening.result().close()

    async def _session(self) -> Session:
        # Shielded: a step that is cancelled must not cancel the opening, whose session close() is to end.
        began = time.monotonic()
        try:
            return await asyncio.shield(self._opening)
        finally:
            self.waited_s += time.monotonic() - began

    async def _run_cell(self, code: str, cell: str | None = None) -> Reply:
        if cell is None:
            cell = self._insert(code, "code", None)
        else:
            if self._document.cell(cell)["cell_type"] != "code":
                return Reply(wording.not_code(cell), short=wording.short("run_cell", cell))
            self._replace(cell, code)
        session = await self._session()
        result = await session.execute(code, self._seconds)
        outputs = valid_outputs(result.outputs)
        self._document.set_outputs(cell, outputs, result.execution_count)
        self._record(
            "execution",
            step=self._step,
            cell=cell,
            source=code,
            execution_count=result.execution_count,
            status=result.status,
            seconds=round(result.seconds, 6),
            state_kept=result.state_kept,
            cause=result.cause,
            dropped_bytes=result.dropped_bytes,
            outputs=outputs,
        )
        if not result.state_kept:
            self._record("kernel", step=self._step, op="lost", cause=result.cause or result.status)
        told, name = self._told(result), cell if self._ids else ""
        text, full_chars = _observed(outputs, self._chars, name, told)
        return Reply(
            text,
            wording.short("run_cell", cell),
            cell,
            shown=not told,
            failed=result.status != "ok",
            # What a cell raises when it is interrupted or killed is not what happened.
            exception=exception_in(outputs) if result.status == "error" else "",
            full_chars=full_chars,
        )

    def _told(self, result: CellResult) -> list[str]:
        """What the notebook does not show of a run."""
        lines = [wording.dropped(result.dropped_bytes)] if result.dropped_bytes else []
        if result.status == "timeout":
            lines.append(wording.timed_out(self._seconds, result.state_kept))
        elif result.status == "dead" or not result.state_kept:
            lines.append(wording.died(result.cause))
        if result.limit:
            lines.append(wording.limit_hit(result.limit))
        return lines

    async def _edit_cell(self, cell: str, source: str) -> Reply:
        self._replace(cell, source)
        return Reply(wording.edited(cell), wording.short("edit_cell", cell), cell)

    async def _insert_cell(self, source: str, before: str | None = None) -> Reply:
        cell = self._insert(source, "code", before)
        return Reply(wording.inserted(cell), wording.short("insert_cell", cell), cell)

    async def _add_markdown(self, text: str, before: str | None = None) -> Reply:
        cell = self._insert(text, "markdown", before)
        return Reply(wording.added(cell), wording.short("add_markdown", cell), cell)

    async def _delete_cell(self, cell: str) -> Reply:
        index, kind = self._document.index(cell), self._document.cell(cell)["cell_type"]
        self._document.delete(cell)
        self._record("cell", step=self._step, op="delete", cell=cell, index=index, cell_type=kind, source="")
        return Reply(wording.deleted(cell), wording.short("delete_cell", cell))

    async def _restart_kernel(self) -> Reply:
        await (await self._session()).restart()
        self._record("kernel", step=self._step, op="restart", cause="asked for")
        return Reply(wording.RESTARTED, "restart_kernel")

    async def _list_dir(self, path: str = ".") -> Reply:
        short = wording.short("list_dir", path)
        session = await self._session()
        try:
            entries = await session.list(path)
        except (PathOutside, OSError, ValueError) as error:
            return Reply(_path_problem(path, error), short)
        self._record("file", step=self._step, op="list", path=path, bytes=0)
        lines = [f"{e.path}/" if e.is_dir else f"{e.path} ({wording.byte_size(e.size)})" for e in entries]
        whole = "\n".join(lines)
        if len(lines) > LISTED_ENTRIES:
            lines[LISTED_ENTRIES:] = [wording.more_entries(len(lines) - LISTED_ENTRIES)]
        text = head_tail("\n".join(lines), self._chars)
        return Reply(text or wording.EMPTY_FOLDER, short, full_chars=len(whole) if text != whole else 0)

    async def _read_file(self, path: str) -> Reply:
        short = wording.short("read_file", path)
        session = await self._session()
        try:
            data = await session.read(path, READ_BYTES)
        except (PathOutside, OSError, ValueError) as error:
            return Reply(_path_problem(path, error), short)
        self._record("file", step=self._step, op="read", path=path, bytes=len(data))
        text = data.decode("utf-8", "replace")
        if b"\0" in data or text.count("\ufffd") > len(text) // 20 + 1:
            more = "at least " if len(data) == READ_BYTES else ""
            return Reply(wording.binary(path, more + wording.byte_size(len(data))), short)
        cut = head_tail(text, self._chars)
        more = f"\n{wording.only_first(wording.byte_size(READ_BYTES))}" if len(data) == READ_BYTES else ""
        full_chars = len(text) + len(more) if cut != text else 0
        return Reply(f"{cut}{more}" or wording.EMPTY_FILE, short, full_chars=full_chars)

    def _insert(self, source: str, cell_type: CellType, before: str | None) -> str:
        index = len(self._document.node["cells"]) if before is None else self._document.index(before)
        cell = self._document.insert(index, source, cell_type)
        self._record("cell", step=self._step, op="insert", cell=cell, index=index, cell_type=cell_type, source=source)
        return cell

    def _replace(self, cell: str, source: str) -> None:
        self._document.replace(cell, source)
        index, kind = self._document.index(cell), self._document.cell(cell)["cell_type"]
        self._record("cell", step=self._step, op="edit", cell=cell, index=index, cell_type=kind, source=source)


async def _as_is(session: Session) -> Session:
    return session


def run_observation(
    outputs: Sequence[Mapping[str, Any]], chars: int, cell_id: str = "", told: Sequence[str] = ()
) -> str:
    """What the agent reads of a cell that ran: its id where one is given, the outputs, and what they do not show."""
    return _observed(outputs, chars, cell_id, told)[0]


def _observed(outputs: Sequence[Mapping[str, Any]], chars: int, cell_id: str, told: Sequence[str]) -> tuple[str, int]:
    """The same, with the characters that it would have had uncut; 0 where nothing was cut."""
    whole = output_text(outputs, cell_id)
    cut = head_line_tail(whole, chars, exception_in(outputs))
    lines = [f"[{cell_id}]" if cell_id else "", cut, *told, "" if cut or told else wording.NO_OUTPUT]
    text = "\n".join(line for line in lines if line)
    return text, len(text) - len(cut) + len(whole) if cut != whole else 0


def _path_problem(path: str, error: Exception) -> str:
    """The observation for a path that cannot be used; raises what is the host's fault."""
    if isinstance(error, PathOutside):
        return wording.file_problem(path, wording.OUTSIDE)
    if isinstance(error, KernelError) or (isinstance(error, OSError) and error.errno in _HOST_ERRNO):
        raise error
    for kind, what in wording.FILE_PROBLEMS.items():
        if isinstance(error, kind):
            return wording.file_problem(path, what)
    return wording.file_problem(path, (isinstance(error, OSError) and error.strerror) or str(error) or "cannot be read")


@contextmanager
def _on_the_host() -> Iterator[None]:
    """Turns what sessions raise into infrastructure failures."""
    try:
        yield
    except KernelError as error:
        raise InfrastructureError(f"{type(error).__name__}: {error}") from error
    except OSError as error:
        raise StorageError(f"{type(error).__name__}: {error}") from error
