"""LoRA adapters in a model (peft)."""

from __future__ import annotations

import warnings
from typing import Any

from nbagent.errors import UsageError
from nbagent_training.loss_settings import Lora


def add_lora(model: Any, settings: Lora, seed: int = 0) -> Any:
    """The model with new adapters, which alone are trained; the model itself if `settings.rank` is 0.

    The adapters lie inside the given model, so whoever samples from it samples from the adapted weights;
    `merge_and_unload()` of what is returned leaves it as a plain model with the adapters in its weights. They begin as
    `seed` says, whatever was drawn before: a run that was killed before its first checkpoint begins as it did.

    Raises:
        UsageError: no layer of the model has a name among the targets, or the output layer has.
    """
    if not settings.rank:
        return model
    import torch
    from peft import LoraConfig, get_peft_model

    from nbagent_training.scores import check_head

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=list(settings.targets) or "all-linear",
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            # What peft warns of, an adapter on a tied output layer, is refused below.
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`")
            torch.manual_seed(seed)
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise UsageError(f"lora.targets: {error}") from error
    check_head(adapted)
    return adapted
