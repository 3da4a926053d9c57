"""Attention in training: over tree rows segment by segment, and over short rows on a CPU.

A tree row (packing.py) attends segment by segment: a segment's queries see the keys of its ancestors whole and its own
causally, so nothing is computed for pairs that do not see each other and no (T, T) mask is made. On a GPU the same is
to be had as one FlexAttention kernel (Dong et al. 2024, arXiv 2412.05496).

On a CPU in bfloat16 plain matrix products, query heads of a group folded into one, take less time than PyTorch's fused
kernel, which serves float32 and GPUs (benchmarks/speed/attention.py).
Shapes: B rows, H query heads, G key-value heads, T tokens, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from nbagent.errors import UsageError
from nbagent_training.loss_settings import Kernel

if TYPE_CHECKING:
    from nbagent_training.packing import TreeRow

HIDDEN = -1e4
"""Added to the score of what is not seen: exp(-1e4) is 0."""
NAME = "nbagent"
PASSED_ON = frozenset({"position_ids", "cache_position", "use_cache", "num_items_in_batch", "output_router_logits"})
"""What models hand to their attention that attention does not read."""
BLOCK = 512
"""Queries at a time on a CPU: above the diagonal of a long segment little is computed in vain."""


def dense_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v, in the signature of Transformers' attention functions.

    Args:
        module: unused.
        query: (B, H, T, D).
        key: (B, G, S, D), with H a multiple of G.
        value: (B, G, S, D).
        attention_mask: (B, 1, T, S), added to the scores; None for none.
        scaling: of the scores.
        dropout: share of the weights that are set to 0.

    Returns:
        (B, T, H, D), and None in the place of the weights.
    """
    rows, heads, length, width = query.shape
    groups, seen = key.shape[1], key.shape[2]
    folded = (query * scaling).reshape(rows * groups, heads // groups * length, width)
    scores = torch.bmm(folded, key.reshape(rows * groups, seen, width).transpose(1, 2))
    scores = scores.view(rows, groups, heads // groups, length, seen)
    if attention_mask is not None:
        # Bounded: in bfloat16 the mask's least number is minus infinity; a row of padding, all masked, would be nan.
        scores = scores + attention_mask[:, :, None].clamp(min=HIDDEN).to(scores.dtype)
    weights = torch.softmax(scores, -1).to(value.dtype).view(rows * groups, heads // groups * length, seen)
    if dropout:
        weights = torch.nn.functional.dropout(weights, dropout)
    out = torch.bmm(weights, value.reshape(rows * groups, seen, width))
    return out.view(rows, heads, length, width).transpose(1, 2).contiguous(), None


@dataclass(frozen=True, slots=True)
class Forest:
    """How the tokens of one tree row attend; made once for all layers."""

    lengths: list[int]
    """Tokens of each piece, in order."""
    lineages: tuple[tuple[int, ...], ...]
    """For each piece its ancestors and itself."""
    masks: tuple[torch.Tensor | None, ...]
    """For each piece (1, 1, queries, keys), True where seen; None for a root, which is plainly causal."""
    longest: int
    """Tokens of the longest of the rows that the tree row holds."""
    blocks: Any = None
    """FlexAttention's block mask; None: attend piece by piece."""


def forest_of(row: TreeRow, device: torch.device, kernel: Kernel = "sdpa") -> Forest:
    """The attention of a tree row on a device."""
    longest = max(row.positions, default=-1) + 1
    if kernel == "flex":
        return Forest([], (), (), longest, _block_mask(row, device))
    lengths: list[int] = []
    lineages: list[tuple[int, ...]] = []
    last: list[int] = []
    for segment in row.segments:
        size = segment.end - segment.start
        block = BLOCK if device.type == "cpu" else size
        piece = last[segment.parent] if segment.parent >= 0 else -1
        for start in range(0, size, block):
            lineages.append((*(lineages[piece] if piece >= 0 else ()), len(lengths)))
            piece = len(lengths)
            lengths.append(min(block, size - start))
        last.append(piece)
    masks = []
    for line in lineages:
        own, seen = lengths[line[-1]], sum(lengths[p] for p in line)
        whole = torch.ones(1, 1, own, seen, dtype=torch.bool, device=device)
        masks.append(whole.tril(seen - own) if len(line) > 1 else None)
    return Forest(lengths, tuple(lineages), tuple(masks), longest)


def forest_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    forest: Forest | None = None,
    sliding_window: int | None = None,
    dropout: float = 0.0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """As `dense_attention`; over one tree row (B = 1) where `forest` is given, and then without a mask.

    Raises:
        UsageError: the layer asks for more than that: capped scores, attention sinks, a window shorter than a row.
    """
    strange = [
        name for name, given in more.items() if name not in PASSED_ON and given is not None and given is not False
    ]
    strange += ["dropout"] if dropout and forest is not None else []
    if strange:
        raise UsageError(
            f"{type(module).__name__} asks for {', '.join(strange)} in its attention, which the trainer does not "
            "compute; train a model of the Llama or Qwen families"
        )
    if forest is None:
        if query.device.type == "cpu":
            return dense_attention(module, query, key, value, attention_mask, scaling, dropout)
        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling)
        return out, None
    if sliding_window and sliding_window < forest.longest:
        raise UsageError(
            f"the model attends within a window of {sliding_window} tokens, which the trainer does not do, and a row "
            f"has {forest.longest}; train a model with full attention, or with a window that no row exceeds"
        )
    # Under autocast normed queries and keys are still float32.
    query, key = query.to(value.dtype), key.to(value.dtype)
    if forest.blocks is not None:
        flex = _flex(query.device.type)
        out = flex(query, key, value, block_mask=forest.blocks, scale=scaling, enable_gqa=True)
        return out.transpose(1, 2), None
    queries, keys, values = (torch.split(x, forest.lengths, 2) for x in (query, key, value))
    pieces = [
        _attend(q, torch.cat([keys[p] for p in line], 2), torch.cat([values[p] for p in line], 2), mask, scaling)
        for q, line, mask in zip(queries, forest.lineages, forest.masks, strict=True)
    ]
    return torch.cat(pieces, 1), None


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """(1, T, H, D) of one piece, causal where `seen` is None."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        if seen is None:
            seen = torch.ones(1, 1, query.shape[2], key.shape[2], dtype=torch.bool).tril()
        added = torch.zeros(seen.shape, dtype=query.dtype).masked_fill_(~seen, HIDDEN)
        return dense_attention(None, query, key, value, added, scaling)[0]
    share = query.shape[1] // key.shape[1]
    if seen is not None and share > 1:
        # The fused kernels take grouped heads only without a mask.
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    grouped = query.shape[1] != key.shape[1]
    out = scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=seen is None, scale=scaling, enable_gqa=grouped
    )
    return out.transpose(1, 2)


def _block_mask(row: TreeRow, device: torch.device) -> Any:
    """FlexAttention's mask of a tree row: token q sees token k if k <= q < (end of k's descendants)."""
    from torch.nn.attention.flex_attention import create_block_mask

    from nbagent_training.packing import last_descendants

    last = last_descendants(row).to(device)

    def sees(batch: Any, head: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (q < last[k])

    return create_block_mask(sees, None, None, len(row), len(row), device=device)


@cache
def _flex(device: str) -> Any:
    """FlexAttention, compiled on a GPU; a CPU runs it as it stands, forward only."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention) if device == "cuda" else flex_attention


def use_own_attention(model: Any) -> None:
    """Let a model attend by `forest_attention`."""
    gpu = next(model.parameters()).device.type != "cpu"
    AttentionInterface.register(NAME, forest_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask if gpu else eager_mask)
    model.config._attn_implementation = NAME
