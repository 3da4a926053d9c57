"""Batched sampling from any Hugging Face causal LM, with a KV cache, exact ids and log-probs. Needs torch.

Rows are left-padded to a common length. Each row draws its noise from a generator of its own, seeded by the request,
so a row's tokens do not depend on which other rows share its batch (beyond floating-point noise).
Shapes: B rows, P padded prompt length, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

ROUND = 16
"""Prompt lengths and batch sizes are rounded up to multiples of this: kernels for few shapes are tuned only once."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that writes new keys and values in place, into room set aside for them.

    The stock layer copies the whole cache at every token.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.is_initialized: bool = False
        self.room = room
        self.used = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append key and value states, each of shape (B, heads, new, dim); returns all of them so far."""
        if not self.is_initialized:
            batch, heads, _, dim = key_states.shape
            self.dtype, self.device = key_states.dtype, key_states.device
            self.keys = key_states.new_empty(batch, heads, self.room, dim)
            self.values = value_states.new_empty(batch, heads, self.room, value_states.shape[-1])
            self.is_initialized = True
        end = self.used + key_states.shape[-2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.used


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion as ids."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    """True when a terminator was sampled (it is the last id)."""


def _round_up(n: int) -> int:
    return -(-n // ROUND) * ROUND


@torch.no_grad()
def sample_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: Sequence[int],
    temperatures: Sequence[float],
    seeds: Sequence[int],
    stop_ids: frozenset[int],
    pad_id: int,
) -> list[Sampled]:
    """Sample one completion for each of B prompts.

    Tokens are drawn by inverting the cumulative distribution at uniform noise, one stream per row; temperature 0 takes
    the likeliest token, whose log-prob is then reported at temperature 1.
    """
    device = next(model.parameters()).device
    n, most = len(prompts), max(max_new_tokens)
    padded = _round_up(max(map(len, prompts)))
    rows = _round_up(n) if n > ROUND // 2 else n
    ids = torch.full((rows, padded), pad_id, dtype=torch.long)
    mask = torch.zeros((rows, padded + most), dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        ids[row, padded - len(prompt) :] = torch.tensor(prompt)
        mask[row, padded - len(prompt) : padded] = True
    mask[n:, padded - 1] = True
    ids, mask = ids.to(device), mask.to(device)
    lengths = mask[:, :padded].sum(1)
    positions = (torch.arange(padded, device=device)[None] - (padded - lengths)[:, None]).clamp(min=0)
    cache = Cache(layers=[RoomyLayer(padded + most) for _ in range(model.config.num_hidden_layers)])
    noise = torch.zeros((rows, most), dtype=torch.float64)
    for row, (seed, count) in enumerate(zip(seeds, max_new_tokens, strict=True)):
        noise[row, :count] = torch.from_numpy(np.random.Generator(np.random.PCG64(seed)).random(count))
    noise = noise.to(device)
    temperature = torch.ones(rows, device=device)
    temperature[:n] = torch.tensor(temperatures, device=device)
    greedy = temperature == 0
    temperature[greedy] = 1.0
    any_greedy = bool(greedy.any())
    out: list[list[int]] = [[] for _ in range(n)]
    logps: list[list[float]] = [[] for _ in range(n)]
    done = [False] * n + [True] * (rows - n)
    index = torch.arange(rows, device=device)
    step = 0
    while True:
        logits = model(
            input_ids=ids,
            attention_mask=mask[:, : padded + step],
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        logp = torch.log_softmax(logits.double() / temperature[index, None], -1)
        token = torch.searchsorted(logp.exp().cumsum(-1), noise[index, step, None]).squeeze(1)
        token = token.clamp(max=logp.shape[-1] - 1)
        if any_greedy:
            token = torch.where(greedy[index], logits.argmax(-1), token)
        chosen = logp.gather(1, token[:, None]).squeeze(1)
        for row, (which, value, lp) in enumerate(zip(index.tolist(), token.tolist(), chosen.tolist(), strict=True)):
            if not done[row]:
                out[which].append(value)
                logps[which].append(lp)
                done[row] = value in stop_ids or len(out[which]) >= max_new_tokens[which]
        alive = done.count(False)
        if not alive:
            break
        keep_rows = _round_up(alive) if alive > ROUND // 2 else ROUND // 2
        if keep_rows < len(done):
            kept = sorted(range(len(done)), key=done.__getitem__)[:keep_rows]
            chosen_rows = torch.tensor(kept, device=device)
            cache.batch_select_indices(chosen_rows)
            index, mask, lengths, token = (
                index[chosen_rows],
                mask[chosen_rows],
                lengths[chosen_rows],
                token[chosen_rows],
            )
            done = [done[row] for row in kept]
        mask[:, padded + step] = True
        ids, positions = token[:, None], (lengths + step)[:, None]
        step += 1
    return [Sampled(tuple(o), tuple(p), bool(o) and o[-1] in stop_ids) for o, p in zip(out, logps, strict=True)]
