"""What a report shows, read from a run folder; each part may be missing, and then its section is left out."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from nbagent.compare import Comparison, compare
from nbagent.errors import UsageError
from nbagent.runfolder import RunFolder
from nbagent.score import SCORE_FILE, Score, read_score

STAGES = {"untrained": "Untrained", "start": "Start", "warm": "Warm start", "sft": "Warm start", "grpo": "GRPO"}
MODES = {"sampled": "sampled", "greedy": "greedy"}
SCORES = "scores"
FACTS = "demo.json"

_NAME = re.compile(r"(?P<split>validation_|val_)?(?P<stage>[A-Za-z0-9-]+?)(?:_(?P<mode>sampled|greedy))?(?P<rest>_.*)?")


@dataclass(frozen=True, slots=True)
class Scored:
    """A score with its place among the others."""

    name: str
    """File name without `.json`; anchors in the page are made of it."""
    label: str
    """e.g. `Warm start, greedy`."""
    stage: str
    mode: str
    """sampled, greedy, or ''."""
    validation: bool
    """True for the split that settings were chosen on."""
    score: Score


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a learning curve."""

    title: str
    unit: str
    """Label of the y axis."""
    steps: tuple[float, ...]
    values: tuple[float, ...]
    bounds: tuple[float, float] | None
    """Fixed ends of the y axis; None: from the values."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All of it."""

    name: str
    description: dict[str, Any]
    """run.json."""
    facts: dict[str, Any]
    """demo.json; empty where there is none."""
    recipe: str
    scores: tuple[Scored, ...]
    """The test split's, in the order of the stages."""
    validation: tuple[Scored, ...]
    comparisons: tuple[tuple[str, str, str, Comparison], ...]
    """(label before, label after, mode, paired difference)."""
    curves: tuple[Series, ...]
    alarms: tuple[tuple[float, str], ...]
    """(update, what was wrong), in order."""


def gather(run: RunFolder) -> Findings:
    """Read a run folder.

    Raises:
        UsageError: a score or demo.json in it is damaged.
    """
    found = _scores(run)
    scores = tuple(scored for scored in found if not scored.validation)
    metrics = run.read_metrics()
    return Findings(
        name=run.path.resolve().name,
        description=run.description(),
        facts=_facts(run),
        recipe=run.recipe.read_text(encoding="utf-8") if run.recipe.exists() else "",
        scores=scores,
        validation=tuple(scored for scored in found if scored.validation),
        comparisons=tuple(_comparisons(scores)),
        curves=tuple(_curves(metrics)),
        alarms=tuple(_alarms(metrics)),
    )


def _scores(run: RunFolder) -> list[Scored]:
    found = [_scored(path.stem, read_score(path)) for path in sorted((run.path / SCORES).glob("*.json"))]
    if (run.path / SCORE_FILE).exists():
        score = read_score(run.path / SCORE_FILE)
        label = score.name or score.model or "Score"
        found.append(Scored("score", label, "score", "", False, score))
    order = list(dict.fromkeys(STAGES))
    found.sort(key=lambda s: (order.index(s.stage) if s.stage in order else len(order), s.mode != "sampled", s.name))
    return found


def _scored(name: str, score: Score) -> Scored:
    match = _NAME.fullmatch(name)
    if match is None:
        return Scored(name, name, name, "", False, score)
    stage, mode = match["stage"], match["mode"] or ""
    label = STAGES.get(stage, stage) + (f", {MODES[mode]}" if mode else "") + (match["rest"] or "").replace("_", " ")
    return Scored(name, label, stage, mode, bool(match["split"]), score)


def _comparisons(scores: tuple[Scored, ...]) -> list[tuple[str, str, str, Comparison]]:
    """Each stage against the one before it, for the same way of sampling, where both saw the same tasks."""
    made = []
    for mode in dict.fromkeys(scored.mode for scored in scores):
        line = [scored for scored in scores if scored.mode == mode]
        for before, after in pairwise(line):
            if before.stage == after.stage:
                continue
            try:
                made.append((before.label, after.label, mode, compare(before.score, after.score)))
            except UsageError:
                continue
    return made


