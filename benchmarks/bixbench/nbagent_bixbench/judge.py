"""Judges: language models that decide whether an answer says what the key says."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from nbagent.blobs import storage_failed
from nbagent.errors import ModelError, UsageError
from nbagent.models.base import Prompt, SamplingParams
from nbagent.models.endpoint import RefusedError, UnreachableError
from nbagent.models.openai import OpenAIModel
from nbagent_bixbench.judge_prompt import PROMPT_VERSION, judge_messages, read_grade
from nbagent_bixbench.types import Judgement, JudgeVerdict

MAX_TOKENS = 4096
"""Tokens of a reply: room for models that think before they answer."""
TEMPERATURE = 1.0
"""Repeats at 0 would agree with themselves whatever they say, and some endpoints take nothing but 1."""


@runtime_checkable
class Judge(Protocol):
    """Decides on free text. Called from any thread."""

    def decide(self, question: str, ideal: str, predicted: str) -> Judgement:
        """What it says of an answer; `unreachable` where it cannot be asked, which is no error."""
        ...


class RecordedJudge:
    """Says what a judge said before, where a file holds its verdict but the judge is gone.

    Example:
        >>> said = Judgement("refused", ("refused",), 1.0, "", "a judge long gone")
        >>> RecordedJudge(said).decide("Which gene?", "MYC", "no idea").verdict
        'refused'
    """

    def __init__(self, said: Judgement) -> None:
        self._said = said

    def decide(self, question: str, ideal: str, predicted: str) -> Judgement:
        """The recorded verdict, whatever is asked."""
        return self._said


class EndpointJudge:
    """A judge behind a chat-completions endpoint, asked several times; the majority decides.

    A call starts an event loop of its own: on a running loop, call it with `asyncio.to_thread`. Once the endpoint
    refused the key or the model, or never answered, later calls are `unreachable` without being sent.
    """

    def __init__(self, url: str, model: str, repeats: int = 3, cache: Path | None = None, **endpoint: Any) -> None:
        """Nothing is sent yet.

        Args:
            url: base address of the endpoint, e.g. `http://localhost:8000/v1`.
            model: the judge's name there; verdicts are recorded under it.
            repeats: times each answer is judged.
            cache: folder of verdicts, which are kept by all that they depend on; None: nothing is kept.
            endpoint: further settings of `OpenAIModel`, e.g. `timeout_s`.

        Raises:
            UsageError: no model's name, no repeats, or a URL that cannot be used.
        """
        if not model:
            raise UsageError("a judge needs its model's name, under which verdicts are recorded: URL#MODEL")
        if repeats < 1:
            raise UsageError(f"a judge is asked at least once, not {repeats} times")
        self.url, self.model, self.repeats = url, model, repeats
        self._cache, self._endpoint = cache, endpoint
        self._stopped: ModelError | None = None
        self._open()

    def decide(self, question: str, ideal: str, predicted: str) -> Judgement:
        """The majority of the repeats, or what the cache holds; `undecided` without a majority.

        Raises:
            StorageError: the cache cannot be written.
        """
        messages = judge_messages(question, ideal, predicted)
        kept = self._kept(messages)
        if kept is not None and kept.is_file():
            stored = json.loads(kept.read_text(encoding="utf-8"))
            return Judgement(**stored | {"votes": tuple(stored["votes"])})
        judgement = self._count(self._replies(messages, self.repeats))
        if kept is not None and "unreachable" not in judgement.votes:
            _write(kept, judgement)
        return judgement

    def ask(self, prompt: str) -> str:
        """The reply to a prompt, asked once.

        Raises:
            ModelError: the endpoint could not be asked.
        """
        (reply,) = self._replies([{"role": "user", "content": prompt}], 1)
        if isinstance(reply, ModelError):
            raise reply
        return reply

    def _open(self) -> OpenAIModel:
        return OpenAIModel(self.url, self.model, **self._endpoint)

    def _replies(self, messages: Sequence[dict[str, Any]], n: int) -> list[str | ModelError]:
        if self._stopped is not None:
            return [self._stopped] * n
        return asyncio.run(self._ask(messages, n))

    async def _ask(self, messages: Sequence[dict[str, Any]], n: int) -> list[str | ModelError]:
        endpoint = self._open()

        async def once(seed: int) -> str | ModelError:
            try:
                return (await endpoint.sample(Prompt(messages), SamplingParams(MAX_TOKENS, TEMPERATURE, seed))).text
            except (RefusedError, UnreachableError) as error:
                self._stopped = error
                return error
            except ModelError as error:
                return error

        try:
            return list(await asyncio.gather(*map(once, range(n))))
        finally:
            await endpoint.close()

    def _count(self, replies: Sequence[str | ModelError]) -> Judgement:
        votes = tuple("unreachable" if isinstance(reply, ModelError) else read_grade(reply) for reply in replies)
        failed = [reply for reply in replies if isinstance(reply, ModelError)]
        readable = Counter(vote for vote in votes if vote not in ("unreachable", "unreadable"))
        first, n = readable.most_common(1)[0] if readable else ("undecided", 0)
        verdict = first if 2 * n > len(votes) else "unreachable" if failed else "undecided"
        detail = str(failed[0]) if verdict == "unreachable" else ""
        return Judgement(cast(JudgeVerdict, verdict), votes, n / len(votes), PROMPT_VERSION, self.model, detail)

    def _kept(self, messages: Sequence[dict[str, Any]]) -> Path | None:
        if self._cache is None:
            return None
        depends = [self.url, self.model, self.repeats, MAX_TOKENS, TEMPERATURE, PROMPT_VERSION, messages]
        name = hashlib.sha256(json.dumps(depends).encode()).hexdigest()
        return self._cache / name[:2] / f"{name}.json"


def open_judge(name: str, repeats: int = 3, cache: Path | None = None) -> EndpointJudge:
    """The judge that `URL#MODEL` names.

    Raises:
        UsageError: the name cannot be used.
    """
    url, _, model = name.removeprefix("openai:").partition("#")
    return EndpointJudge(url, model, repeats, cache)


def _write(path: Path, judgement: Judgement) -> None:
    """Written beside and moved, so that a file of that name is whole, whoever else writes it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(asdict(judgement), file)
        Path(part).replace(path)
    except OSError as error:
        storage_failed(path, error)
