"""On-policy distillation: the student writes, a teacher says how likely each token was.

At every token y of the student's own rollouts, after what stands before it, the loss is the reverse divergence
KL(π ‖ π_T), whose gradient is E_{y ~ π}[∇ log π(y) (log π(y) − log π_T(y))]. So a token's advantage is

    A = log π_T(y) − log π(y),

from the behaviour log-probs, and the rest is the policy gradient of GRPO. A token is not charged for what it makes
later tokens cost (discount 0). Each rollout weighs the same: a token's weight is 1 / (N · L_i), N rollouts, L_i tokens.
Sources: on-policy distillation with reverse KL, Agarwal et al. 2024 (GKD, arXiv 2306.13649), and Gu et al. 2024
(MiniLLM, arXiv 2306.08543); as per-token advantages, Lu and Thinking Machines Lab 2025, "On-Policy Distillation".

Teacher and student must have the same tokenizer, since the teacher is asked about the student's ids. Rewards are
recorded and do not matter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoConfig

from nbagent.errors import ModelError, UsageError
from nbagent.models.endpoint import Endpoint
from nbagent.models.hf import load
from nbagent.models.opening import check_folder, open_tokenizer
from nbagent.rollouts import Group
from nbagent.samples import samples
from nbagent_training.distill_settings import SERVER
from nbagent_training.groups import Batch, TrainingRow

AT_ONCE = 32
"""Requests under way at a teacher's server."""
PADDED = 16384
"""Tokens of one batch of a teacher in this process, padding included."""
PROBE = "import pandas as pd\ndf = pd.read_csv('counts_1.csv', index_col=0)  # μ ≤ 3.5e-2"
Row = tuple[Sequence[int], Sequence[int]]
"""Prompt ids and completion ids."""


