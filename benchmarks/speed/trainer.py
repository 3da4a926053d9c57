"""Tokens a second of an update: StepGRPOTrainer beside TRL's stock GRPOTrainer, same model, same samples, one run.

Two kinds of samples: groups of 8 that share a prompt of 2,000 tokens, and rows of mixed length that share nothing.
Tokens are those of the rows, counted the same for both; what is computed once for many rows, or padded, is each
trainer's own affair. On a CPU, where one thread's seconds are counted, the model is a small Qwen3 with random weights;
on a GPU it is one of 0.6B and one of 4B parameters, and the share of the GPU's bf16 peak that the computed tokens need
(model FLOP utilisation) is printed too. At 4B both trainers compute activations again in the backward pass: kept, they
take some 170 kB a token and layer, 74 GB for the 12,096 tokens of the shared rows. FILE is written after each size.

    python benchmarks/speed/trainer.py [--rounds 2] [--fp32] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainerCallback
from transformers.utils import logging as transformers_logging
from trl import GRPOConfig, GRPOTrainer

from nbagent_training.groups import Batch, TrainingRow
from nbagent_training.microbatches import divide, micro_batch
from nbagent_training.precision import has_bfloat16
from nbagent_training.scratch import make_tokenizer
from nbagent_training.trainer import StepGRPOTrainer, settings

GROUP = 8
STEPS = 1
"""Measured updates a round, after one that is not."""
TARGETS = {"shared": 3.0, "mixed": 1.2}
SIZES = {
    "small": {"hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2}
    | {"head_dim": 32, "intermediate_size": 640, "vocab_size": 4096},
    "0.6B": {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
    | {"head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936},
    "4B": {"hidden_size": 2560, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8}
    | {"head_dim": 128, "intermediate_size": 9728, "vocab_size": 151936},
}
RECOMPUTED = ("4B",)
"""Sizes whose activations do not fit into 80 GB beside weights, gradients and AdamW's moments."""
PEAKS = {"H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12}
PEAKS |= {"A100": 312e12, "L40S": 362e12}
"""Dense bf16 operations a second by the maker's data sheets; the first whose words are in the device's name. A plain
H100 is the SXM one, which calls itself "H100 80GB HBM3"."""


def make_model(size: str) -> Any:
    """A Qwen3 with random weights, bf16 on a GPU."""
    torch.manual_seed(0)
    config = Qwen3Config(**SIZES[size], max_position_embeddings=8192, tie_word_embeddings=True, pad_token_id=0)
    if torch.cuda.is_available():
        with torch.device("cuda"):
            return Qwen3ForCausalLM(config).to(torch.bfloat16)
    return Qwen3ForCausalLM(config)


def shared_rows(n_groups: int, vocabulary: int) -> list[TrainingRow]:
    """Groups of 8 rows: a prompt of 2,000 tokens, 128 tokens of completion each."""
    rng = random.Random(0)
    rows = []
    for _ in range(n_groups):
        prompt = _ids(rng, 2000, vocabulary)
        rows += [_row(rng, prompt, 128, vocabulary) for _ in range(GROUP)]
    return rows


def mixed_rows(n: int, vocabulary: int) -> list[TrainingRow]:
    """Prompts of 64 to 2,000 tokens and completions of 16 to 256, lengths spread evenly over their logarithm."""
    rng = random.Random(1)
    return [
        _row(rng, _ids(rng, _length(rng, 64, 2000), vocabulary), _length(rng, 16, 256), vocabulary) for _ in range(n)
    ]


def _length(rng: random.Random, low: int, high: int) -> int:
    return round(low * (high / low) ** rng.random())


def _ids(rng: random.Random, n: int, vocabulary: int) -> tuple[int, ...]:
    return tuple(rng.randrange(300, vocabulary) for _ in range(n))


def _row(rng: random.Random, prompt: tuple[int, ...], n: int, vocabulary: int) -> TrainingRow:
    return TrainingRow(prompt, _ids(rng, n, vocabulary), (-8.0,) * n, rng.gauss(0, 1), 1e-4)


class Clock(TrainerCallback):  # type: ignore[misc]
    """Seconds of each update, its first included."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self._begin = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.seconds.append(_now() - self._begin)


def _now() -> float:
    """Seconds on a GPU, CPU seconds of this process elsewhere: those mind other work on the machine less."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def peak_of(device: str) -> float | None:
    """Operations a second of a device by its name; None where it is not known, or only a part of one (MIG)."""
    return None if "MIG" in device else next((value for key, value in PEAKS.items() if key in device), None)


def ours(
    model: Any, tokenizer: Any, rows: Sequence[TrainingRow], budget: int, recompute: bool, args: Any
) -> list[float]:
    """Seconds of the measured updates of StepGRPOTrainer."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        fixed: dict[str, Any] = {"save_strategy": "no", "gradient_checkpointing": recompute}
        arguments = settings(Path(folder), steps=STEPS + 1, seed=0, bf16=not args.fp32 and has_bfloat16(), **fixed)
        make_batch = lambda update: Batch(list(rows), {})  # noqa: E731
        more: dict[str, Any] = {"token_budget": budget, "kernel": args.kernel, "callbacks": [clock]}
        StepGRPOTrainer(model, tokenizer, arguments, make_batch, **more).train()
    return clock.seconds[1:]


def stock(
    model: Any, tokenizer: Any, rows: Sequence[TrainingRow], at_once: int, recompute: bool, bf16: bool
) -> list[float]:
    """Seconds of the measured updates of TRL's GRPOTrainer, `at_once` rows a micro-batch; the rows are its rollouts."""
    clock = Clock()
    model.set_attn_implementation("sdpa")

    def rollouts(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        assert len(prompts) == len(rows)
        return {
            "prompt_ids": [list(row.prompt_ids) for row in rows],
            "completion_ids": [list(row.completion_ids) for row in rows],
            "logprobs": [list(row.logprobs) for row in rows],
        }

    def rewards(completions: list[Any], **more: Any) -> list[float]:
        return [row.advantage for row in rows]

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=STEPS + 1,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=len(rows) // at_once,
            num_generations=GROUP,
            max_completion_length=256,
            gradient_checkpointing=recompute,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=STEPS + 1,
        )
        data = Dataset.from_dict({"prompt": [str(i) for i in range(len(rows) * (STEPS + 2))]})
        GRPOTrainer(
            model=model,
            reward_funcs=[rewards],
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
            rollout_func=rollouts,
            callbacks=[clock],
        ).train()
    return clock.seconds[1:]


def flops(model: Any, rows: Sequence[TrainingRow], budget: int) -> float:
    """Operations of an update's forward and backward passes over the tokens that are computed, none counted twice.

    6 a parameter and token in the layers, 6 an output weight and completion token, 12 a width of the heads and pair of
    tokens that see each other (Kaplan et al. 2020, arXiv 2001.08361, section 2.1, with the pairs counted exactly). What
    is computed again in the backward pass is not counted either.
    """
    config = model.config
    layers = sum(p.numel() for name, p in model.named_parameters() if "layers" in name)
    total = 0.0
    for chunk in divide(rows, budget):
        batch = micro_batch(chunk, torch.device("cpu"))
        lengths, lines = batch.forest.lengths, batch.forest.lineages
        pairs = sum(
            lengths[p] * (sum(lengths[a] for a in line[:-1]) + (lengths[p] + 1) / 2) for p, line in enumerate(lines)
        )
        total += 6 * layers * batch.ids.numel() + 6 * config.vocab_size * config.hidden_size * len(batch.targets)
        total += 12 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * pairs
    return total


def measure(size: str, name: str, rows: list[TrainingRow], at_once: int, args: Any) -> dict[str, Any]:
    """Both trainers in turn, so that a noisy machine bears on both alike."""
    tokenizer = make_tokenizer(["import pandas as pd\n"] * 20, 320)
    gpu = torch.cuda.is_available()
    budget, recompute = 16384 if gpu else 4096, size in RECOMPUTED
    seconds: dict[str, list[float]] = {"trl": [], "nbagent": []}
    for _ in range(args.rounds):
        if not args.alone:
            seconds["trl"] += stock(
                make_model(size), tokenizer, rows, at_once, recompute, not args.fp32 and has_bfloat16()
            )
        seconds["nbagent"] += ours(make_model(size), tokenizer, rows, budget, recompute, args)
    tokens = sum(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    computed = sum(micro_batch(chunk, torch.device("cpu")).ids.numel() for chunk in divide(rows, budget))
    medians = {k: statistics.median(v) for k, v in seconds.items() if v}
    result: dict[str, Any] = {"size": size, "samples": name, "rows": len(rows), "tokens": tokens, "computed": computed}
    print(f"{size}, {name}: {len(rows)} rows, {tokens} tokens, {computed} computed by nbagent")
    for who, value in medians.items():
        spread = f"{min(seconds[who]):.2f} to {max(seconds[who]):.2f}"
        print(f"  {who}: {value:.2f} s an update ({spread}), {tokens / value:,.0f} tokens/s")
    result |= {"seconds": seconds, "recompute": recompute}
    if "trl" in medians:
        result["ratio"] = ratio = medians["trl"] / medians["nbagent"]
        print(f"  nbagent / trl: {ratio:.2f} x (target {TARGETS[name]} x)")
    if gpu:
        device = torch.cuda.get_device_name()
        peak = peak_of(device)
        speed = flops(make_model(size), rows, budget) / medians["nbagent"]
        result |= {"device": device, "mfu": speed / peak if peak else None}
        print(f"  {device}: {speed / 1e12:.0f} TFLOP/s" + (f", {100 * speed / peak:.0f} % of peak" if peak else ""))
    return result


def main() -> None:
    """Measure what the machine allows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--fp32", action="store_true", help="no bf16 autocast")
    parser.add_argument("--alone", action="store_true", help="leave TRL out")
    parser.add_argument("--kernel", choices=["sdpa", "flex"], default="sdpa", help="attention; flex on a GPU only")
    parser.add_argument("--samples", choices=["shared", "mixed"], action="append")
    parser.add_argument("--json", type=Path, help="results so far, written after each size")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    gpu = torch.cuda.is_available()
    torch.set_num_threads(torch.get_num_threads() if gpu else 1)
    results = []
    for size in ("0.6B", "4B") if gpu else ("small",):
        vocabulary = int(SIZES[size]["vocab_size"])
        samples = {
            "shared": shared_rows(4 if gpu else 1, vocabulary),
            "mixed": mixed_rows(64 if gpu else 16, vocabulary),
        }
        results += [measure(size, name, samples[name], GROUP, args) for name in args.samples or samples]
        if args.json:
            args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
