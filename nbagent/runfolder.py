"""Run folders: `recipe.toml, run.json, rollouts/, blobs/, notebooks/, metrics.jsonl, checkpoints/, report.html`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nbagent.blobs import Blobs, storage_failed
from nbagent.errors import RunFolderError, TrajectoryError, UsageError
from nbagent.recipe import Recipe, to_toml
from nbagent.tasks import Task, TaskSource, open_tasks
from nbagent.trajectory import Trajectory

_ID = re.compile(r"[A-Za-z0-9_=+@-][A-Za-z0-9_.=+@-]{0,199}")


def rollout_id(*parts: str | int) -> str:
    """A rollout's id, usable as a file name, from what tells it apart, e.g. `("heldout", task_id, 0)`.

    Characters that a file name should not have become `_`, with a hash added so that different parts never meet.
    """
    text = "-".join(str(part) for part in parts)
    if _ID.fullmatch(text):
        return text
    mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return re.sub(r"[^A-Za-z0-9_=+@-]", "_", text)[:180] + "-" + mark


class RunFolder:
    """One run's files. Made by `create` or `open`; everything in it can be read while the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rollouts = path / "rollouts"
        self.notebooks = path / "notebooks"
        self.artefacts = path / "artefacts"
        self.checkpoints = path / "checkpoints"
        self.metrics = path / "metrics.jsonl"
        self.recipe = path / "recipe.toml"
        self.report = path / "report.html"
        self.blobs = Blobs(path / "blobs")
        # Capsules without a cache go with their source.
        self._sets: dict[tuple[str, Path | None], tuple[TaskSource, Sequence[Task]]] = {}

    @property
    def name(self) -> str:
        """The folder's; by it `nbagent sandbox clean --run` knows the run's containers."""
        return self.path.resolve().name

    @classmethod
    def create(cls, path: Path | str, recipe: str | Recipe, resume: bool = False) -> RunFolder:
        """Begin a run, or go on with one.

        Args:
            path: a folder that does not exist or is empty; with `resume` one that may hold a run.
            recipe: every setting, or its TOML; written before anything else.
            resume: go on with the run that is there, whose recipe must be the same. Of a Recipe the settings are
                compared, with defaults filled in: a run goes on under a program that has got new ones.

        Raises:
            RunFolderError: the folder holds another run or other files, or a run of another recipe.
            StorageError: it cannot be written.
        """
        run = cls(Path(path))
        text = recipe if isinstance(recipe, str) else _toml_of(recipe)
        if run.path.exists() and not run.path.is_dir():
            raise RunFolderError(f"{run.path}: is a file, not a folder; give another --out")
        if run.recipe.exists():
            if not resume:
                raise RunFolderError(f"{run.path}: holds another run; give another --out, or --resume to go on with it")
            run._same_recipe(
                text, {} if isinstance(recipe, str) else tomllib.loads(_toml_of(type(recipe).model_construct()))
            )
        elif run.path.is_dir() and any(run.path.iterdir()):
            raise RunFolderError(f"{run.path}: holds files that are no run; give an empty or new folder as --out")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
            if not run.recipe.exists():
                write_whole(run.recipe, text)
            for folder in (run.rollouts, run.path / "blobs", run.notebooks, run.checkpoints):
                folder.mkdir(exist_ok=True)
            if not run._description.exists():
                run.describe(version=_version(), created=datetime.now(UTC).isoformat(timespec="seconds"), tasks=[])
        except OSError as error:
            storage_failed(run.path, error)
        return run

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """A run that is there. Raises RunFolderError where none is."""
        run = cls(Path(path))
        if not run.recipe.exists():
            what = "holds no run (no recipe.toml)" if run.path.is_dir() else "no such folder"
            raise RunFolderError(f"{run.path}: {what}; give the folder that was --out of a run")
        return run

    def _same_recipe(self, text: str, defaults: dict[str, Any]) -> None:
        try:
            there = tomllib.loads(self.recipe.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RunFolderError(f"{self.recipe}: not TOML any more ({error}); give another --out") from None
        given = tomllib.loads(text)
        for name, was, now in _differences(_filled(defaults, there), _filled(defaults, given)):
            raise RunFolderError(
                f"{self.recipe}: the run there has another recipe ({_setting(name, was)}, not {_setting(name, now)}); "
                "resume with its own recipe, or give another --out"
            )

    @property
    def _description(self) -> Path:
        return self.path / "run.json"

    def description(self) -> dict[str, Any]:
        """run.json: version, created, tasks (fingerprints of the sets used), and what `describe` added."""
        if not self._description.exists():
            return {"tasks": []}
        described: dict[str, Any] = json.loads(self._description.read_text())
        return described

    def describe(self, **fields: Any) -> None:
        """Add fields to run.json, or replace them. Raises StorageError."""
        write_whole(self._description, json.dumps({**self.description(), **fields}, indent=1) + "\n")

    def add_tasks(self, fingerprint: Mapping[str, Any], cache: Path | None = None) -> None:
        """Note a set of tasks, so that a replay finds its capsules again from any folder.

        Args:
            fingerprint: `TaskSource.fingerprint()`.
            cache: where its capsules were unpacked, where that outlives the run.
        """
        entry = dict(fingerprint)
        location = Path(str(entry.get("location", "")))
        if entry.get("location") and location.exists():
            entry["path"] = str(location.resolve())
        if cache is not None:
            inside = cache.resolve().is_relative_to(self.path.resolve())
            entry["cache"] = str(cache.resolve().relative_to(self.path.resolve()) if inside else cache.resolve())
        known = self.description()["tasks"]
        if entry not in known:
            self.describe(tasks=[*known, entry])

    def open_task(self, task_id: str, question: str, location: str | None = None) -> Task:
        """The task of a rollout, from the sets that the run used.

        Args:
            task_id: its id.
            question: its text; two sets of one run may both have the id. Of a single set the id is enough: a question
                may have been asked with options, or as a hypothesis.
            location: look in this set instead.

        Raises:
            UsageError: no set has this task, or none is where it was.
        """
        sets = [{"location": location}] if location is not None else self.description()["tasks"]
        tried = []
        for entry in sets:
            where = entry.get("path") or entry["location"]
            cache = self.path / entry["cache"] if entry.get("cache") else None
            try:
                if (where, cache) not in self._sets:
                    source = open_tasks(where, cache)
                    self._sets[where, cache] = source, source.tasks()
                _, tasks = self._sets[where, cache]
            except UsageError as error:
                tried.append(str(error))
                continue
            tried.append(f"{where} has no such task")
            for task in tasks:
                if task.task_id == task_id and (task.question == question or len(sets) == 1):
                    return task
        raise UsageError(
            f"{task_id}: its task was not found ({'; '.join(tried) or 'the run notes no set of tasks'}); "
            "name the set with --tasks"
        )

    def rollout_path(self, rollout: str) -> Path:
        """The log of a rollout.

        Raises:
            RunFolderError: the id could not be a file name; `rollout_id` makes one that can.
        """
        if not _ID.fullmatch(rollout):
            raise RunFolderError(f"{rollout!r}: not a rollout id (letters, digits and _.=+@- only)")
        return self.rollouts / f"{rollout}.jsonl"

    def rollout_ids(self) -> list[str]:
        """Ids of all rollouts begun, sorted."""
        return sorted(path.stem for path in self.rollouts.glob("*.jsonl"))

    def load(self, rollout: str) -> Trajectory:
        """One rollout's trajectory.

        Raises:
            RunFolderError: the run has no such rollout.
            TrajectoryError: its log is damaged.
        """
        path = self.rollout_path(rollout)
        if not path.exists():
            there = self.rollout_ids()
            known = f"it has {len(there)}, e.g. {', '.join(there[:3])}" if there else "it has none"
            raise RunFolderError(f"{self.path}: no rollout {rollout!r} in this run; {known}")
        return Trajectory.load(path, self.blobs)

    def trajectories(self) -> Iterator[Trajectory]:
        """Every rollout that began, sorted by id; those cut off before their first whole line are left out."""
        for rollout in self.rollout_ids():
            try:
                yield self.load(rollout)
            except TrajectoryError as error:
                if "the log is empty" not in str(error):
                    raise

    def done_ids(self) -> set[str]:
        """Ids of the rollouts a resumed run need not make again: they ended, and not by an infrastructure failure."""
        done = set()
        for path in self.rollouts.glob("*.jsonl"):
            last = _last_line(path)
            if last.get("kind") == "end" and last.get("outcome") != "infrastructure":
                done.add(path.stem)
        return done

    def ended(self, rollout: str) -> Trajectory | None:
        """A rollout that was played to its end, however it ended; None where it was not begun or was cut off.

        Raises:
            TrajectoryError: its log is damaged.
        """
        path = self.rollout_path(rollout)
        if not path.exists() or _last_line(path).get("kind") != "end":
            return None
        return self.load(rollout)

    def set_aside(self, root: str) -> int:
        """Move a rollout that has branches, and these, to `stale/torn-N`, where they can still be read.

        Returns:
            How many logs were moved; 0 where it has no branches.

        Raises:
            StorageError: the run folder cannot be written.
        """
        logs = sorted(self.rollouts.glob(f"{root}+*.jsonl"))
        if not logs:
            return 0
        if (own := self.rollout_path(root)).exists():
            # First: of a tree that a kill leaves half moved, what is left must not pass for a whole one.
            logs.insert(0, own)
        stale = self.path / "stale"
        newest = max((int(path.name[5:]) for path in stale.glob("torn-*") if path.name[5:].isdigit()), default=0)
        # Its other half may lie there; what has the same names is an earlier tree.
        taken = any((stale / f"torn-{newest}" / path.name).exists() for path in logs)
        folder = stale / f"torn-{newest + taken}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in logs:
                path.rename(folder / path.name)
        except OSError as error:
            storage_failed(folder, error)
        return len(logs)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl and make it durable. Raises StorageError."""
        line = json.dumps(dict(metrics)) + "\n"
        try:
            with self.metrics.open("a") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            storage_failed(self.metrics, error)

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last line is left out."""
        if not self.metrics.exists():
            return []
        return [json.loads(line) for line in self.metrics.read_text().split("\n")[:-1]]

    def rewind_metrics(self, phase: str, step: int) -> list[dict[str, Any]]:
        """Drop the lines of a phase after `step`, which a resumed run writes again, and a torn last line.

        Returns:
            The phase's lines that are left.

        Raises:
            StorageError: the file cannot be written.
        """
        kept = [line for line in self.read_metrics() if line.get("phase") != phase or line.get("step", 0) <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if self.metrics.exists() and self.metrics.read_text() != text:
            write_whole(self.metrics, text)
        return [line for line in kept if line.get("phase") == phase]


def write_whole(path: Path, content: str | bytes) -> None:
    """Write by rename: a kill or a full disk leaves the old file, or none, or the new one, and never half of it.

    What is there and no plain file, such as /dev/stdout, is written to as it is.

    Raises:
        StorageError: the disk is full or gone.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            # Otherwise a power cut may leave the new name with nothing under it.
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        storage_failed(path, error)


_UNSET = object()


def _toml_of(recipe: Recipe) -> str:
    return to_toml(recipe.model_dump(mode="json"))


def _filled(defaults: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of settings and, where it has none, the defaults."""
    filled = {**defaults, **table}
    for name, inner in defaults.items():
        if isinstance(inner, dict) and isinstance(table.get(name), dict):
            filled[name] = _filled(inner, table[name])
    return filled


def _differences(there: Mapping[str, Any], given: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted name and both values of every setting that is not the same."""
    for name in {**there, **given}:
        was, now = there.get(name, _UNSET), given.get(name, _UNSET)
        if isinstance(was, dict) and isinstance(now, dict):
            yield from _differences(was, now, f"{place}{name}.")
        elif was != now:
            yield f"{place}{name}", was, now


def _setting(name: str, value: Any) -> str:
    return f"no `{name}`" if value is _UNSET else f"`{name} = {to_toml({'': [value]}).partition('[')[2].strip()[:-1]}`"


def _last_line(path: Path) -> dict[str, Any]:
    """The last whole line, read from the file's end; {} where there is none or it is damaged."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        block = 1 << 12
        while True:
            file.seek(max(0, size - block))
            lines = file.read().split(b"\n")[:-1]
            if len(lines) > 1 or block >= size:
                break
            block *= 8
    try:
        event = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _version() -> str:
    try:
        return version("nbagent")
    except PackageNotFoundError:
        return "unknown"
