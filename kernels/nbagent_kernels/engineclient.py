"""This process's connection to the Docker engine: its errors in our words, and removals that are made good later."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from nbagent_kernels.errors import EngineFailed, EngineSilent, KernelError, KernelStartError

ENGINE_S = 60.0
"""Longest silence of the engine, seconds."""
CONNECTIONS = 16
BACK_S, KNOCK_S = 60.0, 0.5
"""Seconds in which an engine that has answered before may come back, as one that is restarted does, and between two
tries of what waits for that."""

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_client: tuple[int, Any] | None = None
_unremoved: set[str] = set()
"""Containers that a silent engine was asked to make or to remove."""
_said_waiting = -BACK_S


def client() -> Any:
    """The connection to the engine that DOCKER_HOST names, or to the local one. Raises EngineFailed."""
    global _client
    with _lock:
        if _client is None or _client[0] != os.getpid():
            with engine_errors():
                from docker import from_env

                _client = os.getpid(), from_env(timeout=ENGINE_S, max_pool_size=CONNECTIONS)
            atexit.register(disconnect)
        return _client[1]


def answered() -> bool:
    """Whether the engine has answered this process before."""
    return _client is not None and _client[0] == os.getpid()


def disconnect() -> None:
    """Close the connection to the engine; the next call makes another. Idempotent."""
    global _client
    with _lock:
        if _client is not None and _client[0] == os.getpid():
            _client[1].close()
        _client = None


@contextlib.contextmanager
def engine_errors() -> Iterator[None]:
    """Turns what the SDK raises into KernelStartError, for what the engine refuses, EngineFailed or EngineSilent."""
    from docker.errors import APIError, DockerException, ImageNotFound
    from requests.exceptions import RequestException

    try:
        yield
    except KernelError:
        raise
    except ImageNotFound as error:
        raise KernelStartError(f"the sandbox's image is not in the engine: {error.explanation}") from error
    except APIError as error:
        raise EngineFailed(f"the Docker engine: {error.explanation or error}") from error
    except (DockerException, RequestException, OSError) as error:
        raise EngineSilent(f"the Docker engine does not answer: {error}", reached=not _refused(error)) from error


def events(container: str, since: str) -> dict[str, Any]:
    """The last event of each kind that the engine tells of a container.

    Not by the SDK, which waits for events without a bound.

    Args:
        container: the engine's id.
        since: seconds since the epoch.
    """
    api = client().api
    asked = {"since": since, "until": f"{time.time():.6f}", "filters": json.dumps({"container": [container]})}
    answer = api.get(f"{api.base_url}/v{api.api_version}/events", params=asked, timeout=ENGINE_S)
    answer.raise_for_status()
    told = [json.loads(line) for line in answer.text.splitlines() if line]
    return {event["Action"]: event for event in told}


def remove_container(identity: str) -> bool:
    """Kill and remove a container; whether it is gone.

    A refusal is logged. What a silent engine was asked for is asked again by `make_good`.
    """
    from docker.errors import APIError, NotFound
    from requests.exceptions import RequestException

    try:
        client().api.remove_container(identity, force=True, v=True)
    except NotFound:
        pass
    except APIError as error:
        if "already in progress" not in str(error):
            _log.warning("the container %s could not be removed: %s", identity[:12], error)
            return False
    except (RequestException, OSError, EngineFailed):
        remember(identity)
        return False
    return True


def remember(identity: str) -> None:
    """Have a container removed when the engine answers again; its id, or its name where it may have been made."""
    _unremoved.add(identity)


def make_good() -> None:
    """Remove what a silent engine was asked to remove, now that it answers."""
    for identity in list(_unremoved):
        _unremoved.discard(identity)
        remove_container(identity)


def say_waiting() -> None:
    """Say once for all who wait that the engine is waited for."""
    global _said_waiting
    with _lock:
        before, _said_waiting = _said_waiting, time.monotonic()
    if _said_waiting - before > BACK_S:
        _log.warning("the Docker engine does not answer; waiting up to %g s for it", BACK_S)


def _refused(error: BaseException | None) -> bool:
    """Whether there was no connection at all, so that the engine cannot have done what it was asked for."""
    while error is not None:
        if isinstance(error, (FileNotFoundError, ConnectionRefusedError)):
            return True
        error = error.__cause__ or error.__context__
    return False
