"""What an update's rollouts looked like, as numbers for metrics.jsonl; metrics.py says what each means. No torch."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from nbagent.eventlog import Event
from nbagent.rollouts import Group, RolloutSource
from nbagent_training.groups import Batch


def rollout_stats(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards by group, lengths, steps, malformed and failed actions; nothing where no rollout has a reward."""
    made = [t for group in groups for t in group.trajectories]
    if not made:
        return {}
    live = [[t.reward or 0.0 for t in group.trajectories] for group in groups if group.trajectories]
    calls = [_calls(t.events) for t in made]
    # What attempts share counts once: a branch's events say which of them happened in another.
    own = [event for t in made for event in t.events if "rollout" not in event]
    every = _calls(own)
    prompts = [prompt for prompt, _ in every]
    completions = [completion for _, completion in every]
    observations = [e for e in own if e["kind"] == "observation"]
    malformed = sum(bool(e["error"]) for e in observations)
    return {
        "share_all_0": sum(max(r) <= 0 for r in live) / len(live),
        "share_all_1": sum(min(r) >= 1 for r in live) / len(live),
        "share_mixed": sum(max(r) > min(r) for r in live) / len(live),
        "group_size_min": float(min(len(r) for r in live)),
        "steps_mean": _mean([float(t.n_steps) for t in made]),
        "steps_max": float(max(t.n_steps for t in made)),
        "prompt_tokens_mean": _mean(prompts),
        "prompt_tokens_max": max(prompts, default=0.0),
        "completion_tokens_mean": _mean(completions),
        "completion_tokens_max": max(completions, default=0.0),
        "trajectory_tokens_mean": _mean([sum(completion for _, completion in of_one) for of_one in calls]),
        "truncated_share": sum(t.truncated for t in made) / len(made),
        "malformed": float(malformed),
        "malformed_share": malformed / max(1, len(observations)),
        "failed_calls_share": sum(bool(e["failed"]) for e in observations) / max(1, len(observations)),
    }


class Timed:
    """A RolloutSource over another, which notes how long it took; it may be asked in another thread.

    Attributes:
        seconds: by version, the making of its groups.
    """

    def __init__(self, source: RolloutSource) -> None:
        self._source = source
        self.seconds: dict[int, float] = {}

    def next_groups(self, n: int, version: int) -> list[Group]:
        """As the source's."""
        begin = time.monotonic()
        groups = self._source.next_groups(n, version)
        self.seconds[version] = time.monotonic() - begin
        return groups


def sampled_tokens(groups: Sequence[Group], taken_up: Collection[str]) -> float:
    """Completion tokens that were sampled for these groups, failed attempts among them.

    Args:
        groups: the update's.
        taken_up: rollouts that an earlier life of the run had made; their tokens, and their branches', do not count.
    """
    made = [t for g in groups for t in (*g.trajectories, *g.failed) if t.rollout_id.partition("+")[0] not in taken_up]
    return sum(completion for t in made for _, completion in _calls([e for e in t.events if "rollout" not in e]))


def staleness(batch: Batch, update: int) -> dict[str, float]:
    """How old the weights are that sampled the rows; nothing where there are none."""
    ages = [float(update - row.version) for row in batch.rows]
    return {"staleness_mean": _mean(ages), "staleness_max": max(ages)} if ages else {}


def _calls(events: Sequence[Event]) -> list[tuple[float, float]]:
    """Tokens of prompt and completion, by model call."""
    counts = (e["tokens"] for e in events if e["kind"] == "call")
    return [(float(count["prompt"]), float(count["completion"])) for count in counts]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