def _facts(run: RunFolder) -> dict[str, Any]:
    path = run.path / FACTS
    if not path.exists():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON ({error}); run the demo again, or move the file away") from None
    return facts if isinstance(facts, dict) else {}


_SHARE = (0.0, 1.0)
CURVES: tuple[tuple[str, str, str, str, tuple[float, float] | None], ...] = (
    ("sft", "loss", "Warm start: loss", "loss per token", None),
    ("grpo", "reward", "GRPO: mean reward of the training tasks", "reward", _SHARE),
    ("grpo", "share_mixed", "Groups with both right and wrong attempts", "share", _SHARE),
    ("grpo", "share_all_0", "Groups whose attempts were all wrong", "share", _SHARE),
    ("grpo", "share_all_1", "Groups whose attempts were all right", "share", _SHARE),
    ("grpo", "teacher_kl", "Divergence from the teacher, nats", "nats", None),
    ("grpo", "entropy", "Entropy of the next token, nats", "nats", None),
    ("grpo", "kl", "Divergence from the model at the beginning, nats", "nats", None),
    ("grpo", "logp_gap", "Sampler-trainer gap of the log-probs, nats", "nats", None),
    ("grpo", "ratio_max", "Largest ratio of new to old probability", "ratio", None),
    ("grpo", "clip_low_share", "Tokens under the lower clip", "share", None),
    ("grpo", "clip_high_share", "Tokens over the upper clip", "share", None),
    ("grpo", "advantage_std", "Advantage, deviation over rows", "advantage", None),
    ("grpo", "advantage_min", "Advantage, the smallest", "advantage", None),
    ("grpo", "advantage_max", "Advantage, the largest", "advantage", None),
    ("grpo", "grad_norm", "Norm of the gradient", "norm", None),
    ("grpo", "trajectory_tokens_mean", "Tokens sampled per attempt", "tokens", None),
    ("grpo", "steps_mean", "Steps per attempt", "steps", None),
    ("grpo", "truncated_share", "Attempts that a limit ended", "share", _SHARE),
    ("grpo", "malformed_share", "Steps whose text was no action", "share", _SHARE),
    ("grpo", "failed_calls_share", "Steps whose tool call failed", "share", _SHARE),
    ("grpo", "infrastructure", "Rollouts failed on the host's side", "rollouts", None),
    ("grpo", "staleness_mean", "Age of the weights that sampled, updates", "updates", None),
    ("grpo", "rollout_s", "Making rollouts, seconds an update", "s", None),
    ("grpo", "teacher_s", "Asking the teacher, seconds an update", "s", None),
    ("grpo", "train_s", "Training, seconds an update", "s", None),
    ("grpo", "sync_s", "Handing weights to the sampler, seconds an update", "s", None),
    ("grpo", "tokens_per_s", "Tokens sampled per second", "tokens/s", None),
    ("grpo", "train_tokens_per_s", "Tokens trained on per second", "tokens/s", None),
)
"""Phase, metric, title, unit, bounds. One that is 0 throughout is left out, but for shares, where 0 says something."""


def _curves(metrics: list[dict[str, Any]]) -> list[Series]:
    curves = []
    for phase, key, title, unit, bounds in CURVES:
        pairs = [
            (float(line.get("step", number)), float(line[key]))
            for number, line in enumerate(metrics)
            if line.get("phase") == phase and _finite(line.get(key))
        ]
        if len(pairs) > 1 and (bounds is not None or any(value for _, value in pairs)):
            steps, values = zip(*sorted(pairs), strict=True)
            curves.append(Series(title, unit, steps, values, bounds))
    return curves


def _alarms(metrics: list[dict[str, Any]]) -> list[tuple[float, str]]:
    return [(float(line.get("step", 0)), str(words)) for line in metrics for words in line.get("alarms") or ()]


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
