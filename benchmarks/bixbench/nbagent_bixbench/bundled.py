"""Bundled tasks by location, made when they are opened: `bundled:SPLIT?n=N&seed=S&families=a,b`.

They are written in BixBench's format and read by the same loader as any published set.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import parse_qsl

from nbagent.errors import UsageError
from nbagent.tasks import TaskSource
from nbagent_bixbench.make import make_tasks
from nbagent_bixbench.source import BixBenchSource

PREFIX = "bundled:"
DONE = "BixBench.jsonl"


def open_source(location: str, cache: Path | None = None) -> TaskSource | None:
    """The set, made in `cache/set` unless it is there; None for other locations.

    Raises:
        UsageError: an option that is not n, seed or families, or a value that is no number.
    """
    if not location.startswith(PREFIX):
        return None
    split, _, query = location.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"n", "seed", "families"})
    if unknown:
        raise UsageError(f"{location}: unknown option {unknown[0]!r}; there are: n, seed, families")
    try:
        n, seed = int(options.get("n", "60")), int(options.get("seed", "0"))
    except ValueError:
        raise UsageError(f"{location}: n and seed are whole numbers") from None
    families = [name for name in options.get("families", "").split(",") if name]
    temporary = None if cache is not None else tempfile.TemporaryDirectory(prefix="nbagent-bundled-")
    root = cache if cache is not None else Path(str(temporary and temporary.name))
    folder = root / "set"
    if not (folder / DONE).is_file():
        make_tasks(folder, n, seed, families or None, split or "train")
    return _Bundled(folder / DONE, location, root / "capsules", temporary)


class _Bundled(BixBenchSource):
    """Keeps the temporary folder, where there is one, for as long as the source lives."""

    def __init__(
        self, path: Path, location: str, cache: Path, temporary: tempfile.TemporaryDirectory[str] | None
    ) -> None:
        super().__init__(path, location, cache)
        self._made_in = temporary
