"""Weights of a model that may have LoRA adapters in it, as a model without them would hold them. Needs torch."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def merged_state(model: Any) -> dict[str, torch.Tensor]:
    """The state of a model with its active adapters added to its weights: W + (alpha / rank) · B A.

    Hu et al. 2021, arXiv 2106.09685, section 4.1. The model itself stays as it is; without adapters this is its
    `state_dict`.
    """
    adapted = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
    if not adapted:
        return dict(model.state_dict())
    state = {
        name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name
    }
    for name, layer in adapted.items():
        for adapter in layer.active_adapters:
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(adapter)
    return state
