"""Experiment trackers beside metrics.jsonl: TensorBoard, Weights & Biases, trackio. Imported only where asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from nbagent.errors import UsageError
from nbagent.recipe import Recipe
from nbagent.runfolder import RunFolder

TrackerName = Literal["tensorboard", "wandb", "trackio"]


class Watch(Recipe):
    """Where metrics go beside metrics.jsonl, which is always written."""

    report_to: tuple[TrackerName, ...] = ()
    """Trackers; each is a package of its own and must be installed. TensorBoard's files lie in the run folder."""
    project: str = "nbagent"
    """Project of `wandb` and `trackio`; the run's name there is its folder's, with a mark of when it began."""


class Tracker(Protocol):
    """Takes metrics as they come."""

    def begin(self, phase: str, step: int) -> None:
        """A phase begins, or goes on behind `step`: what came later is written again."""
        ...

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """One update's metrics."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def check_trackers(watch: Watch) -> None:
    """Raises UsageError where a tracker that the recipe asks for is not installed; says how to install it."""
    for name in watch.report_to:
        if find_spec(name) is None:
            raise UsageError(
                f"watch.report_to: {name} is not installed; `pip install {name}`, or take it out of the recipe"
            )


def open_trackers(watch: Watch, run: RunFolder, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run.

    Args:
        watch: which.
        run: its folder; the name is the run's, and a resumed run goes on under it.
        settings: the resolved recipe, shown beside the curves.
    """
    made: list[Tracker] = []
    for name in watch.report_to:
        if name == "tensorboard":
            made.append(TensorBoard(run))
        else:
            made.append(_Service(name, watch.project, run, settings))
    return made


class TensorBoard:
    """Event files in `tensorboard/PHASE` of the run folder; look at them with `tensorboard --logdir RUN`."""

    def __init__(self, run: RunFolder) -> None:
        self._folder = run.path / "tensorboard"
        self._writers: dict[str, Any] = {}

    def begin(self, phase: str, step: int) -> None:
        """Steps after `step` that a killed run had logged are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        self._writers[phase] = SummaryWriter(str(self._folder / phase), purge_step=step + 1)

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """One scalar a metric."""
        for name, value in numbers.items():
            self._writers[phase].add_scalar(name, value, step)
        self._writers[phase].flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()


class _Service:
    """wandb and trackio, whose interfaces are the same as far as they are used here."""

    def __init__(self, package: str, project: str, run: RunFolder, settings: Mapping[str, Any]) -> None:
        from importlib import import_module

        self._module = import_module(package)
        # Two run folders may have one name; when a run began tells them apart, and is the same when it is resumed.
        mark = hashlib.sha256(str(run.description().get("created")).encode()).hexdigest()[:8]
        name = f"{run.path.resolve().name}-{mark}"
        where = {"dir": str(run.path), "id": name} if package == "wandb" else {}
        self._module.init(project=project, name=name, config=dict(settings), resume="allow", **where)

    def begin(self, phase: str, step: int) -> None:
        """Nothing can be taken back: updates that are made again appear twice at their step."""

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """One line; the phases' steps are metrics of their own, since a service's step may only rise."""
        self._module.log({f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        """End the run there."""
        self._module.finish()
