"""Questions over single-cell AnnData files."""

from __future__ import annotations

from random import Random

import numpy as np
import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind
from nbagent_bixbench.families.words import CONDITIONS, GENES, file_name, names


def draw(r: Random) -> Capsule:
    """30–40 cells in three clusters of unequal size, counts of four genes that differ between clusters."""
    noise = np.random.default_rng(r.getrandbits(64))
    label, clusters, genes = r.choice(("cluster", "celltype", "leiden")), names(r, CONDITIONS, 3), names(r, GENES, 4)
    n = r.randint(30, 40)
    placed = r.choices(clusters, (3, 2, 2), k=n)
    level = {cluster: noise.gamma(1.2, 1.5, len(genes)) + 0.1 for cluster in clusters}
    table = pd.DataFrame(
        noise.poisson(np.array([level[cluster] for cluster in placed])).astype(float),
        columns=genes,
        index=[f"c{i + 1}" for i in range(n)],
    )
    table[label] = placed
    table["umi"] = [r.randint(200, 999) for _ in range(n)]
    file = file_name(r, ".h5ad")
    return Capsule({file: table}, {"file": file, "label": label, "clusters": clusters, "genes": genes})


CELLS = Kind("cells", draw)


def look_h5ad(file: str) -> str:
    """The first cell over an `.h5ad`: read it, join expression and table of cells, print the columns."""
    return f'import anndata as ad\na=ad.read_h5ad("{file}")\ndf=a.to_df().join(a.obs)\nprint(list(df))'


def cluster_size(r: Random, c: Capsule) -> Draft:
    """Cells in a cluster."""
    label, x = c.facts["label"], r.choice(c.facts["clusters"])
    wording = (
        f"How many cells are in {label} {x}?",
        f"What is the number of cells with {label} {x}?",
        f"Count the cells of {label} {x}.",
    )
    rivals = (f'print((df["{label}"]!="{x}").sum())', f'print(df["{label}"].nunique())')
    cells = (look_h5ad(c.facts["file"]), f'print((df["{label}"]=="{x}").sum())')
    return Draft(r.choice(wording), (label, x), cells, rivals=rivals)


def expression_mean(r: Random, c: Capsule, genes: list[str], clusters: list[str]) -> Draft:
    """Mean expression of a gene in a cluster, 2 decimals."""
    label, x, g = c.facts["label"], r.choice(clusters), r.choice(genes)
    wording = (
        f"What is the mean {g} in {label} {x} (2 decimals)?",
        f"In {label} {x}, what is the mean expression of {g} (2 decimals)?",
        f"Give the mean of {g} over the cells of {label} {x}, 2 decimals.",
    )
    second = f'print(round(df[df["{label}"]=="{x}"]["{g}"].mean(),2))'
    rivals = (f'print(round(df["{g}"].mean(),2))', f'print(round(df[df["{label}"]!="{x}"]["{g}"].mean(),2))')
    cells = (look_h5ad(c.facts["file"]), second)
    return Draft(r.choice(wording), (label, x, g), cells, "range_verifier", 2, rivals)


def expression_count(r: Random, c: Capsule, genes: list[str], clusters: list[str], thresholds: list[str]) -> Draft:
    """Cells of a cluster with a gene above a threshold."""
    label, x, g, t = c.facts["label"], r.choice(clusters), r.choice(genes), r.choice(thresholds)
    wording = (
        f"How many cells of {label} {x} have {g} above {t}?",
        f"What number of {label} {x} cells has {g} > {t}?",
        f"Count the cells in {label} {x} with {g} above {t}.",
    )
    second = f'print(((df["{label}"]=="{x}")&(df["{g}"]>{t})).sum())'
    rivals = (f'print((df["{label}"]=="{x}").sum())', f'print((df["{g}"]>{t}).sum())')
    return Draft(r.choice(wording), (label, x, g, t), (look_h5ad(c.facts["file"]), second), rivals=rivals)


def cluster_mean(r: Random, c: Capsule) -> Draft:
    """Mean count of a gene in a cluster."""
    return expression_mean(r, c, c.facts["genes"], c.facts["clusters"])


def cluster_expressing(r: Random, c: Capsule) -> Draft:
    """Cells of a cluster that have more than a few counts of a gene."""
    return expression_count(r, c, c.facts["genes"], c.facts["clusters"], ["0", "1", "2"])


FAMILIES = (
    Family("cluster_size", "cells in a cluster (.h5ad)", CELLS, cluster_size),
    Family("cluster_mean", "mean of a gene in a cluster (.h5ad)", CELLS, cluster_mean),
    Family("cluster_expressing", "cells of a cluster with a gene above a threshold (.h5ad)", CELLS, cluster_expressing),
)
