"""Images are built from recipes by a real engine, and found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nbagent_images import RECIPES, BuildFailed, Image, ImageMissing, Recipe, require
from nbagent_images.build import DEBIAN_LAYER, STAGE_LABEL, building, prune
from nbagent_images.image import find
from nbagent_images.make import make

pytestmark = [pytest.mark.docker, pytest.mark.slow]

Made = Callable[..., Image]
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def own(client: Any, made: Made) -> str:
    """The name of an image that could be the user's."""
    made()
    smallest = min(client.images.list(DEBIAN_LAYER), key=lambda image: int(image.attrs["Size"]))
    return str(smallest.tags[0])


def test_an_image_says_what_it_is(made: Made, small: Recipe, client: Any) -> None:
    image = made()
    assert image == find(client, small.tag)
    assert image.labels["nbagent.image"] == "test"
    assert image.labels["nbagent.recipe"] == small.digest()
    assert image.size_bytes > 50e6
    there = client.images.get(image.id).attrs["Config"]
    assert there["User"] == "65534:65534"
    assert there["WorkingDir"] == "/work"


def test_builds_leave_no_stages(made: Made, client: Any) -> None:
    built = made()
    client.api.import_image_from_data(bytes(1024), repository=DEBIAN_LAYER, tag="of-no-image")
    client.api.import_image_from_data(bytes(1024), repository="not-ours", tag="of-no-image")
    prune(client)
    assert find(client, f"{DEBIAN_LAYER}:of-no-image") is not None
    prune(client, older_than_s=-60)
    try:
        assert find(client, f"{DEBIAN_LAYER}:of-no-image") is None
        assert find(client, "not-ours:of-no-image") is not None
        assert find(client, built.name) == built
        assert client.images.list(filters={"dangling": True, "label": STAGE_LABEL}) == []
    finally:
        client.images.remove("not-ours:of-no-image")


def test_what_a_build_beside_it_has_made_so_far_stays(made: Made, client: Any) -> None:
    stages = {"dangling": True, "label": STAGE_LABEL}
    with building():
        made()
        assert client.images.list(filters=stages) != []
    made()
    assert client.images.list(filters=stages) == []


def test_places_are_there_and_the_root_cannot_be_written(made: Made, run: Run) -> None:
    status, printed = run(made().id, ["sh", "-c", "ls -d /work /data /nbagent /wheels && touch /nbagent/x"])
    assert status == 1
    assert printed.startswith("/data\n/nbagent\n/wheels\n/work\n")
    assert "Read-only file system" in printed


def test_no_program_changes_who_runs_it(made: Made, run: Run) -> None:
    assert run(made().id, ["sh", "-c", "find / -xdev -type f -perm /6000 2> /dev/null; true"]) == (0, "")


def test_extras_come_from_a_folder_of_wheels_and_from_debian(
    client: Any, small: Recipe, own: str, run: Run, wheel: Callable[..., None], tmp_path: Path
) -> None:
    """On an image of the user's, so that apt runs in the build and uses the network."""
    wheel(tmp_path, "extra", "value = 42\n")
    image = make(client, small, own, [str(tmp_path), "apt:bc"], False, print)
    assert image.labels["nbagent.base"] == own
    assert image.labels["nbagent.with"] == "extra==1.0 apt:bc"
    command = "python -c 'import extra; print(extra.value)' && echo 6*7 | bc && pip install nothing-like-it"
    status, printed = run(image.id, ["sh", "-c", command])
    assert status == 1
    assert printed.startswith("42\n42\n")
    assert "extra 1.0" in printed
    assert "--image test --with extra==1.0 --with apt:bc --with nothing-like-it" in printed


def test_an_extra_that_is_nowhere(client: Any, small: Recipe, own: str, made: Made, tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="no wheels in this folder"):
        made(str(tmp_path))
    with pytest.raises(BuildFailed, match="Unable to locate package no-such-package"):
        make(client, small, own, ["apt:no-such-package"], False, print)
    assert client.images.list(filters={"dangling": True, "label": STAGE_LABEL}) == []


def test_a_base_that_is_nowhere(client: Any, small: Recipe) -> None:
    with pytest.raises(BuildFailed, match="Debian packages"):
        make(client, small, "nbagent-no-such-image:1", [], False, print)


def test_an_image_that_is_missing_is_not_pulled(client: Any) -> None:
    with pytest.raises(ImageMissing, match="docker pull nobody/nothing:1"):
        require("nobody/nothing:1", client)


def test_an_image_that_is_missing_or_old_names_its_command(
    client: Any, small: Recipe, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RECIPES, "test", small)
    built = made()
    assert require("test", client) == built
    monkeypatch.setitem(RECIPES, "test", replace(small, python="python"))
    with pytest.raises(ImageMissing, match="nbagent sandbox build --image test"):
        require("test", client)
    client.images.remove(small.tag, force=True)
    with pytest.raises(ImageMissing, match="there is no image nbagent-test in this engine; build it"):
        require("nbagent-test:latest", client)
