"""What tests of the agent share: a small task, and its environment over a real kernel."""

from __future__ import annotations

import contextlib

import nbformat
import pytest
from chat_endpoint import Endpoint

from nbagent.actions import Action, action_format
from nbagent.env import EnvLimits, NotebookEnv
from nbagent.tasks import Outcome, Task, Verdict


class Exact:
    """Right when the answer is the key."""

    def verify(self, answer):
        if not answer:
            return Verdict(Outcome.NO_ANSWER, "nothing was submitted")
        return Verdict(Outcome.CORRECT if answer == "4" else Outcome.INCORRECT, "compared as text")


@pytest.fixture
def task(tmp_path):
    (tmp_path / "a.csv").write_text("x,y\n1,3\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.h5").write_bytes(b"\x89HDF\r\n\x00\x01" * 9)
    (tmp_path / "long.txt").write_text("".join(f"line {n}\n" for n in range(9999)))
    return Task("t1", "What is x + y?", tmp_path, Exact(), key="4")


class Opened(contextlib.AsyncExitStack):
    """An environment after reset, with its events, closed at the end."""

    def __init__(self, task, name="hermes", **settings):
        super().__init__()
        self.events = []
        limits = EnvLimits(**{"max_steps": 20, "warn_steps": 0, **settings.pop("limits", {})})
        self.env = NotebookEnv(
            task,
            fmt=action_format(name),
            limits=limits,
            record=lambda kind, **fields: self.events.append({"kind": kind, **fields}),
            **settings,
        )

    async def __aenter__(self):
        self.push_async_callback(self.env.close)
        self.first = await self.env.reset()
        return self

    async def do(self, tool, **args):
        messages, self.reward, self.done, self.truncated = await self.env.step(Action(tool, args, f"({tool})"))
        nbformat.validate(self.env.notebook)
        assert messages[-1]["content"][0]["text"] == self.env.history[-1].observation
        return self.env.history[-1].observation

    def kinds(self, kind):
        return [event for event in self.events if event["kind"] == kind]


@pytest.fixture
def opened():
    return Opened


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv("NBAGENT_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    endpoint = Endpoint()
    yield endpoint
    endpoint.close()
