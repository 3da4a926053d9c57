"""Model `hf`: a Hugging Face causal LM in this process, sampled in batches outside the event loop. Needs torch.

Concurrent `sample` calls are merged: while a batch runs in its own thread, the next calls gather. With
`lockstep` set, a batch starts only once every live rollout waits in it, so that batches, and with one thread all
numbers, are the same in every run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from nbagent.errors import ModelError, ModelFolderError
from nbagent.models.base import Completion, Prompt, SamplingParams
from nbagent.models.merged import merged_state
from nbagent.models.sampler import Sampled, sample_batch


@dataclass(slots=True)
class _Request:
    ids: Sequence[int]
    params: SamplingParams
    future: asyncio.Future[tuple[Sampled, int]]


def load(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Model and tokenizer of a local folder.

    Raises:
        ModelFolderError: the folder is missing, is no model, or is corrupt.
    """
    if not folder.is_dir():
        raise ModelFolderError(f"{folder}: no such model folder; give a local folder of a Hugging Face causal LM")
    if not (folder / "config.json").is_file():
        raise ModelFolderError(f"{folder}: not a model folder (no config.json in it)")
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ModelFolderError(
            f"{folder}: the model cannot be loaded ({type(error).__name__}: {reason}); copy the folder again"
        ) from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    if tokenizer.chat_template is None:
        raise ModelFolderError(f"{folder}: its tokenizer has no chat template; an agent needs a chat model")
    return model, tokenizer


class HFModel:
    """A causal LM and its tokenizer.

    Attributes:
        version: number of weight updates so far (see `refresh`).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        max_batch: int = 96,
        gather_s: float = 0.004,
        lockstep: bool = False,
        sampling_dtype: torch.dtype | None = None,
        copies: bool = False,
    ) -> None:
        """A sampler of `model`.

        Args:
            model: what is sampled from, and trained by somebody else perhaps.
            tokenizer: its tokenizer.
            name: for tables.
            max_batch: rows of a batch.
            gather_s: seconds a batch waits for more calls.
            lockstep: a batch waits for every live rollout instead.
            sampling_dtype: sample from a copy in this type; None: from the model itself.
            copies: sample from a copy in any case, so that the model may be trained meanwhile.
        """
        self._train_model = model
        self._tokenizer = tokenizer
        self._name = name
        self._max_batch = max_batch
        self._gather_s = gather_s
        self._lockstep = lockstep
        self._dtype = sampling_dtype
        self._copies = copies
        self._held: tuple[Any, int] | None = None
        self.version = 0
        self.live = 0
        self._waiting: list[_Request] = []
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nbagent-sampling")
        generation = getattr(model, "generation_config", None)
        stops = getattr(generation, "eos_token_id", None)
        ids = stops if isinstance(stops, list) else [stops]
        self._stop_ids = frozenset(i for i in [*ids, tokenizer.eos_token_id] if i is not None)
        pad = tokenizer.pad_token_id
        self._pad_id = int(pad if pad is not None else tokenizer.eos_token_id)

    @classmethod
    def load(cls, folder: Path, **settings: Any) -> HFModel:
        """A model from a local folder; in bf16 where the machine has a GPU. Raises ModelFolderError."""
        gpu = torch.cuda.is_available()
        model, tokenizer = load(folder, torch.bfloat16 if gpu else torch.float32)
        if gpu:
            model = model.to("cuda")
        return cls(model, tokenizer, str(folder), **settings)

    @property
    def name(self) -> str:
        """The folder it came from."""
        return self._name

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizer

    @property
    def context_length(self) -> int:
        """Positions of the model."""
        return int(self._train_model.config.max_position_embeddings)

    def refresh(self, version: int) -> None:
        """Take the weights that the trainer holds now; called between rollouts, or with `copies` amid them.

        A batch is answered by the weights that it began with.
        """
        self.version = version
        self._held = (self._weights(), version) if self._copies else None

    def enter(self) -> None:
        """A rollout begins: lockstep batches wait for it."""
        self.live += 1

    def leave(self) -> None:
        """A rollout has ended."""
        self.live -= 1
        self._wake()

    async def sample(self, prompt: Prompt, params: SamplingParams) -> Completion:
        """One completion.

        Raises:
            ModelError: the prompt has no ids or does not fit, or sampling failed.
        """
        if prompt.ids is None:
            raise ModelError("an in-process model needs prompt ids; make the prompt with its tokenizer")
        if len(prompt.ids) + params.max_new_tokens > self.context_length:
            raise ModelError(
                f"a prompt of {len(prompt.ids)} tokens and an answer of {params.max_new_tokens} do not fit into "
                f"{self.context_length} positions"
            )
        request = _Request(prompt.ids, params, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._wake()
        sampled, version = await request.future
        text_ids = sampled.ids[:-1] if sampled.stopped else sampled.ids
        return Completion(
            text=self._tokenizer.decode(list(text_ids), skip_special_tokens=False),
            finish="stop" if sampled.stopped else "length",
            ids=sampled.ids,
            logprobs=sampled.logprobs,
            usage={"prompt_tokens": len(prompt.ids), "completion_tokens": len(sampled.ids)},
            version=version if self._copies else None,
        )

    async def close(self) -> None:
        """Stop the sampling thread."""
        if self._pump is not None:
            self._pump.cancel()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _wake(self) -> None:
        if self._waiting and (self._pump is None or self._pump.done()):
            self._pump = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        while self._waiting:
            if self._lockstep:
                if sum(not r.future.done() for r in self._waiting) < self.live:
                    return
            elif len(self._waiting) < self._max_batch:
                await asyncio.sleep(self._gather_s)
            ready = sorted((r for r in self._waiting if not r.future.done()), key=lambda r: (len(r.ids), r.params.seed))
            # Near-equal lengths go together, in batches of near-equal size; lockstep runs the whole round.
            count = max(1, -(-len(ready) // self._max_batch))
            size = -(-len(ready) // count)
            taken = len(ready) if self._lockstep else size
            self._waiting = ready[taken:]
            for start in range(0, taken, max(size, 1)):
                await self._answer(ready[start : start + size])

    async def _answer(self, batch: list[_Request]) -> None:
        try:
            results, version = await asyncio.get_running_loop().run_in_executor(self._thread, self._run, batch)
        except Exception as error:
            for request in batch:
                if not request.future.done():
                    request.future.set_exception(ModelError(f"sampling failed: {type(error).__name__}: {error}"))
            return
        for request, sampled in zip(batch, results, strict=True):
            if not request.future.done():
                request.future.set_result((sampled, version))

    def _run(self, batch: Sequence[_Request]) -> tuple[list[Sampled], int]:
        """The completions of a batch, and the version of the weights that made them."""
        held = self._held
        if held is None:
            held = self._held = self._weights(), self.version
        sampled = sample_batch(
            held[0],
            [r.ids for r in batch],
            max_new_tokens=[r.params.max_new_tokens for r in batch],
            temperatures=[r.params.temperature for r in batch],
            seeds=[r.params.seed for r in batch],
            stop_ids=self._stop_ids,
            pad_id=self._pad_id,
        )
        return sampled, held[1]

    def _weights(self) -> Any:
        """What is sampled from: the model itself, or a copy."""
        source = self._train_model
        dtype = self._dtype or next(source.parameters()).dtype
        if not self._copies and dtype == next(source.parameters()).dtype:
            return source.eval()
        # Made anew, not deep-copied: a trainer may have replaced `forward` by a closure over the original.
        fresh = type(source)(source.config).to(device=source.device, dtype=dtype)
        fresh.load_state_dict(merged_state(source))
        return fresh.eval()
