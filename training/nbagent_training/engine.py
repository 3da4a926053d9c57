"""Who answers in a run's rollouts and scoring: the model in this process, or a vLLM server that gets its weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from nbagent.errors import UsageError
from nbagent.models.hf import HFModel
from nbagent.models.vllm import VLLMModel
from nbagent.models.vllm_server import VLLMServer, find_interpreter
from nbagent.rollouts import Rollouts
from nbagent_training.sampler_settings import Sampler
from nbagent_training.served_base import check_base
from nbagent_training.weight_lines import GlooLine, NcclLine, Weights

TrainedSampler = HFModel | VLLMModel
"""A model that takes the trainer's weights by `refresh`."""

FOLDER = "sampler"
"""In the run folder: weights on their way to the server, and its log."""


class Engine:
    """Opens the sampler that a recipe names. Close it at the end."""

    def __init__(
        self,
        settings: Sampler,
        place: Path,
        rollouts: Rollouts,
        *,
        bf16: bool,
        starting: Callable[[str], AbstractContextManager[Any]],
    ) -> None:
        """Nothing is started before the first `of`.

        Args:
            settings: the recipe's table.
            place: the run folder.
            rollouts: whose loop the sampler is asked on.
            bf16: sample in bfloat16.
            starting: shows that a server is being started.

        Raises:
            UsageError: vLLM is wanted and not there, or weights are to be sent to a server on the trainer's own GPU.
        """
        self._settings, self._place, self._rollouts = settings, place / FOLDER, rollouts
        self._bf16, self._starting = bf16, starting
        own = settings.engine == "vllm" and not settings.url
        self._interpreter = find_interpreter(settings.python) if own else None
        self._server: VLLMServer | None = None
        self._sampler: VLLMModel | None = None
        self._base = ""
        self._weights = self._sender() if settings.weights == "sent" else None

    def _sender(self) -> Weights:
        settings, bf16 = self._settings, torch.bfloat16 if self._bf16 else torch.float32
        if self._interpreter is not None and self._interpreter.cpu:
            return Weights(GlooLine(self._place), bf16)
        if not settings.url and not settings.devices:
            raise UsageError(
                'sampler.weights: "sent" goes from GPU to GPU; set sampler.devices to one that does not train'
            )
        return Weights(NcclLine(), bf16)

    def of(self, model: Any, tokenizer: Any, name: str) -> TrainedSampler:
        """A sampler of this model, which follows it by `refresh`; samplers made before are not used any more.

        Args:
            model: a causal LM, or one with LoRA adapters.
            tokenizer: its tokenizer.
            name: for tables.

        Raises:
            UsageError: the server at the URL has another model than the adapters belong to.
            ModelError: the server does not answer, or cannot be started.
        """
        settings = self._settings
        adapted = hasattr(model, "peft_config")
        if settings.engine == "hf":
            # A score before any training comes before a trainer could have moved it.
            model.to("cuda" if torch.cuda.is_available() else "cpu")
            return HFModel(
                model.get_base_model() if adapted else model,
                tokenizer,
                name,
                sampling_dtype=torch.bfloat16 if self._bf16 else None,
                lockstep=torch.get_num_threads() == 1,
                copies=settings.staleness > 0,
            )
        base = str(model.get_base_model().name_or_path) if adapted else ""
        if self._sampler is None or base != self._base:
            self.close()
            self._base = base
            rank = max(config.r for config in model.peft_config.values()) if adapted else 0
            with self._starting("vLLM"):
                self._sampler = self._open(model, tokenizer, rank)
        if self._weights is not None:
            self._weights.model = model
        self._sampler.hold(name, model.save_pretrained)
        return self._sampler

    def _open(self, model: Any, tokenizer: Any, rank: int) -> VLLMModel:
        if self._interpreter is None:
            if self._base:
                check_base(self._settings.url, Path(self._base), tokenizer)
            return VLLMModel(tokenizer, "", url=self._settings.url, place=self._place, sender=self._weights)
        start = Path(self._base) if self._base else self._place / "weights-start"
        if not self._base:
            shutil.rmtree(start, ignore_errors=True)
            model.save_pretrained(start)
        tokenizer.save_pretrained(self._place / "tokenizer")
        self._server = VLLMServer(
            self._interpreter,
            start,
            tokenizer=self._place / "tokenizer",
            log=self._place / "vllm.log",
            dtype="bfloat16" if self._bf16 else "float32",
            lora_rank=rank,
            swaps=not rank,
            transfer=self._weights.backend if self._weights is not None else "",
            devices=self._settings.devices,
            arguments=self._settings.arguments,
        )
        if self._weights is not None:
            self._weights.duplicates = self._server.untied
        return VLLMModel(tokenizer, "", server=self._server, place=self._place, sender=self._weights)

    def close(self) -> None:
        """End the server, and remove the weights that it was given."""
        if self._sampler is not None:
            self._rollouts.call(self._sampler.close())
        elif self._server is not None:
            self._server.close()
        self._server = None
        for weights in self._place.glob("weights-*"):
            shutil.rmtree(weights, ignore_errors=True)
        self._sampler = None
