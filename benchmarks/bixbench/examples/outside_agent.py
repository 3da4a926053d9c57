"""An agent that knows nothing of nbagent: plain Python writes result rows, nbagent checks and grades them.

    python outside_agent.py my-tasks http://localhost:8000/v1 my-model > results.jsonl
    nbagent bixbench validate results.jsonl
    nbagent bixbench regrade results.jsonl

This one asks a chat endpoint each question without the data. Put your agent in place of `answer`.
"""

import json
import sys
import urllib.request
from pathlib import Path


def answer(url: str, model: str, question: str) -> str:
    """What the agent says to a question."""
    body = {"model": model, "messages": [{"role": "user", "content": f"{question}\nReply with the answer only."}]}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def main(folder: str, url: str, model: str) -> None:
    """Write a result row for every question; grading is left to nbagent."""
    for line in (Path(folder) / "BixBench.jsonl").read_text(encoding="utf-8").splitlines():
        task = json.loads(line)
        row = {
            "format": "nbagent-bixbench-result",
            "version": 1,
            "question_id": task["question_id"],
            "replica": 0,
            "mode": "open",
            "setting": "zero-shot",
            "eval_mode": task["eval_mode"],
            "question": task["question"],
            "ideal": task["ideal"],
            "model": model,
        }
        try:
            row |= {"answer": answer(url, model, task["question"]), "outcome": "ungraded"}
        except OSError as error:
            # A server that is down is no wrong answer.
            row |= {"answer": None, "outcome": "infrastructure", "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
