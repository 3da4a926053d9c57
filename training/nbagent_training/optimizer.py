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

BLOCK = re.compile(r"\.\d+\.")
"""In the name of a parameter: it belongs to one of several blocks of the same make."""


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
        self._muon = torch.optim.Muon(
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
