"""Settings of the sampler: who answers in rollouts, and how far it may run ahead of the trainer. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nbagent.recipe import Recipe


class Sampler(Recipe):
    """Who answers in rollouts and in scoring."""

    engine: Literal["hf", "vllm"] = "hf"
    """`hf`: the model in this process. `vllm`: a server that is given the weights after each update."""
    python: str = ""
    """Python of an environment with vLLM; empty: NBAGENT_VLLM_PYTHON, this one, or .venv-vllm (`make vllm`)."""
    url: str = ""
    """A running server instead of one of the run's own: of the same model, on this machine's files, for this run alone,
    started with VLLM_SERVER_DEV_MODE=1 and --logprobs-mode processed_logprobs; with `[lora]` also with
    VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, --enable-lora, --max-lora-rank and --max-loras 2, of the very model that the
    adapters belong to: `model.folder`, or after a warm start the run's checkpoints/warm. Another is refused where the
    server names a folder on this machine; where it names none, other weights of the same tokenizer are not noticed.
    Where its owner starts it again, it is given the newest weights again."""
    devices: str = ""
    """GPUs of the run's own server (CUDA_VISIBLE_DEVICES); empty: those of this process."""
    arguments: tuple[str, ...] = ()
    """More of vLLM's own arguments, such as `--gpu-memory-utilization 0.4` where it shares a GPU with the trainer."""
    weights: Literal["files", "sent"] = "files"
    """How new weights come to the server. `files`: written to the run's folder and loaded from there. `sent`: by vLLM's
    endpoints for weight transfer, with NCCL to a server on GPUs of its own, here or on another machine (`url`), or with
    Gloo to the run's own server without a GPU. Adapters always come by files."""
    staleness: int = Field(default=0, ge=0)
    """Updates that rollouts may run ahead. 0: rollouts and updates take turns. With n, rollouts of an update may begin
    with the weights of n updates before; each model call records which weights answered it."""

    @model_validator(mode="after")
    def _together(self) -> Sampler:
        if self.engine == "hf" and (
            self.python or self.url or self.devices or self.arguments or self.weights == "sent"
        ):
            raise ValueError('python, url, devices, arguments and weights are for engine = "vllm"')
        if self.url and (self.python or self.devices or self.arguments):
            raise ValueError("url names a running server; python, devices and arguments are for one of the run's own")
        return self
