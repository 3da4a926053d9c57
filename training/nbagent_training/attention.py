"""Attention for short rows on a CPU: plain matrix products, query heads of a group folded into one.

PyTorch's fused CPU kernel spends more on rows of a few hundred tokens than the products do: with it, forward and
backward of the demo's model take 1.2 times the CPU seconds (benchmarks/speed/attention.py).
Shapes: B rows, H query heads, G key-value heads, T tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

HIDDEN = -1e4
"""Added to the score of what is not seen: exp(-1e4) is 0."""
NAME = "nbagent_dense"


def dense_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(q kᵀ · scaling + mask) v, in the signature of Transformers' attention functions.

    Args:
        module: unused.
        query: (B, H, T, D).
        key: (B, G, S, D), with H a multiple of G.
        value: (B, G, S, D).
        attention_mask: (B, 1, T, S), added to the scores; None for none.
        scaling: of the scores.
        more: unused.

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
    out = torch.bmm(weights, value.reshape(rows * groups, seen, width))
    return out.view(rows, heads, length, width).transpose(1, 2).contiguous(), None


def use_dense_attention(model: Any) -> None:
    """Let a model on the CPU attend this way; on other devices it stays as it is."""
    if next(model.parameters()).device.type != "cpu":
        return
    AttentionInterface.register(NAME, dense_attention)
    AttentionMaskInterface.register(NAME, eager_mask)
    model.config._attn_implementation = NAME
