"""Which weights made which rollouts, so that a run that was killed takes up its finished rollouts again.

A kill loses the weights since the last checkpoint, but not the rollouts that they made. The updates in between are made
again from those rollouts, and arrive at the same weights: the same start, the same rows, the same optimizer and random
states. Weights are therefore named by how they came about:

    name_0 = SHA-256("start"),   name_{v+1} = SHA-256(name_v, the rows of update v)

Weights of one name differ by no more than the rounding of two runs of the same arithmetic: not at all with one thread,
in the last bits with several or on a GPU. What weights of another name made is stale: it is moved to `stale/` in the
run folder, where it can still be read, and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Sequence

from nbagent.blobs import storage_failed
from nbagent.runfolder import RunFolder, rollout_id
from nbagent.tasks import Outcome, Task
from nbagent.trajectory import Trajectory
from nbagent_training.groups import TrainingRow

Job = tuple[Task, str]
FILE = "lineage.jsonl"
START = hashlib.sha256(b"start").hexdigest()


class Lineage:
    """The names of a run's weights, one JSON line a version, in the run folder. A later line takes back those after it.

    Args:
        run: the run folder.

    Attributes:
        read_back: by version, rollouts that were not made again. Where rollouts run ahead, those of later versions are
            counted while an earlier update is made.
        taken_up: ids of all that an earlier life of the run had made and this one did not make again.
    """

    def __init__(self, run: RunFolder) -> None:
        self.read_back: dict[int, int] = {}
        self.taken_up: set[str] = set()
        self.run = run
        self._played: set[str] = set()
        self._path = run.path / FILE
        self._names = {0: START}
        if self._path.exists():
            whole = self._path.read_bytes()
            whole = whole[: whole.rfind(b"\n") + 1]
            # A line that a kill tore goes, or the next would be written behind it.
            os.truncate(self._path, len(whole))
            for line in whole.splitlines():
                entry = json.loads(line)
                self._take(int(entry["version"]), str(entry["weights"]))

    def play(
        self, jobs: Sequence[Job], version: int, make: Callable[[Sequence[Job]], Sequence[Trajectory]]
    ) -> list[Trajectory]:
        """The rollouts of a version: those that an earlier life of the run finished are read back, the others made.

        What failed on the host's side is made again, unless the update had gone on without it.

        Args:
            jobs: pairs of a task and a rollout id.
            version: of the weights.
            make: makes the rollouts that are left.

        Returns:
            Their trajectories, in the order of the jobs.
        """
        self._played.update(name for _, name in jobs)
        found: dict[str, Trajectory] = {}
        for _, name in jobs:
            made = self.ended(name)
            if made is not None and (version + 1 in self._names or made.outcome is not Outcome.INFRASTRUCTURE):
                found[name] = made
        left = [job for job in jobs if job[1] not in found]
        self.read_back[version] = self.read_back.get(version, 0) + len(found)
        self.taken_up.update(found)
        found |= {name: made for (_, name), made in zip(left, make(left), strict=True)}
        return [found[name] for _, name in jobs]

    def ended(self, name: str) -> Trajectory | None:
        """A rollout that an earlier life of the run finished; None where it did not."""
        return self.run.ended(name)

    def made(self, version: int, rows: Sequence[TrainingRow]) -> int:
        """Name the weights that this update's rows lead to.

        Returns:
            How many rollouts that other weights had made under later versions' names were moved to `stale/`.

        Raises:
            StorageError: the run folder cannot be written.
        """
        name = _name(self._names[version], rows)
        known = self._names.get(version + 1)
        if known == name:
            return 0
        try:
            # First the move: killed in its middle, the next life finds the old name and moves the rest.
            moved = 0 if known is None else self._set_aside(version + 1, known)
            with self._path.open("a") as file:
                file.write(json.dumps({"version": version + 1, "weights": name}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            storage_failed(self._path, error)
        self._take(version + 1, name)
        return moved

    def _take(self, version: int, name: str) -> None:
        self._names = {v: known for v, known in self._names.items() if v < version} | {version: name}

    def _set_aside(self, version: int, name: str) -> int:
        """All later rollouts but those that this life has begun already, where rollouts run ahead of the trainer."""
        folder = self.run.path / "stale" / name[:12]
        moved = 0
        for path in sorted(self.run.rollouts.glob(f"{PRACTICE}-*.jsonl")):
            number = path.stem.split("-")[1]
            if number.isdigit() and int(number) >= version and path.stem.partition("+")[0] not in self._played:
                folder.mkdir(parents=True, exist_ok=True)
                path.rename(folder / path.name)
                moved += 1
        return moved


PRACTICE = "train"
"""First part of the ids of rollouts that are trained on; the version follows it."""


def practice_id(version: int, *parts: str | int) -> str:
    """The id of a rollout that is trained on."""
    return rollout_id(PRACTICE, f"{version:05d}", *parts)


def practised_in(name: str) -> tuple[int, int] | None:
    """The update that a rollout was practised for, and its group's place there; None for one that was not practised.

    A branch's id begins with its root's, and one that was shortened with what it was shortened from.
    """
    first, *rest = name.split("-")
    numbers = rest[:2]
    if first != PRACTICE or len(numbers) < 2 or not all(number.isdigit() for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1])


def _name(before: str, rows: Sequence[TrainingRow]) -> str:
    found = hashlib.sha256(before.encode())
    for row in rows:
        found.update(array("q", (len(row.prompt_ids), *row.prompt_ids, *row.completion_ids)).tobytes())
        found.update(array("d", (*row.logprobs, row.advantage, row.weight, *row.token_advantages)).tobytes())
    return found.hexdigest()
