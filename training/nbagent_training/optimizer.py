"""Muon for the matrices inside the layers, AdamW for the rest, as one optimizer.

Muon: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale that lets both share a schedule
(`match_rms_adamw`): Liu et al. 2025, arXiv 2502.16982, section 2.2.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from nbagent.errors import UsageError
from nbagent_training.precision import has_bfloat16

BLOCK = re.compile(r"\.\d+\.")
"""In the name of a parameter: it belongs to one of several blocks of the same make."""


class Float32Muon(torch.optim.Muon):
    """`torch.optim.Muon` for machines without bfloat16, in which that one always computes; the states are the same."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, with Nesterov momentum and decoupled weight decay."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                step = orthogonal(p.grad.lerp(momentum, group["momentum"]), group["ns_coefficients"], group["ns_steps"])
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(step, alpha=-group["lr"] * 0.2 * max(p.shape) ** 0.5)  # match_rms_adamw


def orthogonal(matrix: torch.Tensor, coefficients: tuple[float, float, float], steps: int) -> torch.Tensor:
    """About U V^T of a matrix U S V^T, by the Newton-Schulz iteration of Jordan et al.

    Args:
        matrix: of any shape (rows, columns).
        coefficients: of X, (X X^T) X and (X X^T)^2 X.
        steps: iterations.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x: torch.Tensor = wide / wide.norm().clamp(min=1e-7)
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


class MuonAdamW(torch.optim.Optimizer):
    """Steps `torch.optim.Muon` and `torch.optim.AdamW` together; param group 0 is Muon's, group 1 AdamW's.

    Raises:
        UsageError: the model has no matrix that is trained inside a numbered layer.
    """

    def __init__(self, model: torch.nn.Module, muon_lr: float, adamw_lr: float, weight_decay: float = 0.01) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        # Embeddings and output layers, which are not for Muon, stand outside the numbered layers.
        matrices = [p for name, p in named if p.ndim == 2 and BLOCK.search(name)]
        others = [p for name, p in named if not (p.ndim == 2 and BLOCK.search(name))]
        if not matrices:
            raise UsageError(
                f"warm_start: {type(model).__name__} has no matrices in numbered layers, which muon_lr is for; train a "
                "transformer"
            )
        self._muon = (torch.optim.Muon if has_bfloat16() else Float32Muon)(
            matrices, lr=muon_lr, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        self._adamw = torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
        super().__init__([{"params": matrices, "lr": muon_lr}, {"params": others, "lr": adamw_lr}], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update with the learning rates of this optimizer's own param groups."""
        for optimizer, group in zip((self._muon, self._adamw), self.param_groups, strict=True):
            for inner in optimizer.param_groups:
                inner["lr"] = group["lr"]
            optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Both states and the learning rates."""
        return {
            "muon": self._muon.state_dict(),
            "adamw": self._adamw.state_dict(),
            "lrs": [group["lr"] for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        for group, lr in zip(self.param_groups, state_dict["lrs"], strict=True):
            group["lr"] = lr
