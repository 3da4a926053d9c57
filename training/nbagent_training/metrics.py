"""The metrics of a GRPO update: every name that a line of metrics.jsonl may have, its unit and meaning. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One name."""

    name: str
    unit: str
    """'' for a number without one."""
    meaning: str
    trained_tokens: bool = False
    """Taken over the tokens in the loss, so that an update without any has none."""


TABLE: Mapping[str, tuple[Metric, ...]] = {
    "Reward": (
        Metric("reward", "", "mean return of the attempts; missing where no attempt has one"),
        Metric("reward_std", "", "mean over groups of the deviation within one"),
        Metric("share_all_0", "share", "groups whose attempts all have return 0"),
        Metric("share_all_1", "share", "groups whose attempts all have return 1"),
        Metric("share_mixed", "share", "groups whose returns differ: the only ones that teach"),
    ),
    "Groups and rows": (
        Metric("groups", "", "tasks practised"),
        Metric("groups_live", "", "groups with a gradient"),
        Metric("groups_too_easy", "", "groups without one, of a mean above 0"),
        Metric("groups_too_hard", "", "groups without one, of mean 0"),
        Metric("group_size", "", "attempts with a return, mean over groups"),
        Metric("group_size_min", "", "the smallest group that has any"),
        Metric("trajectories", "", "attempts with a return"),
        Metric("branchings", "", "branchings of live states (grouping `branch`)"),
        Metric("branches_replayed", "", "branches whose kernel was made by running the cells again"),
        Metric("branches_refused", "", "states that could not be branched at all; the attempt went on alone"),
        Metric("model_calls", "", "calls of the model, shared steps once and looks too (grouping `branch`)"),
        Metric("looks", "", "short calls that measured the entropy of the next tokens and were thrown away"),
        Metric("states", "", "notebook states met (grouping `state`)"),
        Metric("states_met_once", "", "those that a single attempt met, which say nothing"),
        Metric("rows", "", "model calls in the loss"),
        Metric("summaries", "", "memories that the context policy asked for"),
        Metric("advantage_mean", "", "mean over rows"),
        Metric("advantage_std", "", "deviation over rows"),
        Metric("advantage_min", "", "the smallest"),
        Metric("advantage_max", "", "the largest"),
        Metric("teacher_kl", "nats", "KL(policy ‖ teacher) per sampled token, in distillation"),
        Metric("staleness_mean", "updates", "age of the weights that sampled a row, mean"),
        Metric("staleness_max", "updates", "the oldest"),
    ),
    "Behaviour": (
        Metric("steps_mean", "", "actions per attempt, mean"),
        Metric("steps_max", "", "the most"),
        Metric("prompt_tokens_mean", "tokens", "per model call"),
        Metric("prompt_tokens_max", "tokens", "the longest prompt"),
        Metric("completion_tokens_mean", "tokens", "per model call"),
        Metric("completion_tokens_max", "tokens", "the longest completion"),
        Metric("completion_tokens", "tokens", "sampled in all"),
        Metric("trajectory_tokens_mean", "tokens", "sampled per attempt"),
        Metric("truncated", "", "attempts that a limit ended"),
        Metric("truncated_share", "share", "the same, of all attempts with a return"),
        Metric("malformed", "", "steps whose text was no action"),
        Metric("malformed_share", "share", "the same, of all steps"),
        Metric("failed_calls_share", "share", "steps whose tool call failed, malformed ones too"),
    ),
    "Loss": (
        Metric("loss", "", "the loss; its value says little, since advantages sum to zero"),
        Metric("grad_norm", "", "norm of the gradient before clipping"),
        Metric("learning_rate", "", "of this update"),
        Metric("entropy", "nats", "of the next token, mean over trained tokens", True),
        Metric("ratio_mean", "", "of new to old probability, mean over trained tokens", True),
        Metric("ratio_max", "", "the largest", True),
        Metric("clip_low_share", "share", "trained tokens under the lower bound, where it bites", True),
        Metric("clip_high_share", "share", "trained tokens over the upper bound, where it bites", True),
        Metric("correction_mean", "", "mean correction for the sampler's mismatch", True),
        Metric("logp_gap", "nats", "sampler against trainer: mean of the log-probs' absolute difference", True),
        Metric("logp_gap_k3", "nats", "the same as a divergence, KL(sampler ‖ trainer) by estimate k3", True),
        Metric("kl", "nats", "KL(policy ‖ reference) by estimate k3, where there is a reference", True),
        Metric("tokens_trained", "tokens", "completion tokens in the loss"),
        Metric("tokens_rows", "tokens", "prompts and completions of all rows"),
        Metric("tokens_computed", "tokens", "what was computed of them, shared prefixes once and padding included"),
        Metric("micro_batches", "", "of all processes"),
    ),
    "The host": (
        Metric("attempts", "", "rollouts, failed ones too"),
        Metric("infrastructure", "", "rollouts that a host-side failure ended: in no statistics, never a return of 0"),
        Metric("failures_sandbox", "", "of these: no kernel came up, or it failed"),
        Metric("failures_model", "", "of these: the model could not be asked"),
        Metric("failures_other", "", "of these: a bug, ours or a verifier's"),
        Metric("ungraded", "", "rollouts whose answer could not be graded; left out like failures"),
        Metric("retries", "", "new tries after a host-side failure"),
        Metric("read_back", "", "rollouts that a killed run had finished, taken up again"),
        Metric("stale", "", "rollouts set aside: made by weights that were lost, or their tree was cut off"),
        Metric("sync_s", "s", "the sampler's taking of the new weights"),
        Metric("rollout_s", "s", "making the rollouts, or reading back those that are there"),
        Metric("wait_s", "s", "the trainer's wait for them; less than rollout_s where they run ahead"),
        Metric("teacher_s", "s", "the teacher's log-probs, in distillation"),
        Metric("train_s", "s", "from them to the new weights"),
        Metric(
            "tokens_per_s",
            "tokens/s",
            "sampled over rollout_s, without what was read back; missing where nothing was sampled",
        ),
        Metric("train_tokens_per_s", "tokens/s", "tokens_rows over train_s"),
    ),
}
"""All of them, by heading."""

METRICS: Mapping[str, Metric] = {metric.name: metric for metrics in TABLE.values() for metric in metrics}
"""All of them, by name."""


def markdown() -> str:
    """The table for training/WATCHING.md."""
    parts = []
    for heading, metrics in TABLE.items():
        rows = [f"| `{m.name}` | {m.unit} | {m.meaning} |" for m in metrics]
        parts.append("\n".join([f"### {heading}", "", "| name | unit | meaning |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def known(logs: Mapping[str, float]) -> dict[str, float]:
    """An update's numbers without those that are means over no tokens at all."""
    if logs.get("tokens_trained", 1.0):
        return dict(logs)
    return {name: value for name, value in logs.items() if not (name in METRICS and METRICS[name].trained_tokens)}
