"""Sampling through vLLM and in this process: tokens per second, distance of their log-probs from the trainer's, swaps.

    python benchmarks/speed/sampler.py [--vllm-python PATH] [--calls 64] [--rounds 5] [--json OUT]

PATH is the Python of an environment with vLLM; default: as `[sampler] python` finds it. The model is a random Qwen3 in
fp32. Calls share the first half of their prompt, as the steps of an agent do. Each round has the same calls for both
engines in turn; medians of the rounds are printed. The first round warms up and is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from nbagent.models.base import Completion, Model, Prompt, SamplingParams
from nbagent.models.hf import HFModel
from nbagent.models.vllm import VLLMModel
from nbagent.models.vllm_server import VLLMServer, find_interpreter
from nbagent.rollouts import Rollouts
from nbagent_training.scratch import Size, make_model, make_tokenizer

SIZE = Size(vocabulary=1200, hidden=256, layers=4, heads=4, kv_heads=2, positions=2048)
PROMPT, ANSWER = 512, 64


def prompts(n: int, vocabulary: int) -> list[list[int]]:
    """n prompts that share their first half."""
    draw = random.Random(0)
    shared = [draw.randrange(5, vocabulary) for _ in range(PROMPT // 2)]
    return [shared + [draw.randrange(5, vocabulary) for _ in range(PROMPT // 2)] for _ in range(n)]


def sample(rollouts: Rollouts, model: Model, asked: list[list[int]], seed: int) -> tuple[list[Completion], float]:
    """All calls at once, and the tokens per second."""

    async def every() -> list[Completion]:
        calls = [
            model.sample(Prompt([], ids=ids), SamplingParams(max_new_tokens=ANSWER, seed=seed + k))
            for k, ids in enumerate(asked)
        ]
        return await asyncio.gather(*calls)

    begin = time.monotonic()
    made = rollouts.call(every())
    return made, sum(len(c.ids or ()) for c in made) / (time.monotonic() - begin)


@torch.no_grad()
def gap(model: Any, asked: list[list[int]], made: list[Completion]) -> float:
    """Mean distance between the sampler's log-probs and those of the trainer's forward pass."""
    gaps = []
    for prompt, completion in zip(asked, made, strict=True):
        ids = torch.tensor(completion.ids)
        logits = model(input_ids=torch.tensor([[*prompt, *ids.tolist()]])).logits[0, len(prompt) - 1 : -1]
        trainers = torch.log_softmax(logits.double(), -1).gather(1, ids[:, None])[:, 0]
        gaps.append((trainers - torch.tensor(completion.logprobs)).abs())
    return float(torch.cat(gaps).mean())


def main() -> None:
    """Run both and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default="")
    parser.add_argument("--calls", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    tokenizer = make_tokenizer(["import pandas as pd\nprint(df.describe())\n"] * 20, SIZE.vocabulary)
    model = make_model(tokenizer, SIZE, 0).eval()
    asked = prompts(args.calls, len(tokenizer))
    with tempfile.TemporaryDirectory() as folder, Rollouts() as rollouts:
        place = Path(folder)
        model.save_pretrained(place / "start")
        tokenizer.save_pretrained(place / "start")
        server = VLLMServer(find_interpreter(args.vllm_python), place / "start", dtype="float32", swaps=True)
        begin = time.monotonic()
        try:
            served = VLLMModel(tokenizer, "vllm", server=server, place=place)
            started = time.monotonic() - begin
            served.save = model.save_pretrained
            engines: dict[str, HFModel | VLLMModel] = {"hf": HFModel(model, tokenizer, "hf"), "vllm": served}
            speeds: dict[str, list[float]] = {name: [] for name in engines}
            gaps: dict[str, list[float]] = {name: [] for name in engines}
            swaps = []
            for number in range(args.rounds + 1):
                for name, engine in engines.items():
                    made, speed = sample(rollouts, engine, asked, 1000 * number)
                    if number:
                        speeds[name].append(speed)
                        gaps[name].append(gap(model, asked, made))
                begin = time.monotonic()
                served.refresh(number)
                swaps.append(time.monotonic() - begin)
            for engine in engines.values():
                rollouts.call(engine.close())
        finally:
            server.close()
    row = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "calls": args.calls,
        "tokens_per_s": {name: statistics.median(found) for name, found in speeds.items()},
        "ratio": statistics.median(v / h for v, h in zip(speeds["vllm"], speeds["hf"], strict=True)),
        "gap": {name: statistics.median(found) for name, found in gaps.items()},
        "start_s": started,
        "swap_s": statistics.median(swaps),
    }
    for name in engines:
        print(f"{name:5} {row['tokens_per_s'][name]:8,.0f} tokens/s   mean |gap| {row['gap'][name]:.1e}")
    print(f"vllm / hf {row['ratio']:.2f}; start {started:.0f} s; new weights in {row['swap_s']:.2f} s")
    if args.json:
        args.json.write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    main()
