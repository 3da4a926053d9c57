"""Sessions for the tests: opened by name of backend, closed whatever happens, servers ended with the module's loop."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from languages import language_of

from nbagent_images import EngineForbidden, EngineMissing, profile, require
from nbagent_kernels import Limits, Session, SessionSpec, open_session
from nbagent_kernels.fork import end_servers
from nbagent_kernels.types import ContainerSettings

Opener = Callable[..., Awaitable[Session]]
PRELOAD = ("numpy", "matplotlib.pyplot")


@pytest_asyncio.fixture(loop_scope="module")
async def opened(backend: str) -> AsyncIterator[Opener]:
    """Opens sessions of the test's backend; limits may be given by name."""
    sessions: list[Session] = []

    async def open_one(spec: SessionSpec | None = None, **limits: Any) -> Session:
        fitting = Limits(**{"grace_s": 1.0, **limits})
        spec = spec or SessionSpec(language=language_of(backend), preload=PRELOAD, limits=fitting)
        if backend.startswith("docker"):
            # Each container would import it anew.
            preload = () if spec.preload == PRELOAD else spec.preload
            image = "r" if spec.language == "R" else "python"
            spec = replace(spec, container=container(image), preload=preload)
        sessions.append(await open_session(spec, backend.partition("-")[0]))
        if backend.endswith("-branch"):
            sessions.append(await sessions[-1].branch())
        return sessions[-1]

    yield open_one
    for session in sessions:
        await session.close()


@functools.cache
def container(image: str) -> ContainerSettings:
    """The container of a test; skips the test where there is no engine."""
    try:
        return ContainerSettings(require(image).id, profile(), run="tests")
    except (EngineMissing, EngineForbidden) as error:
        pytest.skip(str(error))


@pytest_asyncio.fixture(loop_scope="module")
async def branched() -> AsyncIterator[Opener]:
    """Branches sessions."""
    sessions: list[Session] = []

    async def branch(session: Session, **how: Any) -> Session:
        sessions.append(await session.branch(**how))
        return sessions[-1]

    yield branch
    for session in sessions:
        await session.close()


@pytest.fixture(scope="module", autouse=True)
def _servers_end_with_the_module() -> Any:
    yield
    end_servers()
