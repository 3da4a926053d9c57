"""Experiment trackers beside metrics.jsonl: TensorBoard, Weights & Biases, trackio. Imported only where asked for."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from nbagent.errors import UsageError
from nbagent.recipe import Recipe
from nbagent.runfolder import RunFolder

_log = logging.getLogger(__name__)

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
    """Raises UsageError where a tracker that the recipe asks for is not installed, or wandb is not logged in."""
    for name in watch.report_to:
        if find_spec(name) is None:
            raise UsageError(
                f"watch.report_to: {name} is not installed; `pip install {name}`, or take it out of the recipe"
            )
    if "wandb" in watch.report_to:
        _check_login(import_module("wandb"))


def _check_login(wandb: Any) -> None:
    try:
        online = wandb.setup().settings.mode not in ("offline", "disabled", "dryrun")
        known = not online or wandb.login(prompt=False, verify=False)
    except (AttributeError, TypeError):
        # A wandb that cannot be asked without a prompt; then its `init` tells.
        return
    except Exception as error:
        raise UsageError(f"watch.report_to: wandb: {_first_line(error)}") from error
    if not known:
        raise UsageError(
            "watch.report_to: wandb knows no login; `wandb login`, or set WANDB_MODE=offline, or take it out of the "
            "recipe"
        )


def open_trackers(watch: Watch, run: RunFolder, settings: Mapping[str, Any]) -> list[Tracker]:
    """The trackers of a run.

    Args:
        watch: which.
        run: its folder; the name is the run's, and a resumed run goes on under it.
        settings: the resolved recipe, shown beside the curves.

    Raises:
        UsageError: a service does not take the run. Once it has, no tracker ends it (see `Lenient`).
    """
    made: list[Tracker] = []
    for name in watch.report_to:
        try:
            opened = TensorBoard(run) if name == "tensorboard" else _Service(name, watch.project, run, settings)
        except Exception as error:
            for tracker in made:
                tracker.close()
            raise UsageError(
                f"watch.report_to: {name} did not begin ({_first_line(error)}); mend that and --resume, or give "
                "another --out and leave it out of the recipe"
            ) from error
        made.append(Lenient(name, opened))
    return made


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip()}".split("\n", 1)[0]


class Lenient:
    """A tracker whose failures end nothing: days of training are worth more than a curve elsewhere.

    The first failure is a warning. What the tracker missed stands in metrics.jsonl.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._warned = False

    def begin(self, phase: str, step: int) -> None:
        """As the tracker's."""
        with self._forgiven():
            self._tracker.begin(phase, step)

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """As the tracker's."""
        with self._forgiven():
            self._tracker.log(phase, step, numbers)

    def close(self) -> None:
        """As the tracker's."""
        with self._forgiven():
            self._tracker.close()

    @contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self._warned:
                _log.warning(
                    "%s: %s; the run goes on without it, and metrics.jsonl has everything",
                    self._name,
                    _first_line(error),
                )
            self._warned = True


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
        self._module = import_module(package)
        self._axes = package == "wandb"
        # Two run folders may have one name; when a run began tells them apart, and is the same when it is resumed.
        mark = hashlib.sha256(str(run.description().get("created")).encode()).hexdigest()[:8]
        name = f"{run.path.resolve().name}-{mark}"
        where = {"dir": str(run.path), "id": name} if package == "wandb" else {}
        self._module.init(project=project, name=name, config=dict(settings), resume="allow", **where)

    def begin(self, phase: str, step: int) -> None:
        """The phase's axis; nothing can be taken back: updates that are made again appear twice at their step."""
        if self._axes:
            self._module.define_metric(f"{phase}/step")
            self._module.define_metric(f"{phase}/*", step_metric=f"{phase}/step")

    def log(self, phase: str, step: int, numbers: Mapping[str, float]) -> None:
        """One line; the phases' steps are metrics of their own, since a service's step may only rise."""
        self._module.log({f"{phase}/step": step, **{f"{phase}/{name}": value for name, value in numbers.items()}})

    def close(self) -> None:
        """End the run there."""
        self._module.finish()
