"""Normalisation of the loss: what share of it each token has. No torch.

The loss of an update is Σ_tokens weight · ℓ(token). Notation: N attempts in the groups that have a gradient, attempt i
with share s_i in its task's statistics (1 unless it was branched), T_i calls, call t with L_{i,t} completion tokens,
k_{i,t} = 1 for an action and `summary_weight` for a memory (FoldAct, arXiv 2512.22733, for why the few tokens of
memories may need one), L_i = Σ_t k_{i,t} L_{i,t}. A token of call t of attempt i weighs k_{i,t} s_i /

    rollout_token_mean   N · L_i                   every attempt the same, however many turns it took (the default)
    row_mean             N · Σ_t k_{i,t} · L_{i,t} every attempt the same, and in it every call
    token_mean           Σ_i s_i L_i               every token the same, so long attempts count more (DAPO, Yu et al.
                                                   2025, arXiv 2503.14476)
    constant             N · C                     the same whatever else is in the batch, C = `constant_tokens`
                                                   (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783)

A call that several attempts share is one row and weighs the sum of what it weighs in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nbagent_training.tree import Key, Leaf, Tree

if TYPE_CHECKING:  # the recipe knows the models made from scratch, and they know torch
    from nbagent_training.recipe import Grpo


def token_weights(trees: Sequence[Tree], settings: Grpo) -> list[list[dict[Key, float]]]:
    """For each leaf of each tree, the weight of a token of each of its calls; 0 for what is left out of the loss."""
    kinds = {"action": 1.0, "summary": settings.summary_weight}
    count = sum(len(tree.leaves) for tree in trees)

    def length(leaf: Leaf) -> float:
        return sum(kinds[row.kind] * len(row.completion_ids) for rows in leaf.calls.values() for row in rows)

    tokens = sum(tree.share(leaf) * length(leaf) for tree in trees for leaf in tree.leaves)
    found = []
    for tree in trees:
        weights: list[dict[Key, float]] = []
        for leaf in tree.leaves:
            own, calls = length(leaf), sum(kinds[rows[0].kind] for rows in leaf.calls.values())
            weights.append({})
            for key, rows in leaf.calls.items():
                divisor = {
                    "rollout_token_mean": count * own,
                    "row_mean": count * calls * sum(len(row.completion_ids) for row in rows),
                    "token_mean": tokens,
                    "constant": count * (settings.constant_tokens or 0),
                }[settings.normalisation]
                left_out = not divisor or (settings.mask_truncated and leaf.truncated)
                weights[-1][key] = 0.0 if left_out else kinds[rows[0].kind] * tree.share(leaf) / divisor
        found.append(weights)
    return found
