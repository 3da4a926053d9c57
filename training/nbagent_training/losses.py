"""The losses of step-level GRPO over per-token log-probs.

The loss of a batch is Σ_rows Σ_tokens w · ℓ, with w the row's weight; all normalisation is in the weights
(weights.py), so that micro-batches and processes simply add up. With A the row's advantage, r the ratio, c the
correction, d = log π − log π_ref and H the entropy of the token's distribution:

    ℓ = c · policy(r, A) + kl_coef · k(d) − entropy_coef · H

Shapes: K completion tokens of the rows of a micro-batch, R rows; all tensors (K,) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nbagent_training.loss_settings import Loss


@dataclass(slots=True)
class Tokens:
    """What the loss sees of the completion tokens."""

    logp: torch.Tensor
    """log π, with its gradient."""
    entropy: torch.Tensor
    """H, nats; with a gradient if there is an entropy bonus."""
    sampler: torch.Tensor
    """Log-probs as the sampler gave them."""
    old: torch.Tensor
    """The trainer's log-probs when the update began."""
    advantage: torch.Tensor
    weight: torch.Tensor
    row: torch.Tensor
    """Index of the row that a token belongs to."""
    n_rows: int
    """R."""
    reference: torch.Tensor | None = None
    """log π_ref; None without a KL term."""


def ratios(tokens: Tokens, settings: Loss) -> torch.Tensor:
    """r: π / π_old of each token, or of its row the geometric mean, s = exp(mean_t log(π / π_old)).

    Sequence ratio: GSPO, Zheng et al. 2025, arXiv 2507.18071. Its gradient reaches all tokens of the row.
    """
    difference = tokens.logp - (tokens.sampler if settings.old == "sampler" else tokens.old)
    return _ratio(difference, tokens, settings)


def _ratio(difference: torch.Tensor, tokens: Tokens, settings: Loss) -> torch.Tensor:
    """The exponential of each token's difference of log-probs, or of the mean over its row."""
    if settings.ratio == "token":
        return difference.exp()
    zeros = torch.zeros(tokens.n_rows, dtype=difference.dtype, device=difference.device)
    lengths = zeros.index_add(0, tokens.row, torch.ones_like(difference))
    means = zeros.index_add(0, tokens.row, difference) / lengths
    return means.exp()[tokens.row]


def policy_loss(tokens: Tokens, ratio: torch.Tensor, settings: Loss) -> torch.Tensor:
    """The policy's term, before the correction.

    `clip`: −min(r A, clip(r, 1 − low, 1 + high) A) (PPO, Schulman et al. 2017, arXiv 1707.06347; two bounds: DAPO, Yu
    et al. 2025, arXiv 2503.14476; with the sequence ratio: GSPO). `dual_clip` D: for A < 0 at most −D A (dual-clip PPO,
    Ye et al. 2020, arXiv 1912.09729, eq. 5).
    `cispo`: −sg(clip(r, 1 − low, 1 + high)) A log π (MiniMax-M1, 2025, arXiv 2506.13585, eq. 4 and 5; the authors set
    no lower bound).
    """
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    if settings.kind == "cispo":
        return -clipped.detach() * tokens.advantage * tokens.logp
    loss = torch.maximum(-ratio * tokens.advantage, -clipped * tokens.advantage)
    if settings.dual_clip is not None:
        bound = -settings.dual_clip * tokens.advantage
        loss = torch.where(tokens.advantage < 0, torch.minimum(loss, bound), loss)
    return loss


def corrections(tokens: Tokens, settings: Loss) -> torch.Tensor:
    """c, from the ratio π_old / π_sampler, which has no gradient.

    `truncate`: min(ratio, high) (truncated importance sampling, Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training"). `mask`: the ratio inside [low, high], 0 outside (IcePop, Ling Team 2025, arXiv
    2510.18855). Under the sequence ratio, which is of a row, so is this one: s = exp(mean_t log(π_old / π_sampler)).
    """
    if settings.correction == "none":
        return torch.ones_like(tokens.old)
    ratio = _ratio(tokens.old - tokens.sampler, tokens, settings)
    if settings.correction == "truncate":
        return ratio.clamp(max=settings.correction_high)
    return ratio.where((ratio >= settings.correction_low) & (ratio <= settings.correction_high), 0.0)


def divergence(tokens: Tokens, settings: Loss) -> torch.Tensor:
    """k: an estimate of KL(π ‖ π_ref) from the sampled token (Schulman 2020, http://joschu.net/blog/kl-approx.html).

    k1 = d, k2 = d² / 2, k3 = exp(−d) − 1 + d. The gradient of d itself has mean 0; so k1 stands as sg(d) times the
    token's ratio, whose gradient on-policy is d ∇log π, that of the divergence, as k2's is (k3's only where π is near
    π_ref; Liu et al. 2025, arXiv 2510.01555).
    """
    assert tokens.reference is not None
    d = tokens.logp - tokens.reference
    if settings.kl == "k1":
        return (tokens.logp - tokens.old).exp() * d.detach()
    if settings.kl == "k2":
        return d.square() / 2
    return torch.exp(-d) - 1 + d


def loss_and_sums(tokens: Tokens, settings: Loss) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Σ w · ℓ, and the sums over tokens of what is watched; rows of weight 0 are padding and not counted.

    They are named as the log names their means: `entropy`, `ratio_mean`, `clip_low_share` and `clip_high_share` (tokens
    whose ratio is outside a bound on the side where that matters: for `clip` it depends on the sign of A, `cispo` caps
    the ratio for both), `correction_mean`, `logp_gap` and `logp_gap_k3` (sampler against trainer:
    |log π_old − log π_sampler|, and KL(sampler ‖ trainer) by k3), `kl` (by k3); beside them `tokens_trained`, and the
    largest ratio as `ratio_max`.
    """
    ratio, correction = ratios(tokens, settings), corrections(tokens, settings)
    loss = correction * policy_loss(tokens, ratio, settings)
    if tokens.reference is not None:
        loss = loss + settings.kl_coef * divergence(tokens, settings)
    if settings.entropy_coef:
        loss = loss - settings.entropy_coef * tokens.entropy
    with torch.no_grad():
        gap = tokens.old - tokens.sampler
        both = settings.kind == "cispo"
        watched = {
            "entropy": tokens.entropy,
            "ratio_mean": ratio,
            "clip_low_share": (ratio < 1 - settings.clip_low) & (both | (tokens.advantage < 0)),
            "clip_high_share": (ratio > 1 + settings.clip_high) & (both | (tokens.advantage > 0)),
            "correction_mean": correction,
            "logp_gap": gap.abs(),
            "logp_gap_k3": gap.exp() - 1 - gap,
        }
        if tokens.reference is not None:
            d = tokens.logp - tokens.reference
            watched["kl"] = torch.exp(-d) - 1 + d
        real = tokens.weight > 0
        sums = {name: (value.float() * real).sum() for name, value in watched.items()}
        sums["tokens_trained"] = real.sum().float()
        sums["ratio_max"] = (ratio * real).max()
    return (tokens.weight * loss).sum(), sums
