"""Draw tasks from a seed: capsules, questions over them, and keys computed by running the reference notebooks.

The splits share nothing. Their seeds come from disjoint ranges, and beside that a hash decides in which split a draw
may be used: for drawn data the hash of the capsule's content, so that a whole capsule belongs to one split; for
measured data, whose rows are the same in all splits, the hash of the family and of what the question asks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal, cast, get_args

from nbagent.errors import UsageError
from nbagent_bixbench.families import FAMILIES, Capsule, Draft, EvalMode, Family, Kind
from nbagent_bixbench.keys import degenerate, distractors, ideal
from nbagent_bixbench.reference import Executed, Notebook, blocking, execute, open_kernel

Split = Literal["train", "validation", "heldout"]

BUCKETS: dict[Split, frozenset[int]] = {
    "heldout": frozenset({0, 1}),
    "validation": frozenset({2}),
    "train": frozenset(range(3, 10)),
}
"""Which of the ten hash buckets each split draws from."""

SEED_RANGE: dict[Split, int] = {"train": 0, "validation": 1 << 64, "heldout": 2 << 64}
"""Where each split's seeds start; each range is 2**64 wide."""

PER_CAPSULE = (1, 4)
"""Fewest and most questions over one capsule."""

SPARE = 2
"""Draws made at once in place of a degenerate one."""

TRIES = 400
"""Draws before a family is given up as one that cannot fill its split."""


@dataclass(frozen=True, slots=True)
class DrawnTask:
    """A question with everything that is known about it."""

    family: str
    """Name in FAMILIES."""
    question: str
    """The text given to the agent."""
    files: Mapping[str, bytes]
    """The capsule's data files; one mapping for all questions of a capsule."""
    cells: tuple[str, str]
    """Sources of the reference notebook."""
    outputs: tuple[str, ...]
    """What each cell printed, with its line ends."""
    answer: str
    """The answer the reference notebook prints, stripped."""
    ideal: str
    """The key in BixBench's form: the answer, or `"(lo,hi)"`."""
    eval_mode: EvalMode
    """How the key is to be compared."""
    distractors: tuple[str, str, str]
    """Wrong options."""
    params: tuple[str, ...]
    """What the question asks, canonically."""
    content: str
    """SHA-256 (hex) of the capsule's content."""
    capsule: int
    """Number of the capsule in this draw, from 0; questions of one capsule share it."""
    paper: str
    """Where the data come from."""
    real: bool
    """True for measured data."""
    rivals: tuple[tuple[str, str], ...] = ()
    """Plausible wrong analyses, the usual one first: a source in place of the last cell's, and what it printed."""


@dataclass(frozen=True, slots=True)
class _Asked:
    slot: int
    draft: Draft
    capsule: Capsule
    content: str
    files: Mapping[str, bytes]
    number: int


