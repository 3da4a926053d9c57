"""Questions over tables of called variants."""

from __future__ import annotations

from random import Random

import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind, look
from nbagent_bixbench.families.words import file_name

TRANSITION = {"A": "G", "G": "A", "C": "T", "T": "C"}


def draw(r: Random) -> Capsule:
    """24–36 variants on three chromosomes, about 60 % of them transitions."""
    n = r.randint(24, 36)
    chrom, qual = r.choice(("chrom", "chr", "contig")), r.choice(("qual", "score", "gq"))
    chroms = [f"chr{x}" for x in r.sample(range(1, 23), 3)]
    refs = [r.choice("ACGT") for _ in range(n)]
    alts = [TRANSITION[x] if r.random() < 0.45 else r.choice([y for y in "ACGT" if y != x]) for x in refs]
    table = pd.DataFrame(
        {
            chrom: [r.choice(chroms) for _ in range(n)],
            "pos": sorted(r.sample(range(100, 9999), n)),
            "ref": refs,
            "alt": alts,
            qual: [r.randint(5, 60) for _ in range(n)],
            "depth": [r.randint(8, 99) for _ in range(n)],
        },
        index=pd.Index([f"v{i + 1}" for i in range(n)], name="id"),
    )
    file = file_name(r)
    return Capsule({file: table}, {"file": file, "chrom": chrom, "qual": qual, "chroms": chroms})


VARIANTS = Kind("variants", draw)


def variant_count(r: Random, c: Capsule) -> Draft:
    """Variants on a chromosome with a quality of at least a threshold."""
    chrom, qual, on, x = c.facts["chrom"], c.facts["qual"], r.choice(c.facts["chroms"]), r.randint(12, 45)
    wording = (
        f"How many variants on {on} have {qual} of at least {x}?",
        f"What number of {on} variants has {qual} >= {x}?",
        f"Count the variants on {on} with {qual} of {x} or more.",
    )
    second = f'print(((df["{chrom}"]=="{on}")&(df["{qual}"]>={x})).sum())'
    rivals = (f'print((df["{chrom}"]=="{on}").sum())', f'print((df["{qual}"]>={x}).sum())')
    return Draft(r.choice(wording), (on, qual, str(x)), (look(c.facts["file"]), second), rivals=rivals)


def variant_depth(r: Random, c: Capsule) -> Draft:
    """Mean depth of the variants on a chromosome."""
    chrom, on = c.facts["chrom"], r.choice(c.facts["chroms"])
    wording = (
        f"What is the mean depth of variants on {on} (1 decimal)?",
        f"On {on}, what is the mean depth of the variants (1 decimal)?",
        f"Give the mean depth of all {on} variants, 1 decimal.",
    )
    second = f'print(round(df[df["{chrom}"]=="{on}"]["depth"].mean(),1))'
    rivals = ('print(round(df["depth"].mean(),1))', f'print(round(df[df["{chrom}"]=="{on}"]["depth"].median(),1))')
    cells = (look(c.facts["file"]), second)
    return Draft(r.choice(wording), (on,), cells, "range_verifier", 1, rivals)


def ti_tv(r: Random, c: Capsule) -> Draft:
    """Transition to transversion ratio of the variants above a quality."""
    qual, x = c.facts["qual"], r.randint(8, 25)
    wording = (
        f"What is the Ti/Tv ratio of variants with {qual} of at least {x} (2 decimals)?",
        f"Among variants with {qual} >= {x}, what is Ti/Tv (2 decimals)?",
        f"Give transitions over transversions at {qual} of {x} or more, 2 decimals.",
    )
    head = f'd=df[df["{qual}"]>={x}]\nt=(d["ref"]+d["alt"]).isin(["AG","GA","CT","TC"]).sum()\n'
    rivals = (head + "print(round((len(d)-t)/t,2))", head + "print(round(t/len(d),2))")
    cells = (look(c.facts["file"]), head + "print(round(t/(len(d)-t),2))")
    return Draft(r.choice(wording), (qual, str(x)), cells, "range_verifier", 2, rivals)


FAMILIES = (
    Family("variant_count", "variants on a chromosome above a quality", VARIANTS, variant_count),
    Family("variant_depth", "mean depth on a chromosome", VARIANTS, variant_depth),
    Family("ti_tv", "Ti/Tv ratio above a quality", VARIANTS, ti_tv),
)
