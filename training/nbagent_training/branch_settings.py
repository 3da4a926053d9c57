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
    entropy_weight: float = Field(default=0.5, ge=0)
    """How much a difference of one nat a token adds to the probability."""
    per_lineage: int = Field(default=1, ge=1)
    """Branchings on the way of one attempt; with more, alternatives have alternatives of their own."""
    roots: int = Field(default=0, ge=0)
    """Attempts of a task that begin at the first step; 0: group_size // alternatives. No more than group_size attempts
    come of them all."""
    calls: int = Field(default=0, ge=0)
    """Model calls that a task's attempts may take; nothing is branched where it could become more. 0: what group_size
    attempts of the most steps take."""

    @model_validator(mode="after")
    def _together(self) -> Branch:
        if self.where == "every" and self.probability != Branch.model_fields["probability"].default:
            raise ValueError('probability: where = "every" has none; take where = "random", or leave it out')
        if self.where != "entropy" and self.entropy_weight != Branch.model_fields["entropy_weight"].default:
            raise ValueError('entropy_weight: only where = "entropy" has one')
        return self
