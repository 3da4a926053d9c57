"""The closed pools that names are drawn from: words, and real gene symbols without digits.

Closed, so that a small tokenizer made from training tasks knows every name of held-out ones.
"""

from __future__ import annotations

from random import Random

CONDITIONS = (
    "ctrl drug mock heat cold wild mutant fed fasted young old lean obese saline dox liver brain tumor edge core "
    "naive memory low high acute stable basal luminal resist treat"
).split()
"""Words for conditions, arms and clusters."""

FILES = (
    "counts table run batch plate panel cohort screen assay matrix reads study expr lane pilot atlas trial "
    "survey probe tissue"
).split()
"""Words for the names of data files."""

GENES = (
    "MYC EGFR KRAS BRAF ALK KIT MET RET PTEN APC ATM TERT VHL SOX PAX GATA FOS JUN TNF IFN LEP INS GCG ALB CRP HBB HBA "
    "ACTB GAPDH VIM DES MPO ELANE LYZ CFTR DMD HTT APP SNCA PRNP FUS SOD NES DCX"
).split()
"""Gene symbols, letters only."""


def names(r: Random, pool: list[str], n: int) -> list[str]:
    """`n` different words of a pool, in random order."""
    return r.sample(pool, n)


def file_name(r: Random, ending: str = ".csv") -> str:
    """A file name made of a pool word."""
    return r.choice(FILES) + ending
