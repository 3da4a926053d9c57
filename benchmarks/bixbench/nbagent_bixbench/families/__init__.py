"""Families of questions: each draws a capsule from a seed, asks about it, and writes the notebook that answers.

`FAMILIES` maps names to families, in a fixed order that round-robin draws follow: a family of each kind of data, then
the second of each, so that a small set has all kinds.
"""

from __future__ import annotations

from itertools import zip_longest

from nbagent_bixbench.families import correlation, counts, doses, real, single_cell, survival, variants
from nbagent_bixbench.families.draft import Capsule, Draft, EvalMode, Family, Kind


def _in_turn(*families: Family) -> dict[str, Family]:
    kinds: dict[str, list[Family]] = {}
    for family in families:
        kinds.setdefault(family.kind.name, []).append(family)
    return {family.name: family for turn in zip_longest(*kinds.values()) for family in turn if family is not None}


FAMILIES: dict[str, Family] = _in_turn(
    *counts.FAMILIES,
    *variants.FAMILIES,
    *doses.FAMILIES,
    *survival.FAMILIES,
    *correlation.FAMILIES,
    *single_cell.FAMILIES,
    *real.FAMILIES,
)

__all__ = ["FAMILIES", "Capsule", "Draft", "EvalMode", "Family", "Kind"]
