"""The notebook environment: one task, one notebook, one kernel session, and the agent's steps in it.

Aviary's shape: `reset() -> (messages, tools)`, `step(action) -> (messages, reward, done, truncated)`. What a cell
does to its kernel is the agent's and comes back as an observation; a host-side failure is raised.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbformat import NotebookNode

from nbagent import wording
from nbagent.action import Action, ActionFormat
from nbagent.backends import container_of, kernels_of, limits_of
from nbagent.notebook import NotebookDocument
from nbagent.tasks import Outcome, StepVerifier, Task, Verdict
from nbagent.tools import TOOLS, complaint, tool_name
from nbagent.verbs import Reply, Verbs
from nbagent_context import Brief, Exchange, Memory, message
from nbagent_kernels import KernelPool, Limits, SessionSpec

Record = Callable[..., None]
"""Takes an event's kind and its fields: `record("answer", step=3, answer="42")`."""


@dataclass(frozen=True, slots=True)
class EnvLimits:
    """What one attempt may take."""

    max_steps: int = 20
    """Steps, malformed ones included; the published agents take 20."""
    cell_timeout_s: float = 600.0
    """Seconds one cell may run."""
    total_s: float = 3600.0
    """Seconds from reset to the last step but one; after it the agent has one step to submit."""
    warn_steps: int = 3
    """The agent is told to submit when so many steps are left, and at each step after; 0 for never."""
    warn_s: float = 300.0
    """The agent is told to submit when so many seconds are left; 0 for never."""
    observation_chars: int = 10_000
    """Longest observation, in characters; longer ones lose their middle."""


def brief_of(
    task: Task, fmt: ActionFormat, instruction: str | None = None, tools: Sequence[dict[str, Any]] = TOOLS
) -> Brief:
    """What the agent is told of a task: the format's instruction (or `instruction`), the question, the files' names."""
    files = wording.listing(capsule_files(task.capsule))
    text = f"{task.question}\n{files}" if files else task.question
    return Brief(fmt.instruction(fmt.available(tools)) if instruction is None else instruction, text)


def capsule_files(capsule: Path) -> list[str]:
    """Names of a capsule's files, relative to it, with forward slashes, sorted."""
    return sorted(path.relative_to(capsule).as_posix() for path in capsule.rglob("*") if path.is_file())


