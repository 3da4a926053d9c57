"""What holds for every test: nothing is fetched, no figure wants a display; the golden files; a Docker engine."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "MPLBACKEND": "agg"}

# A runner's background job begins with Ctrl-C ignored, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A deadline measures the machine, not the code, and so does a check of how quickly examples are drawn.
settings.register_profile("nbagent", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("nbagent")

GOLDEN = Path(__file__).parent / "golden"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How several processes share the tests."""
    from beside import InGroups

    config.option.loadscopereorder = False
    return InGroups(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """With NBAGENT_SLOW=write (`make slow`) the tests are timed, for `make check` to leave the slow ones out."""
    from slowness import Slowness, rewriting

    if rewriting() and not os.environ.get("PYTEST_XDIST_WORKER"):
        config.pluginmanager.register(Slowness())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is listed as slow is marked so; several processes begin with what takes the longest."""
    from slowness import function_of, listed

    slow = listed()
    for item in items:
        if function_of(item.nodeid) in slow:
            item.add_marker(pytest.mark.slow)
    if os.environ.get("PYTEST_XDIST_WORKER"):
        from beside import place_of

        items.sort(key=lambda item: place_of(item.nodeid))


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compares a text with a file of tests/golden/; with NBAGENT_GOLDEN=write (`make golden`) writes the file."""

    def same(name: str, text: str) -> None:
        file = GOLDEN / name
        if os.environ.get("NBAGENT_GOLDEN") == "write":
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert file.is_file(), f"tests/golden/{name} is missing; `make golden` writes it"
        assert text == file.read_text(encoding="utf-8"), f"differs from tests/golden/{name}; meant so? `make golden`"

    return same


@pytest.fixture(scope="session")
def client() -> Iterator[Any]:
    """The engine's; tests that need one are skipped where none answers."""
    from nbagent_images import EngineForbidden, EngineMissing
    from nbagent_images.engine import engine

    try:
        with engine(timeout_s=600) as found:
            found.ping()
            yield found
    except (EngineMissing, EngineForbidden) as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def image(client: Any) -> Callable[[str], Any]:
    """An image by its recipe, built first if it is not there or older than the recipe."""
    from nbagent_images import RECIPES, ImageMissing, require
    from nbagent_images.base import PUBLIC_BASE
    from nbagent_images.make import make

    def there(name: str) -> Any:
        try:
            return require(name, client)
        except ImageMissing:
            # As the machine can: made here, or from a public image.
            return make(client, RECIPES[name], None if shutil.which("mmdebstrap") else PUBLIC_BASE, [], False, print)

    return there
