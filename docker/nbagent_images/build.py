"""Dockerfiles handed to the engine, without buildx, and their leavings removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from nbagent_images.errors import BuildFailed
from nbagent_images.image import IMAGE_LABEL
from nbagent_images.progress import LAST_LINES, Progress, quoted
from nbagent_images.recipe import INSIDE_FOLDER, RECIPE_FOLDER, Recipe
from nbagent_images.wheels import pins

STAGE_LABEL = "nbagent.stage=build"
DEBIAN_LAYER, PYTHON_LAYER = "nbagent-base", "nbagent-packages"
"""Names in the engine of the layers below images."""


def build(
    client: Any,
    context: Path,
    name: str,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    network: str | None,
    step: str,
    progress: Progress,
) -> None:
    """Build `context/Dockerfile` as the image `name`.

    Args:
        client: a docker.DockerClient.
        arguments: the values of its ARGs.
        network: `none`, or None for the engine's default.
        step: what to call this in progress and errors.

    Raises:
        BuildFailed: an instruction failed; quotes the last lines of its output.
    """
    last: deque[str] = deque(maxlen=LAST_LINES)
    stream = client.api.build(
        path=str(context),
        tag=name,
        buildargs=dict(arguments),
        labels=dict(labels),
        network_mode=network,
        # What came over a network may be newer today.
        nocache=network is None,
        rm=True,
        forcerm=True,
        decode=True,
    )
    for event in stream:
        if "error" in event:
            hint = "; --offline asks no registry" if "registry" in event["error"] else ""
            raise BuildFailed(f"{step}: {quoted([*last, event['error']])}{hint}")
        for line in event.get("stream", event.get("status", "")).splitlines():
            if line.strip():
                last.append(line)
                progress(step, line)


@contextlib.contextmanager
def building() -> Iterator[Callable[[], bool]]:
    """For the time of a build; gives what says, at its end, whether no other build of ours runs on this machine.

    What another one has made so far has no name yet and looks like what was replaced. After a yes, builds that begin
    wait for the end of this block.
    """
    path = Path(tempfile.gettempdir(), "nbagent-builds.lock")
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
        path.chmod(0o444)  # whatever the umask: other users build too
    lock = os.open(path, os.O_RDONLY)

    def alone() -> bool:
        """To be asked once, at the end."""
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield alone
    finally:
        os.close(lock)


def prune(client: Any, older_than_s: float = 3600) -> None:
    """Remove what newer builds replaced: their stages, images without a name, layers below no image. Only our own.

    No build of ours may be under way.

    Args:
        client: a docker.DockerClient.
        older_than_s: younger layers stay, because another build may be about to use them.
    """
    for label in (STAGE_LABEL, IMAGE_LABEL):
        client.images.prune(filters={"dangling": True, "label": label})
    used = [_layers(image) for image in client.images.list(filters={"label": IMAGE_LABEL})]
    before = datetime.now(UTC) - timedelta(seconds=older_than_s)
    for image in (image for name in (DEBIAN_LAYER, PYTHON_LAYER) for image in client.images.list(name)):
        mine = _layers(image)
        made = datetime.fromisoformat(image.attrs["Created"][:19]).replace(tzinfo=UTC)
        if made < before and not any(layers[: len(mine)] == mine for layers in used):
            for tag in image.tags:
                client.images.remove(tag)


def _layers(image: Any) -> list[str]:
    return list(image.attrs["RootFS"]["Layers"])


def fill(context: Path, recipe: Recipe, requirements: Sequence[str], extras: Sequence[str]) -> None:
    """Put all that the recipe's last Dockerfile copies into `context`, but for the wheels of the extras.

    Args:
        requirements: the extras that are Python packages.
        extras: all extras.
    """
    shutil.copytree(RECIPE_FOLDER / "files", context / "files")
    shutil.copytree(INSIDE_FOLDER, context / "inside", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(RECIPE_FOLDER / "Dockerfile", context)
    about = context / "about"
    about.mkdir()
    shutil.copy2(recipe.requirements, about / "requirements.txt")
    for file, lines in {
        context / "extras" / "requirements.txt": requirements,
        context / "extras" / "constraints.txt": pins(recipe.lock),
        about / "image": [recipe.name],
        about / "with": extras,
    }.items():
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