class NotebookEnv:
    """One attempt at one task.

    Args:
        task: the question; its language chooses the kernel. Its verifier and key stay on the host.
        fmt: the format of the agent's actions; decides which tools there are.
        limits: steps and seconds.
        backend: where cells run.
        session_limits: what the kernel may use; None takes the defaults.
        record: is called for every event, as it happens.
        instruction: the system message; None takes the format's.
        kernels: gives the session when there is room; None opens one at once.
        run: name of the run that it is part of, by which its containers are labelled.

    Attributes:
        brief: what stays the same from the first step to the last.
        tools: schemas of the tools there are.
        history: the steps so far, and the memories that whoever plays the attempt has added.
        notice: what the agent should know of the steps and the time left; '' for nothing.
        answer: what was submitted; None until then.
        verdict: the outcome; None while the attempt runs.
        steps_taken: steps so far, malformed ones included.
    """

    def __init__(
        self,
        task: Task,
        *,
        fmt: ActionFormat,
        limits: EnvLimits | None = None,
        backend: str = "fork",
        session_limits: Limits | None = None,
        record: Record | None = None,
        instruction: str | None = None,
        kernels: KernelPool | None = None,
        run: str = "",
    ) -> None:
        self.task, self.fmt, self.limits = task, fmt, limits or EnvLimits()
        self.tools = fmt.available(TOOLS)
        self.brief = brief_of(task, fmt, instruction)
        self.history: list[Exchange | Memory] = []
        self.notice = ""
        self.answer: str | None = None
        self.verdict: Verdict | None = None
        self.steps_taken = 0
        self._record: Record = record or (lambda kind, **fields: None)
        self._backend, self._kernels = backend, kernels
        self._spec = SessionSpec(
            language=task.language,
            capsule=task.capsule,
            limits=limits_of(backend, session_limits),
            container=container_of(backend, task.language, run),
            seed=task.seed,
        )
        self._document = NotebookDocument(task.language)
        self._verbs: Verbs | None = None
        self._running = False
        self._began = time.monotonic()
        self._last = False

    @property
    def notebook(self) -> NotebookNode:
        """The notebook as it stands, nbformat v4.5; it always validates."""
        return self._document.node

    @property
    def remaining_steps(self) -> int:
        """Steps that are left."""
        return self.limits.max_steps - self.steps_taken

    async def reset(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Begin, or begin anew; the kernel starts in the background. Returns the first messages and the tools."""
        await self.close()
        self.history, self.steps_taken = [], 0
        self.answer, self.verdict = None, None
        self._document = NotebookDocument(self.task.language)
        names = {tool_name(tool) for tool in self.tools}
        # A format that can only submit has no use for a kernel.
        if names != {"submit_answer"}:
            self._verbs = Verbs(
                self._document,
                self._spec,
                kernels_of(self._backend),
                self._record,
                chars=self.limits.observation_chars,
                # Ids are worth their tokens only where a tool can name them.
                ids="edit_cell" in names,
                kernels=self._kernels,
            )
        self._running = True
        self._began = time.monotonic()
        self._look_ahead()
        system = [message("system", [self.brief.instruction])] if self.brief.instruction else []
        return [*system, message("user", [self.brief.task, self.notice and f"\n{self.notice}"])], self.tools

    async def step(self, action: Action) -> tuple[list[dict[str, Any]], float, bool, bool]:
        """Take one action; a malformed one counts too.

        Returns:
            The answer's messages (without text that policies add), the reward, whether an answer ended the attempt,
            whether a limit did.

        Raises:
            InfrastructureError: a cause on the host's side; the step does not count.
            RuntimeError: before reset(), or after the attempt has ended.
        """
        if not self._running or self.verdict is not None:
            raise RuntimeError("the attempt has ended or not begun; call reset()")
        step = self.steps_taken
        reason = action.error or complaint(action.tool, action.args, self.tools)
        if reason:
            reply = Reply(wording.malformed(reason), short="")
        elif action.tool == "submit_answer":
            reply = await self._submit(step, action.args["answer"])
        elif self._last:
            reply = Reply(wording.MUST_SUBMIT, short=action.tool)
        else:
            assert self._verbs is not None
            args = {name: value for name, value in action.args.items() if value is not None}
            seconds = min(self.limits.cell_timeout_s, max(self._seconds_left(), 1.0))
            reply = await self._verbs.take(step, action.tool, args, seconds)
        self.steps_taken += 1
        tool = "" if reason else action.tool
        exchange = Exchange(
            step,
            action.text,
            tool,
            reply.text,
            reply.cell_id,
            shown=reply.shown,
            short=reply.short,
            thought=action.thought,
            failed=bool(reason) or reply.failed,
            exception=reply.exception,
            full_chars=reply.full_chars,
        )
        self.history.append(exchange)
        self._record(
            "observation",
            step=step,
            tool=tool,
            short=reply.short,
            cell_id=reply.cell_id,
            shown=reply.shown,
            text=reply.text,
            error=reason,
            remaining_steps=self.remaining_steps,
            failed=exchange.failed,
            thought=exchange.thought,
            **({"exception": reply.exception} if reply.exception else {}),
            **({"full_chars": reply.full_chars} if reply.full_chars else {}),
            **self._step_reward(exchange),
            # Where the endpoint makes the calls itself, the call's text is not the action's.
            **({"action": action.text} if self.fmt.sends_schemas else {}),
        )
        truncated = self.verdict is None and self._last
        if truncated:
            self.verdict = Verdict(Outcome.NO_ANSWER, f"no answer within {self.steps_taken} steps")
        done = self.verdict is not None and not truncated
        self._look_ahead()
        reward = (self.verdict.outcome.reward or 0.0) if self.verdict else 0.0
        answer = message("tool" if action.call_id else "user", [reply.text, self.notice and f"\n{self.notice}"])
        if action.call_id:
            answer["tool_call_id"] = action.call_id
        return [answer], reward, done, truncated

    async def branch(self, record: Record | None = None) -> NotebookEnv:
        """Another environment that goes on from this one's state, kernel, files and all; this one is as it was.

        Args:
            record: is called for its events.

        Raises:
            KernelError: no second session came of this one's.
            OSError: its files could not be copied.
            RuntimeError: before reset(), or after the attempt has ended.
        """
        if not self._running or self.verdict is not None:
            raise RuntimeError("the attempt has ended or not begun; there is nothing to go on from")
        other = NotebookEnv(self.task, fmt=self.fmt, limits=self.limits, backend=self._backend, record=record)
        other.brief, other.history, other.notice = self.brief, list(self.history), self.notice
        other.steps_taken, other._spec, other._kernels = self.steps_taken, self._spec, self._kernels
        other._document, other._began, other._last = self._document.copy(), self._began, self._last
        if self._verbs is not None:
            other._verbs = await self._verbs.branch(other._document, other._record)
        other._running = True
        return other

    @property
    def closed(self) -> bool:
        """True before reset() and after close()."""
        return not self._running

    @property
    def replayed(self) -> bool:
        """True for a branch whose kernel was made by running the cells again."""
        return self._verbs is not None and self._verbs.replayed

    async def keep(self, folder: Path, max_bytes: int) -> None:
        """Copy the files that cells wrote into a folder, up to so many bytes. Raises InfrastructureError."""
        if self._verbs is not None:
            await self._verbs.keep(folder, max_bytes)

    async def close(self) -> None:
        """End the session, also one that is still being opened. Idempotent."""
        verbs, self._verbs, self._running = self._verbs, None, False
        if verbs is not None:
            await verbs.close()

    async def _submit(self, step: int, text: str) -> Reply:
        self.answer = text.strip()
        self._record("answer", step=step, answer=self.answer)
        # A judge may ask a model server: off the loop, which serves other kernels meanwhile.
        self.verdict = await asyncio.to_thread(self.task.verifier.verify, self.answer)
        return Reply(wording.SUBMITTED, short=wording.short("submit_answer", self.answer))

    def _step_reward(self, exchange: Exchange) -> dict[str, float]:
        verifier = self.task.verifier
        if not isinstance(verifier, StepVerifier):
            return {}
        return {"reward": verifier.step_reward(exchange.tool, exchange.observation, exchange.failed)}

    def _seconds_left(self) -> float:
        waited = self._verbs.waited_s if self._verbs is not None else 0.0
        return self.limits.total_s - (time.monotonic() - self._began - waited)

    def _look_ahead(self) -> None:
        """Whether the next step is the last, and what the agent is told before it."""
        seconds, steps = self._seconds_left(), self.remaining_steps
        self._last = steps <= 1 or seconds <= 0
        if self.verdict is not None:
            self.notice = ""
        elif seconds <= 0:
            self.notice = wording.TIME_UP
        elif steps <= self.limits.warn_steps:
            self.notice = wording.steps_left(steps)
        else:
            self.notice = wording.time_left(seconds) if seconds <= self.limits.warn_s else ""