class Teacher(Protocol):
    """Something that knows how likely a completion is."""

    def logprobs(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """The log-prob of every completion id after all ids before it, at temperature 1.

        Raises:
            UsageError: a row is longer than what it takes.
            ModelError: the teacher could not be asked.
        """
        ...


class FolderTeacher:
    """A model in this process, on the student's device; in bf16 on a GPU."""

    def __init__(self, folder: Path, tokenizer: Any) -> None:
        """Load it. Raises UsageError: its tokenizer is not the student's."""
        gpu = torch.cuda.is_available()
        model, own = load(folder, torch.bfloat16 if gpu else torch.float32)
        _check_vocabulary(folder, own, tokenizer)
        self._model = (model.to("cuda") if gpu else model).eval()

    @torch.no_grad()
    def logprobs(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """In batches of near-equal length, padded at the right."""
        found: list[tuple[float, ...]] = [()] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
        while order:
            size = max(1, PADDED // sum(map(len, rows[order[0]])))
            batch, order = order[:size], order[size:]
            self._fill(batch, rows, found)
        return found

    def _fill(self, batch: Sequence[int], rows: Sequence[Row], found: list[tuple[float, ...]]) -> None:
        longest = max(sum(map(len, rows[i])) for i in batch)
        ids = torch.zeros((len(batch), longest), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, i in enumerate(batch):
            whole = torch.tensor([*rows[i][0], *rows[i][1]])
            ids[place, : len(whole)], mask[place, : len(whole)] = whole, 1
        device = next(self._model.parameters()).device
        # Only the logits of the completions are computed: a vocabulary is wide.
        keep = 1 + longest - min(len(rows[i][0]) for i in batch)
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device), logits_to_keep=keep).logits
        for place, i in enumerate(batch):
            first, end = len(rows[i][0]), sum(map(len, rows[i]))
            # logits[k] is of position longest − keep + k, and predicts the next one.
            start = first - 1 - (longest - keep)
            own = logits[place, start : start + end - first].float().log_softmax(-1)
            targets = ids[place, first:end, None].to(device)
            found[i] = tuple(own.gather(1, targets).squeeze(1).tolist())


class ServerTeacher:
    """A vLLM server, asked for the log-probs of given ids (`prompt_logprobs` of /v1/completions).

    It must write a token for each row that it reads, so it needs room for one more than a row may have.
    """

    def __init__(self, url: str, tokenizer: Any | None, longest: int | None = None) -> None:
        """Ask whom it serves.

        Args:
            url: the server's.
            tokenizer: the student's; None where it is not made yet.
            longest: tokens that a row may have; None where that is not known.

        Raises:
            UsageError: no single model, another tokenizer than the student's, or no room for the longest row.
            ModelError: it does not answer.
        """
        self._url = url.rstrip("/").removesuffix("/v1")
        self._model, self._room = asyncio.run(self._look(tokenizer))
        if longest is not None:
            self._check(longest)

    def _check(self, longest: int) -> None:
        if self._room is not None:
            _check_length(self._url, self._room, longest, written=1)

    async def _look(self, tokenizer: Any | None) -> tuple[str, int | None]:
        """Its name, and how many tokens it takes."""
        endpoint = Endpoint(self._url)
        try:
            served = (await endpoint.ask("GET", "/v1/models", None))["data"]
            if len(served) != 1:
                raise UsageError(f"{self._url}: serves {len(served)} models; give a server of the teacher alone")
            name, room = str(served[0]["id"]), served[0].get("max_model_len")
            asked = {"model": name, "prompt": PROBE, "add_special_tokens": False}
            theirs = (await endpoint.ask("POST", "/tokenize", asked))["tokens"] if tokenizer is not None else ()
        finally:
            await endpoint.close()
        if tokenizer is not None and list(theirs) != list(tokenizer(PROBE, add_special_tokens=False)["input_ids"]):
            raise UsageError(f"{self._url}: the teacher's tokenizer is not the student's; its ids mean something else")
        return name, int(room) if room is not None else None

    def logprobs(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        """One request a row, so many at once. Raises UsageError: a row that leaves no room for the token it writes."""
        self._check(max((len(prompt) + len(completion) for prompt, completion in rows), default=0))
        return asyncio.run(self._ask(rows))

    async def _ask(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        endpoint, turn = Endpoint(self._url, timeout_s=600.0), asyncio.Semaphore(AT_ONCE)

        async def one(prompt: Sequence[int], completion: Sequence[int]) -> tuple[float, ...]:
            body = {
                "model": self._model,
                "prompt": [*prompt, *completion],
                "max_tokens": 1,
                "temperature": 1.0,
                "prompt_logprobs": 0,
            }
            async with turn:
                answer = await endpoint.ask("POST", "/v1/completions", body)
            try:
                given = answer["choices"][0]["prompt_logprobs"][len(prompt) :]
                pairs = zip(given, completion, strict=True)
                return tuple(float(entry[str(token)]["logprob"]) for entry, token in pairs)
            except (KeyError, IndexError, TypeError, ValueError) as error:
                raise ModelError(
                    f"{self._url}: gave no log-probs of the prompt's ids ({type(error).__name__}); the teacher must be "
                    "a vLLM server"
                ) from error

        try:
            return list(await asyncio.gather(*(one(*row) for row in rows)))
        finally:
            await endpoint.close()


def _check_vocabulary(folder: Path, own: Any, tokenizer: Any) -> None:
    if own.get_vocab() != tokenizer.get_vocab():
        raise UsageError(f"{folder}: the teacher's tokenizer is not the student's; its ids mean something else")


def _check_length(where: str | Path, room: int, longest: int, *, written: int = 0) -> None:
    """Raises UsageError: no room for the longest row, and beside it for the tokens that a server must write."""
    if room < longest + written:
        beside = f" and a server writes {written} more" if written else ""
        raise UsageError(
            f"{where}: the teacher takes {room} tokens, and rows may have {longest}{beside}; serve it with "
            f"--max-model-len {longest + written} or take another, or have the student sample with --max-model-len "
            f"{room - written}"
        )


def check_teacher(named: str, tokenizer: Any | None, longest: int | None = None) -> None:
    """Look whether `open_teacher` will open it, without loading its weights.

    Args:
        named: as there.
        tokenizer: the student's; None where it is not made yet.
        longest: tokens that a row may have; None where that is not known.

    Raises:
        UsageError: it cannot be used, has another tokenizer, or no room for the longest row.
        ModelError: its server does not answer.
    """
    if named.startswith(SERVER):
        ServerTeacher(named.removeprefix(SERVER), tokenizer, longest)
    elif named:
        folder = Path(named)
        check_folder(folder)
        if tokenizer is not None:
            _check_vocabulary(folder, open_tokenizer(folder), tokenizer)
        room = getattr(AutoConfig.from_pretrained(folder, local_files_only=True), "max_position_embeddings", None)
        if room is not None and longest is not None:
            _check_length(folder, room, longest)


def open_teacher(named: str, tokenizer: Any, longest: int | None = None) -> Teacher | None:
    """The teacher of a recipe: a folder, or `vllm:URL`; None where none is named.

    Args:
        named: what the recipe says.
        tokenizer: the student's.
        longest: tokens that a row may have; None where that is not known.

    Raises:
        UsageError: it cannot be used, has another tokenizer, or no room for the longest row.
        ModelError: its server does not answer.
    """
    if named.startswith(SERVER):
        return ServerTeacher(named.removeprefix(SERVER), tokenizer, longest)
    check_teacher(named, tokenizer, longest)
    return FolderTeacher(Path(named), tokenizer) if named else None


def distillation_batch(groups: Sequence[Group], teacher: Teacher) -> Batch:
    """The rows of an update, each token with its own advantage.

    Raises:
        UsageError: calls without token ids, or longer than what the teacher takes.
        ModelError: the teacher could not be asked.
    """
    rollouts = [rows for group in groups for trajectory in group.trajectories if (rows := samples(trajectory))]
    calls = [(row.prompt_ids, row.completion_ids) for rows in rollouts for row in rows]
    taught = iter(teacher.logprobs(calls))
    made, gaps = [], list[float]()
    for rows in rollouts:
        weight = 1 / (len(rollouts) * sum(len(row.completion_ids) for row in rows))
        for row in rows:
            own = tuple(their - mine for their, mine in zip(next(taught), row.logprobs, strict=True))
            gaps += own
            made.append(
                TrainingRow(
                    row.prompt_ids,
                    row.completion_ids,
                    row.logprobs,
                    sum(own) / len(own),
                    weight,
                    version=row.version,
                    kind=row.kind,
                    token_advantages=own,
                )
            )
    stats = {
        "reward": sum(rows[0].reward for rows in rollouts) / max(1, len(rollouts)),
        "groups": float(len(groups)),
        "trajectories": float(len(rollouts)),
        "rows": float(len(made)),
        "completion_tokens": float(len(gaps)),
        "teacher_kl": -sum(gaps) / max(1, len(gaps)),
    }
    return Batch(made, stats)
