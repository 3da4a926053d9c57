"""Settings of branched rollouts."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nbagent.recipe import Recipe


class Branch(Recipe):
    """Where rollouts are branched, under `grouping = "branch"`: alternatives sampled from one live state."""

    where: Literal["random", "entropy", "every"] = "random"
    """Before which steps. `random`: each with `probability`. `entropy`: with `probability` + `entropy_weight` times how
    much more uncertain the next tokens are than the first ones were (ARPO, Dong et al. 2025, arXiv 2507.19849); each
    look at them is a short model call of its own, thrown away, since a choice that depended on what is trained on would
    bias the estimate. `every`: each, which with one branching a lineage is the first."""
    alternatives: int = Field(default=4, ge=2)
    """Attempts that go on from a state that is branched, the one that came there among them."""
    probability: float = Field(default=0.5, gt=0, le=1)
    """Of branching before a step; the first step is one as any other."""
    entropy_weight: float = Field(default=0.5, gt=0)
    """How much a difference of one nat a token adds to the probability."""
    per_lineage: int = Field(default=1, ge=1)
    """Branchings on the way of one attempt; with more, alternatives have alternatives of their own, as far as
    group_size // roots leaves attempts for them."""
    roots: int = Field(default=0, ge=0)
    """Attempts of a task that begin at the first step; 0: group_size // alternatives. No more than group_size attempts
    come of them all. What one writes before it is branched is compared with the other roots, so of one alone nothing
    would be learned there: one root is taken only with `where = "every"` and no `calls`, which branches it first."""
    calls: int = Field(default=0, ge=0)
    """Model calls that a task's attempts may take; nothing is branched where it could become more. 0: what group_size
    attempts of the most steps take, under `entropy` with a look before each of these steps."""

    @model_validator(mode="after")
    def _together(self) -> Branch:
        if self.where == "every" and self.probability != Branch.model_fields["probability"].default:
            raise ValueError('probability: where = "every" has none; take where = "random", or leave it out')
        if self.where != "entropy" and self.entropy_weight != Branch.model_fields["entropy_weight"].default:
            raise ValueError('entropy_weight: only where = "entropy" has one')
        return self

    def roots_of(self, group_size: int) -> int:
        """Roots of a task that `group_size` attempts come of."""
        return self.roots or max(1, group_size // self.alternatives)

    def calls_of(self, group_size: int, max_steps: int) -> int:
        """Model calls that a task's attempts may take, where `group_size` come of at most `max_steps` steps each."""
        return self.calls or group_size * max_steps * (2 if self.where == "entropy" else 1)

    def check(self, group_size: int) -> None:
        """Raises ValueError: with so many attempts a task some of this could not be done, or could not teach."""
        roots = self.roots_of(group_size)
        own = group_size // roots
        if roots > group_size or group_size % roots:
            raise ValueError(f"grpo.branch.roots: share group_size = {group_size} evenly; set roots to a divisor of it")
        if self.alternatives > own:
            raise ValueError(
                f"grpo.branch.alternatives: {self.alternatives} are more than the {own} attempts that come of a root, "
                f"group_size / roots = {group_size} / {roots}; take fewer roots or alternatives"
            )
        if self.per_lineage > 1 and self.alternatives == own:
            raise ValueError(
                f"grpo.branch.per_lineage: the first branching takes all {own} attempts of a root; take fewer roots or "
                "alternatives, or leave it out"
            )
        if roots == 1 and (self.where != "every" or self.calls):
            raise ValueError(
                "grpo.branch.roots: what one root writes before it is branched is compared with nothing; set roots or "
                'group_size so that there are two, or where = "every" without calls, which branches it first'
            )

    def check_calls(self, group_size: int, max_steps: int) -> None:
        """Raises ValueError: `calls` are too few for a root to be branched even before its last step (BranchRules)."""
        roots = self.roots_of(group_size)
        # At the first step, to compare with, and at the last.
        looks = min(2, max_steps) if self.where == "entropy" else 0
        least = roots * (max_steps + self.alternatives - 1 + looks)
        if self.calls and self.calls < least:
            raise ValueError(
                f"grpo.branch.calls: {self.calls} are too few to branch anything; with roots = {roots}, alternatives = "
                f"{self.alternatives} and agent.max_steps = {max_steps} it takes {least}"
            )
