"""Questions over small expression tables: samples by genes."""

from __future__ import annotations

from random import Random

import numpy as np
import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind, look
from nbagent_bixbench.families.words import GENES, file_name, names


def draw(r: Random) -> Capsule:
    """Five genes in 12–18 samples, log-normal with a shared factor, rounded to whole numbers."""
    noise = np.random.default_rng(r.getrandbits(64))
    genes, n = names(r, GENES, 5), r.randint(12, 18)
    factor = noise.normal(0, 1, (n, 1)) * noise.normal(0, 1, 5)
    values = np.exp(3 + 0.8 * factor + 0.5 * noise.normal(0, 1, (n, 5))).astype(int) + noise.integers(0, 9, (n, 5))
    table = pd.DataFrame(values, columns=genes, index=pd.Index([f"s{i + 1}" for i in range(n)], name="sample"))
    file = file_name(r)
    return Capsule({file: table}, {"file": file, "genes": genes})


EXPRESSION = Kind("expression", draw)


def correlate(r: Random, c: Capsule, method: str, columns: list[str]) -> Draft:
    """Correlation of two columns by the named method (`Pearson` or `Spearman`), 2 decimals.

    The other method must give another number, so that the method matters.
    """
    a, b = r.sample(columns, 2)
    wording = (
        f"What is the {method} correlation of {a} and {b} (2 decimals)?",
        f"Give the {method} correlation between {a} and {b}, 2 decimals.",
        f"How strong is the {method} correlation of {a} with {b} (2 decimals)?",
    )
    calls = {
        name: f'print(round(df["{a}"].corr(df["{b}"],method="{name.lower()}"),2))' for name in ("Pearson", "Spearman")
    }
    rival = calls["Spearman" if method == "Pearson" else "Pearson"]
    cells = (look(c.facts["file"]), calls[method])
    return Draft(r.choice(wording), (method, *sorted((a, b))), cells, "range_verifier", 2, (rival,))


def pearson(r: Random, c: Capsule) -> Draft:
    """Pearson correlation of two genes."""
    return correlate(r, c, "Pearson", c.facts["genes"])


def spearman(r: Random, c: Capsule) -> Draft:
    """Spearman correlation of two genes."""
    return correlate(r, c, "Spearman", c.facts["genes"])


FAMILIES = (
    Family("pearson", "Pearson correlation of two genes", EXPRESSION, pearson),
    Family("spearman", "Spearman correlation of two genes", EXPRESSION, spearman),
)
