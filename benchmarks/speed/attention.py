"""Attention of the demo's model in training: ours for short rows on a CPU against PyTorch's fused kernel.

Prints CPU seconds (one thread) of a forward and backward pass over tree rows as the warm start makes them, the median
of several, and the ratio. Run it as `python benchmarks/speed/attention.py`.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch.nn import functional

from nbagent_training.attention import use_own_attention
from nbagent_training.packing import TreeRow, collate, pack
from nbagent_training.precision import has_bfloat16
from nbagent_training.scratch import Size, make_model, make_tokenizer

ROWS, ROUNDS = 7, 9
TEXT = "import pandas as pd\ndf=pd.read_csv('counts.csv',index_col=0)\nprint(list(df))\n"


def tree(generator: torch.Generator) -> TreeRow:
    """A demonstration: a question of 45 tokens, a cell of 35, its output of 30, an analysis of 45, an answer of 8."""

    def ids(n: int) -> list[int]:
        return torch.randint(5, 250, (n,), generator=generator).tolist()

    question, cell, second = ids(45), ids(35), ids(45)
    return pack([([*question, 3], cell), ([*question, *cell, *ids(30), 3], second), ([*question, *second, 3], ids(8))])


def step(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """CPU seconds of one forward and backward pass under bf16 autocast, in fp32 where the machine has none."""
    begin = time.process_time()
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16()):
        logits = model(**inputs, use_cache=False).logits
    functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), batch["labels"][:, 1:].flatten()).backward()
    return time.process_time() - begin


def main() -> None:
    """Measure both in turn, so that a noisy machine bears on both alike."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = [tree(generator) for _ in range(ROWS)]
    tokenizer = make_tokenizer([TEXT] * 20, 320)
    fused, dense = (make_model(tokenizer, Size(), 0) for _ in range(2))
    use_own_attention(dense)
    batch = collate(rows, 0, ROWS, -(-max(map(len, rows)) // 32) * 32)
    seconds: dict[str, list[float]] = {"fused": [], "dense": []}
    for _ in range(ROUNDS):
        seconds["fused"].append(step(fused, batch))
        seconds["dense"].append(step(dense, batch))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"{batch['input_ids'].numel()} tokens in {ROWS} tree rows, forward and backward, CPU seconds, one thread")
    for name, value in medians.items():
        print(f"  {name}: {value:.3f}")
    print(f"  fused / dense: {medians['fused'] / medians['dense']:.2f}")


if __name__ == "__main__":
    main()
