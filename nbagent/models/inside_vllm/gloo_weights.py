"""Weights by Gloo: what a vLLM server without a GPU receives new ones with. Run by the server's own interpreter.

vLLM 0.31 has NCCL and CUDA's shared memory, both for GPUs. This is one more engine behind the same endpoints, so that
all but the line itself is one way on every machine. vLLM imports it as a worker extension, before a worker asks for its
engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from gloo_group import meet
from vllm.distributed.weight_transfer import WeightTransferEngine, WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload


@dataclass
class Meeting:
    """Where the group meets: a file that all members reach, how many they are, and how long one waits for another."""

    store: str
    world_size: int
    timeout_s: float


@dataclass
class Contents:
    """What comes, in that order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeights(WeightTransferEngine):  # type: ignore[misc]
    """The worker's end; the trainer has rank 0, the workers those after it."""

    init_info_cls = Meeting
    update_info_cls = Contents

    def init_transfer_engine(self, init_info: Meeting) -> None:
        """Meet the trainer."""
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.group = meet(init_info.store, rank, init_info.world_size, init_info.timeout_s)

    def start_weight_update(self) -> None:
        """Weights in a checkpoint's form are about to come."""
        initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        """All have come."""
        finalize_layerwise_reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load. The base class waits for an accelerator afterwards, and here is none."""
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: Contents) -> None:
        """One tensor after the other."""
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast(weight, 0).wait()
            self.model.load_weights([(name, weight)])

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


WeightTransferEngineFactory.register_engine("gloo", GlooWeights)


class Worker:
    """What vLLM adds to its workers: nothing; to name it is to have this file imported in time."""