def bucket(*parts: str) -> int:
    """The hash bucket (0–9) of a draw's identity; the same on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8]) % 10


def choose_families(names: Sequence[str] | None) -> list[Family]:
    """Families by name, all of them for None. Raises UsageError for an unknown name."""
    for name in names or ():
        if name not in FAMILIES:
            raise UsageError(f"unknown family {name!r}; there are: {', '.join(FAMILIES)}")
    return [FAMILIES[name] for name in dict.fromkeys(names)] if names else list(FAMILIES.values())


def draft_tasks(
    n: int,
    seed: int,
    split: str = "train",
    families: Sequence[str] | None = None,
    progress: Callable[[int], None] | None = None,
    backend: str = "fork",
) -> list[DrawnTask]:
    """`n` tasks, families in turn, the same for the same arguments. `progress` is told how many more are done.

    Raises:
        UsageError: an unknown split or family, a seed outside 0 … 2**31, or a family that cannot fill the split.
    """
    if split not in get_args(Split):
        raise UsageError(f"unknown split {split!r}; there are: {', '.join(get_args(Split))}")
    if not 0 <= seed < 1 << 31:
        raise UsageError(f"seed {seed} is not between 0 and {(1 << 31) - 1}")
    drawing = _Draw(n, seed, cast(Split, split), choose_families(families))
    return blocking(drawing.run(progress, backend))


class _Draw:
    def __init__(self, n: int, seed: int, split: Split, families: list[Family]) -> None:
        self.split = split
        self.start = SEED_RANGE[split] + (seed << 32)
        self.families = [families[i % len(families)] for i in range(n)]
        self.done: list[DrawnTask | None] = [None] * n
        self.tries = [0] * n
        self.seen: set[tuple[str, ...]] = set()
        self.capsules = 0
        self.counter = 0
        self.groups = self._plan(n, len(families), seed)

    def _plan(self, n: int, turn: int, seed: int) -> list[list[int]]:
        # Questions share a capsule with those of the same kind in the same turn of families.
        r = Random(f"{self.split} {seed} plan")
        groups = []
        for start in range(0, n, turn):
            kinds: dict[str, list[int]] = {}
            for slot in range(start, min(start + turn, n)):
                kinds.setdefault(self.families[slot].kind.name, []).append(slot)
            for slots in kinds.values():
                r.shuffle(slots)
                while slots:
                    size = r.randint(*PER_CAPSULE)
                    groups.append(slots[:size])
                    slots = slots[size:]
        return groups

    async def run(self, progress: Callable[[int], None] | None, backend: str) -> list[DrawnTask]:
        kernel = await open_kernel(backend)
        try:
            groups = self.groups
            while groups:
                before = len(self._missing())
                asked = [question for group in groups for question in self._ask(group)]
                notebooks = [Notebook(x.files, x.draft.cells, x.draft.rivals + x.draft.twins) for x in asked]
                for question, executed in zip(asked, await execute(kernel, notebooks), strict=True):
                    if self.done[question.slot] is None:
                        self.done[question.slot] = self._finish(question, executed)
                missing = self._missing()
                groups = [[slot] for slot in missing for _ in range(SPARE)]
                if progress:
                    progress(before - len(missing))
        finally:
            await kernel.close()
        return [task for task in self.done if task is not None]

    def _missing(self) -> list[int]:
        return [slot for slot, task in enumerate(self.done) if task is None]

    def _random(self) -> Random:
        self.counter += 1
        return Random(self.start + self.counter)

    def _ask(self, slots: list[int]) -> list[_Asked]:
        kind = self.families[slots[0]].kind
        while True:
            for slot in slots:
                self.tries[slot] += 1
                if self.tries[slot] > TRIES:
                    name = self.families[slot].name
                    raise UsageError(
                        f"family {name!r} has no {TRIES + 1}th draw for split {self.split!r}; ask for fewer"
                    )
            r = self._random()
            capsule, content = self._capsule(kind, r)
            drafts = [self._draft(r, capsule, content, self.families[slot]) for slot in slots]
            if all(draft is not None for draft in drafts):
                break
        files = capsule.files()
        self.capsules += 1
        return [
            _Asked(slot, draft, capsule, content, files, self.capsules)
            for slot, draft in zip(slots, drafts, strict=True)
            if draft is not None
        ]

    def _capsule(self, kind: Kind, r: Random) -> tuple[Capsule, str]:
        while True:
            capsule = kind.draw(r)
            content = capsule.content()
            if capsule.real or bucket(content) in BUCKETS[self.split]:
                return capsule, content

    def _draft(self, r: Random, capsule: Capsule, content: str, family: Family) -> Draft | None:
        for _ in range(20):
            draft = family.ask(r, capsule)
            identity = (family.name, *draft.params, "" if capsule.real else content)
            if capsule.real and bucket(family.name, *draft.params) not in BUCKETS[self.split]:
                continue
            # Measured data have only so many questions: prefer new ones, take an old one rather than none.
            if identity in self.seen and r.random() < 0.95:
                continue
            self.seen.add(identity)
            return draft
        return None

    def _finish(self, question: _Asked, executed: Executed) -> DrawnTask | None:
        draft, family = question.draft, self.families[question.slot]
        if executed.error:
            return None
        answer = executed.outputs[-1].strip()
        n = len(draft.rivals)
        rivals, twins = list(executed.extras[:n]), list(executed.extras[n:])
        if degenerate(draft, answer, rivals, twins):
            return None
        wrong = distractors(Random(f"{question.content} {draft.params}"), draft, answer, rivals)
        return DrawnTask(
            family=family.name,
            question=draft.question,
            files=question.files,
            cells=draft.cells,
            outputs=executed.outputs,
            answer=answer,
            ideal=ideal(draft, answer),
            eval_mode=draft.eval_mode,
            distractors=wrong,
            params=draft.params,
            content=question.content,
            capsule=question.number,
            paper=question.capsule.paper,
            real=question.capsule.real,
            rivals=tuple(
                (cell, text) for cell, text in zip(draft.rivals, rivals, strict=True) if text and text.strip()
            ),
        )
