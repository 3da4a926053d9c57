"""Settings of on-policy distillation. No torch."""

from __future__ import annotations

from nbagent.recipe import Recipe

SERVER = "vllm:"


class Distill(Recipe):
    """Learn from a teacher's log-probs of what the model itself writes, in place of rewards (distill.py)."""

    teacher: str = ""
    """A folder of a model with the same tokenizer, or `vllm:URL` of a vLLM server of one, which must take a token more
    than the longest row; empty: GRPO on rewards."""
