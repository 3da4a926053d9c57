"""The connection to the user's Docker engine, and what it says in words that help."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbagent_images.errors import EngineForbidden, EngineMissing, ImageError

DEFAULT_HOST = "unix:///var/run/docker.sock"


@contextmanager
def engine(timeout_s: float = 60) -> Iterator[Any]:
    """A docker.DockerClient of the engine that DOCKER_HOST names, or of the local one, closed at the end.

    Args:
        timeout_s: longest silence of the engine.

    Raises:
        EngineMissing: nothing answers there.
        EngineForbidden: this user is not in the group docker.
        ImageError: the engine answers with an error of its own.
    """
    from docker.errors import APIError, DockerException

    from docker import from_env

    where = os.environ.get("DOCKER_HOST", DEFAULT_HOST)
    try:
        client = from_env(timeout=timeout_s)
    except DockerException as error:
        raise _refusal(where, error) from error
    try:
        yield client
    except APIError as error:
        raise ImageError(f"the Docker engine at {where}: {error.explanation or error}") from error
    finally:
        client.close()


def _refusal(where: str, error: BaseException) -> ImageError:
    if _number(error) in (errno.EACCES, errno.EPERM):
        return EngineForbidden(
            f"you may not use the Docker engine at {where}: add yourself to its group "
            "(sudo usermod -aG docker $USER) and log in again"
        )
    return EngineMissing(
        f"no Docker engine answers at {where}: install one (Debian: apt install docker.io iptables) and start it "
        "(systemctl start docker, or dockerd), or name another by DOCKER_HOST"
    )


def _number(error: BaseException | None) -> int | None:
    """The errno at the bottom of the chain of errors that the SDK wraps around it; None if there is none."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = (
            next((a for a in error.args if isinstance(a, BaseException)), None) or error.__cause__ or error.__context__
        )
    numbers = [e.errno for e in seen if isinstance(e, OSError) and e.errno is not None]
    return numbers[-1] if numbers else None
