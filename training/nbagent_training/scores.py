"""Log-probs and entropies at the completion tokens only, without holding (tokens x vocabulary) in memory.

The output layer runs inside the model's own forward pass (so that DDP and FSDP see it there), but on the chosen tokens,
a chunk at a time; where there is more than one chunk, each is computed again in the backward pass. Shapes: K chosen
tokens, V entries of the vocabulary, C hidden size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from nbagent.errors import UsageError

CELLS = 1 << 25
"""Logits at a time: 128 MiB in float32."""


def token_scores(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    temperature: float,
    *,
    entropy_gradient: bool = False,
    cells: int = CELLS,
) -> torch.Tensor:
    """(K, 2), float32 at least: log softmax(logits / temperature) at the targets, and the entropy in nats.

    Args:
        hidden: (K, C).
        weight: (V, C) of the output layer.
        bias: (V,) or None.
        targets: (K,).
        temperature: that the sampler sampled with.
        entropy_gradient: give the entropy a gradient.
        cells: logits computed at a time.
    """

    def scores(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = linear(part, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if temperature != 1:
            logits = logits / temperature
        total = logits.logsumexp(-1)
        logp = logits.gather(1, wanted[:, None])[:, 0] - total
        with nullcontext() if entropy_gradient else torch.no_grad():
            probabilities = (logits - total[:, None]).exp()
            entropy = total - (probabilities * logits).sum(-1)
        return torch.stack([logp, entropy], 1)

    size = max(1, cells // weight.shape[0])
    if len(targets) <= size:
        return scores(hidden, targets)
    parts = zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    return torch.cat([checkpoint(scores, part, wanted, use_reentrant=False) for part, wanted in parts])


@contextmanager
def scoring(
    model: Any, where: torch.Tensor, targets: torch.Tensor, temperature: float, *, entropy_gradient: bool = False
) -> Iterator[None]:
    """Inside, `model(...).logits` in this thread is `token_scores` (K, 2) at the flat places `where` (K,)."""
    head = model.get_output_embeddings()
    logits, owner = head.forward, threading.get_ident()

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if threading.get_ident() != owner:
            return logits(hidden)  # type: ignore[no-any-return]
        chosen = hidden.flatten(0, 1)[where]
        return token_scores(chosen, head.weight, head.bias, targets, temperature, entropy_gradient=entropy_gradient)

    head.forward = forward
    try:
        yield
    finally:
        del head.forward


@torch.no_grad()
def check_scores(model: Any) -> None:
    """Refuse a model that does more with its logits than the output layer, or attends in a way of its own.

    Raises:
        UsageError: log-probs by `scoring` are not those of the model's own logits.
    """
    from nbagent_training.attention import forest_of
    from nbagent_training.packing import pack

    device = next(model.parameters()).device
    row = pack([((1, 2, 3), (4,)), ((1, 2), (5, 3))], completions=True)
    where = torch.tensor([place for path in row.paths for place in path[:-1]], device=device)
    targets = torch.tensor([4, 5, 3], device=device)
    with scoring(model, where, targets, 1.0):
        got = model(
            input_ids=torch.tensor([row.ids], device=device),
            attention_mask=unseen(device),
            position_ids=torch.tensor([row.positions], device=device),
            use_cache=False,
            forest=forest_of(row, device),
        ).logits[:, 0]
    own = [model(torch.tensor([line], device=device)).logits[0].to(got.dtype) for line in ([1, 2, 3], [1, 2, 5])]
    picked = torch.stack([own[0][2], own[1][1], own[1][2]]).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    if not torch.allclose(got, picked, atol=1e-3 if exact else 0.1):
        raise UsageError(
            f"{type(model).__name__}: its log-probs cannot be computed at chosen tokens only (it scales or caps its "
            "logits, or its attention is of a kind of its own); train a model of the Llama or Qwen families"
        )


def unseen(device: torch.device) -> torch.Tensor:
    """A mask that Transformers passes on as it is and attention over a forest does not read."""
    return torch.zeros(1, 1, 1, 1, device=device)
