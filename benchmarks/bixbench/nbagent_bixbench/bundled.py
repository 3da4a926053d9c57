"""Bundled tasks by location, made when they are opened: `bundled:SPLIT?n=N&seed=S&families=a,b&flawed=0.5`.

They are written in BixBench's format and read by the same loader as any published set.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from pathlib import Path
from urllib.parse import parse_qsl

from nbagent.errors import UsageError
from nbagent.tasks import TaskSource
from nbagent_bixbench.make import make_tasks
from nbagent_bixbench.source import BixBenchSource

PREFIX = "bundled:"
DONE = "BixBench.jsonl"


def open_source(location: str, cache: Path | None = None) -> TaskSource | None:
    """The set, made in a folder of `cache` unless it is there; None for other locations.

    Raises:
        UsageError: an unknown option, or a value that is no number.
    """
    if not location.startswith(PREFIX):
        return None
    split, _, query = location.removeprefix(PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(set(options) - {"n", "seed", "families", "flawed"})
    if unknown:
        raise UsageError(f"{location}: unknown option {unknown[0]!r}; there are: n, seed, families, flawed")
    try:
        n, seed = int(options.get("n", "60")), int(options.get("seed", "0"))
        flawed = float(options.get("flawed", "0"))
    except ValueError:
        raise UsageError(f"{location}: n and seed are whole numbers, flawed is a number") from None
    families = [name for name in options.get("families", "").split(",") if name]
    root = cache if cache is not None else Path(tempfile.mkdtemp(prefix="nbagent-bundled-"))
    digest = hashlib.sha256(location.encode()).hexdigest()[:8]
    folder = root / f"{split or 'train'}-{digest}"
    try:
        if not (folder / DONE).is_file():
            make_tasks(folder, n, seed, families or None, split or "train", flawed=flawed)
        source = BixBenchSource(folder / DONE, location, root / "capsules")
    except BaseException:
        if cache is None:
            shutil.rmtree(root, ignore_errors=True)
        raise
    if cache is None:
        weakref.finalize(source, shutil.rmtree, root, ignore_errors=True)
    return source
