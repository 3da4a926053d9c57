"""Families of questions: each draws a capsule from a seed, asks about it, and writes the notebook that answers.

`FAMILIES` maps names to families, in a fixed order that round-robin draws follow.
"""

from __future__ import annotations

from nbagent_bixbench.families import correlation, counts, doses, real, single_cell, survival, variants
from nbagent_bixbench.families.draft import Capsule, Draft, EvalMode, Family, Kind

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (counts, variants, doses, survival, correlation, single_cell, real)
    for family in module.FAMILIES
}

__all__ = ["FAMILIES", "Capsule", "Draft", "EvalMode", "Family", "Kind"]
