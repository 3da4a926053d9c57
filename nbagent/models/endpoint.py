"""An HTTP endpoint that is asked with bounded patience; both kinds of remote model are built on it.

What goes wrong on the way (429, 5xx, a broken connection, silence, an answer that is no JSON) is asked again
a bounded number of times, with exponential backoff and jitter, or after as long as the server's Retry-After
says. What asking again cannot mend (a wrong key, an unknown model) fails at once.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import httpx

from nbagent.errors import ModelError

T = TypeVar("T")
_AGAIN = frozenset({408, 409, 425, 429})


class RefusedError(ModelError):
    """The endpoint will answer no call of this run: a wrong key, an unknown model."""


class MissingError(RefusedError):
    """What was asked for is not there: a model of that name, or the way to it."""


class UnreachableError(ModelError):
    """No call was ever answered: the address is wrong or the server is not up."""


class TransientError(ModelError):
    """One try failed in a way that another may not."""

    def __init__(self, what: str, retry_after: float | None = None) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class Endpoint:
    """One address.

    Attributes:
        retries: tries that failed and were made again.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        refusal_hint: str = "",
        uds: str | None = None,
        timeout_s: float = 120.0,
        max_retries: int = 5,
        backoff_s: float = 1.0,
        max_backoff_s: float = 60.0,
    ) -> None:
        """Nothing is sent before the first `ask`.

        Args:
            url: base address, without a slash at its end.
            headers: go with every request.
            refusal_hint: what to do about a refusal for want of rights.
            uds: path of a Unix socket to connect to instead of the address's host.
            timeout_s: seconds one try may take in all.
            max_retries: tries after the first.
            backoff_s: seconds before the second try; doubles, with jitter.
            max_backoff_s: longest wait between two tries; also for Retry-After, beyond which the call fails.
        """
        self.url = url
        self._headers, self._refusal_hint, self._uds = dict(headers or {}), refusal_hint, uds
        self._timeout_s, self._max_retries = timeout_s, max_retries
        self._backoff_s, self._max_backoff_s = backoff_s, max_backoff_s
        self._client: httpx.AsyncClient | None = None
        self._answered = False
        self.retries = 0

    async def ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """The endpoint's JSON object, after bounded retries.

        Raises:
            RefusedError: asking again would not help.
            UnreachableError: nothing ever answered there.
            ModelError: the request was refused, or the endpoint failed for good.
        """
        return await self.patiently(lambda: self.once(method, path, body), path)

    async def patiently(self, one_try: Callable[[], Awaitable[T]], path: str) -> T:
        """What `one_try` gives, made again within the bounds where it raises TransientError.

        Raises:
            UnreachableError: nothing ever answered.
            ModelError: the last try failed too, or the try raised it.
        """
        tries = 0
        while True:
            try:
                return await one_try()
            except TransientError as failure:
                tries += 1
                wait = min(self._backoff_s * 2.0 ** (tries - 1), self._max_backoff_s)
                wait *= random.uniform(0.5, 1.0)
                if failure.retry_after is not None:
                    wait = failure.retry_after
                if tries > self._max_retries or wait > self._max_backoff_s:
                    more = f"; the server asks to wait {wait:.0f} s" if wait > self._max_backoff_s else ""
                    times = f"{tries} tries" if tries > 1 else "one try"
                    error = ModelError if self._answered else UnreachableError
                    raise error(f"{self.url}{path}: {failure} (gave up after {times}{more})") from failure
                self.retries += 1
            await asyncio.sleep(wait)

    async def once(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        """One try.

        Raises:
            TransientError: another try may succeed.
            RefusedError: none will; MissingError where there is nothing of that name.
            ModelError: this request is refused; others may be taken.
        """
        if self._client is None:
            # A proxy of the environment is for other machines, never for a socket on this one.
            local = httpx.AsyncHTTPTransport(uds=self._uds, limits=httpx.Limits()) if self._uds else None
            self._client = httpx.AsyncClient(
                headers=self._headers, timeout=None, follow_redirects=False, transport=local, trust_env=local is None
            )
        try:
            # httpx bounds the wait between bytes; a server that trickles would never reach that bound.
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.request(method, self.url + path, json=body)
        except TimeoutError:
            raise TransientError(f"no answer within {self._timeout_s:g} s") from None
        except httpx.TransportError as error:
            raise TransientError(f"{type(error).__name__}: {error or 'the connection broke'}") from error
        self._answered = self._answered or response.status_code < 500
        if response.status_code in _AGAIN or response.status_code >= 500:
            raise TransientError(_status(response), _retry_after(response.headers))
        if response.status_code in (401, 403):
            hint = f"; {self._refusal_hint}" if self._refusal_hint else ""
            raise RefusedError(f"{self.url}{path}: {_status(response)}{hint}")
        if response.status_code in (400, 413, 422):
            # One prompt that is too long, or that a filter refuses, says nothing of the others.
            raise ModelError(f"{self.url}{path}: {_status(response)}")
        if not response.is_success:
            kind = MissingError if response.status_code == 404 else RefusedError
            raise kind(f"{self.url}{path}: {_status(response)}")
        try:
            answer = response.json()
        except ValueError:
            raise TransientError("the answer is not JSON") from None
        if not isinstance(answer, dict):
            raise TransientError("the answer is not a JSON object")
        return answer

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None


def _status(response: httpx.Response) -> str:
    """`HTTP 429 Too Many Requests: what the server said`, on one line."""
    try:
        error = response.json()["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        said = response.text
    said = " ".join(said.split())[:200]
    return f"HTTP {response.status_code} {response.reason_phrase}{': ' + said if said else ''}"


def _retry_after(headers: httpx.Headers) -> float | None:
    """Seconds that Retry-After asks for (a number or a date: RFC 9110 §10.2.3), None without it."""
    value = headers.get("retry-after", "")
    if re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
