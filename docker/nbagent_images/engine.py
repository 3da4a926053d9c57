"""The connection to the user's Docker engine, and what it says in words that help."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nbagent_images.errors import EngineForbidden, EngineMissing, ImageError

UNIX = "unix://"
DEFAULT_HOST = f"{UNIX}/var/run/docker.sock"


def host() -> str:
    """The address of the engine."""
    return os.environ.get("DOCKER_HOST") or DEFAULT_HOST


def is_local() -> bool:
    """Whether the engine is one of this machine."""
    return host().startswith(UNIX)


@contextmanager
def engine(timeout_s: float = 60) -> Iterator[Any]:
    """A docker.DockerClient of the engine that DOCKER_HOST names, or of the local one, closed at the end.

    Args:
        timeout_s: longest silence of the engine.

    Raises:
        EngineMissing: nothing answers there, or no longer.
        EngineForbidden: this user is not in the group docker.
        ImageError: the engine answers with an error of its own.
    """
    from docker.errors import APIError, DockerException
    from requests.exceptions import RequestException

    from docker import from_env

    where = host()
    try:
        _knock(where)
        client = from_env(timeout=timeout_s)
    except PermissionError as error:
        raise EngineForbidden(
            f"you may not use the Docker engine at {where}: add yourself to its group "
            "(sudo usermod -aG docker $USER) and log in again"
        ) from error
    except (OSError, DockerException) as error:
        raise EngineMissing(
            f"no Docker engine answers at {where}: install one (Debian: apt install docker.io iptables) and start it "
            "(systemctl start docker, or dockerd), or name another by DOCKER_HOST"
        ) from error
    try:
        yield client
    except APIError as error:
        raise ImageError(f"the Docker engine at {where}: {error.explanation or error}") from error
    except RequestException as error:
        raise EngineMissing(f"the Docker engine at {where} stopped answering: {error}") from error
    finally:
        client.close()


def _knock(where: str) -> None:
    """Ask the system for its own reason, which the SDK hides in the text of an error."""
    if where.startswith(UNIX):
        with socket.socket(socket.AF_UNIX) as door:
            door.connect(where.removeprefix(UNIX))
