"""Log-probs and entropies at the completion tokens only, without holding (tokens x vocabulary) in memory.

The output layer runs inside the model's own forward pass (so that DDP sees it there), but on the chosen tokens,
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


def drop_nothing(model: Any) -> None:
    """Switch off dropout of every form, for good: passes over the same rows, and KL, compare equal things.

    Evaluation mode would do so too, but Transformers computes activations again in training mode only.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            # Attention and older models call the function, with a probability that they hold themselves.
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)


def check_head(model: Any) -> None:
    """Refuse adapters on the output layer: `scoring` reads the layer's own weights, past them.

    Raises:
        UsageError: there are some, or some on an embedding that is the output layer too.
    """
    if not hasattr(model, "peft_config"):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head.weight is embedding.weight
    if adapted := [
        layer for layer in (head, embedding) if isinstance(layer, BaseTunerLayer) and (layer is head or tied)
    ]:
        name = next(name for name, module in model.named_modules() if module is adapted[0])
        raise UsageError(
            f"lora.targets: {name.rpartition('.')[2]} is the output layer, which the trainer computes without an "
            "adapter; leave it out"
        )


def check_lengths(model: Any, longest: int | None = None, *, sampled: bool = True) -> None:
    """Refuse a model whose attention depends on how long a row is, or what lies beside it.

    Args:
        model: a causal LM.
        longest: tokens that a row may have; None leaves windows to the rows that come.
        sampled: rows are yet to be made by a sampler, which may be told to make none so long.

    Raises:
        UsageError: its positions are scaled by the longest row of a sequence, or a row may exceed its window.
    """
    config = model.config.get_text_config()
    positions = getattr(config, "rope_parameters", None) or {}
    for table in (positions, *(inner for inner in positions.values() if isinstance(inner, dict))):
        if table.get("rope_type") in ("dynamic", "longrope"):
            raise UsageError(
                f"{type(model).__name__}: its positions ({table['rope_type']}) change with the longest row beside "
                "them; set rope_type in its config.json to one that does not, such as yarn"
            )
    kinds = getattr(config, "layer_types", None)
    limited = not kinds or any("sliding" in kind or "chunked" in kind for kind in kinds)
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    window = min((size for size in windows if size), default=None) if limited else None
    if window is not None and longest is not None and window < longest:
        have = "may have" if sampled else "have"
        shorter = "sample with --max-model-len" if sampled else "with prompts and answers of"
        raise UsageError(
            f"{type(model).__name__}: attends within a window of {window} tokens, which the trainer does not do, and "
            f"rows {have} {longest}; train a model with full attention, or {shorter} {window}"
        )


@torch.no_grad()
def check_scores(model: Any) -> None:
    """Refuse a model whose log-probs by `scoring` are not those that it has by itself.

    The model by itself attends by Transformers' plain implementation (`eager`), each row alone and in evaluation mode;
    the trainer by its own, rows packed and in training mode. Logits are scaled up to a spread of 1, so that a model
    with small weights, whose tokens are all alike to it, shows a difference too.

    Raises:
        UsageError: it does more with its logits than the output layer, attends in a way of its own, has adapters on the
            output layer, positions that depend on other rows, or something random in training.
    """
    from nbagent_training.attention import forest_of
    from nbagent_training.packing import pack

    check_head(model)
    check_lengths(model)
    device, vocabulary = next(model.parameters()).device, model.get_output_embeddings().weight.shape[0]
    ids = [1 + 7 * i % (vocabulary - 1) for i in range(20)]
    rows = [(ids[:8], ids[8:13]), (ids[:6], ids[13:20]), (ids[:10], ids[18:20])]
    row = pack(rows, completions=True)
    where = torch.tensor([place for path in row.paths for place in path[:-1]], device=device)
    targets = torch.tensor([token for _, completion in rows for token in completion], device=device)
    training, attention = model.training, model.config._attn_implementation
    try:
        model.eval()
        model.config._attn_implementation = "eager"
        alone = [model(torch.tensor([[*p, *c]], device=device)).logits[0, len(p) - 1 : -1] for p, c in rows]
        model.config._attn_implementation = attention
        own = torch.cat(alone).float()
        spread = min(1.0, max(1e-6, own.std(-1).mean().item()))
        model.train()
        with scoring(model, where, targets, spread):
            got = model(
                input_ids=torch.tensor([row.ids], device=device),
                attention_mask=unseen(device),
                position_ids=torch.tensor([row.positions], device=device),
                use_cache=False,
                forest=forest_of(row, device),
            ).logits[:, 0]
    finally:
        model.config._attn_implementation = attention
        model.train(training)
    wanted = (own / spread).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    off = (got.float() - wanted).abs()
    # In half precision a single logit may be off by a tenth, by rounding alone.
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    if not (off.max() < 1e-3 if exact else off.mean() < 0.1):
        raise UsageError(
            f"{type(model).__name__}: its log-probs cannot be computed at chosen tokens only (it scales or caps its "
            "logits, attends in a way of its own, or is random in training); train a model of the Llama or Qwen "
            "families"
        )


def unseen(device: torch.device) -> torch.Tensor:
    """A mask that Transformers passes on as it is and attention over a forest does not read."""
    return torch.zeros(1, 1, 1, 1, device=device)
