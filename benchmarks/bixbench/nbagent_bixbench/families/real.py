"""Questions over measured data that ship inside scanpy, scikit-learn and statsmodels; nothing is downloaded."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from random import Random

import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind, look
from nbagent_bixbench.families.single_cell import expression_count, expression_mean
from nbagent_bixbench.families.words import file_name

PBMC_GENES = (
    "LYZ FOS VIM CTSS LTB LCK TXN CAT GNLY TYROBP LDHB PKM NCL CFD JUNB PTPRC DEK SRGN CALR MIF COMT ZYX LAT FGR"
).split()
"""Letters-only genes of pbmc68k_reduced that at least a quarter of the cells express."""

PBMC_TYPES = ["Dendritic", "CD14+ Monocyte", "CD19+ B", "CD56+ NK", "CD8+ Cytotoxic T", "CD4+/CD25 T Reg"]
"""Its labels with at least 30 cells and short names."""


@cache
def pbmc() -> pd.DataFrame:
    """700 cells of scanpy's pbmc68k_reduced: log-normalised expression of PBMC_GENES, 2 decimals, and three labels."""
    # The file is read without importing scanpy, which takes seconds.
    import anndata

    spec = find_spec("scanpy")
    if spec is None or spec.origin is None:
        raise ImportError("scanpy is not installed; it carries the pbmc68k data")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the file's old layout, which is read all the same
        data = anndata.read_h5ad(Path(spec.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad")
    values = data.raw[:, PBMC_GENES].X.toarray().astype(float).round(2)
    labels = ["bulk_labels", "louvain", "phase"]
    return pd.DataFrame(values, columns=PBMC_GENES, index=data.obs_names).join(data.obs[labels].astype(str))


@cache
def tumours() -> pd.DataFrame:
    """569 tumours of the Wisconsin breast-cancer set (scikit-learn): 20 measurements and the diagnosis."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer(as_frame=True)
    table = data.frame[[name for name in data.feature_names if "error" not in name]].copy()
    table["diagnosis"] = [data.target_names[i] for i in data.target]
    table.index = pd.Index([f"t{i + 1}" for i in range(len(table))], name="tumour")
    return table


@cache
def diabetes() -> pd.DataFrame:
    """442 patients of the diabetes set (scikit-learn), unscaled."""
    from sklearn.datasets import load_diabetes

    table = load_diabetes(as_frame=True, scaled=False).frame
    table.index = pd.Index([f"p{i + 1}" for i in range(len(table))], name="patient")
    return table.drop(columns="sex").round(2)


@cache
def iris() -> pd.DataFrame:
    """150 irises (scikit-learn), lengths in cm."""
    from sklearn.datasets import load_iris

    data = load_iris(as_frame=True)
    table = data.frame.drop(columns="target").rename(columns=lambda name: name.removesuffix(" (cm)"))
    table["species"] = [data.target_names[i] for i in data.target]
    table.index = pd.Index([f"i{i + 1}" for i in range(len(table))], name="flower")
    return table


@cache
def heart() -> pd.DataFrame:
    """69 heart-transplant patients (statsmodels): days survived, death observed, age."""
    from statsmodels.datasets import heart as source

    table = source.load_pandas().data.astype({"survival": int, "censors": int}).copy()
    table.index = pd.Index([f"p{i + 1}" for i in range(len(table))], name="patient")
    return table


def draw_pbmc(r: Random) -> Capsule:
    """All 700 cells with five of the genes and two labels."""
    genes, file = r.sample(PBMC_GENES, 5), file_name(r, ".h5ad")
    facts = {"file": file, "label": "bulk_labels", "genes": genes}
    return Capsule(
        {file: pbmc()[[*genes, "bulk_labels", "phase"]]}, facts, "scanpy pbmc68k_reduced (Zheng et al. 2017)", True
    )


def draw_tumours(r: Random) -> Capsule:
    """All tumours with three of the measurements."""
    columns, file = r.sample(list(tumours())[:-1], 3), file_name(r)
    facts = {
        "file": file,
        "columns": columns,
        "label": "diagnosis",
        "groups": ["malignant", "benign"],
        "noun": "tumours",
    }
    return Capsule(
        {file: tumours()[[*columns, "diagnosis"]]}, facts, "scikit-learn breast_cancer (Wolberg et al. 1995)", True
    )


def draw_diabetes(r: Random) -> Capsule:
    """All patients with five of the columns."""
    columns, file = r.sample(list(diabetes()), 5), file_name(r)
    return Capsule(
        {file: diabetes()[columns]},
        {"file": file, "columns": columns},
        "scikit-learn diabetes (Efron et al. 2004)",
        True,
    )


def draw_iris(r: Random) -> Capsule:
    """All flowers with all columns in random order."""
    columns, file = r.sample(list(iris())[:-1], 4), file_name(r)
    facts = {
        "file": file,
        "columns": columns,
        "label": "species",
        "groups": ["setosa", "versicolor", "virginica"],
        "noun": "flowers",
    }
    return Capsule({file: iris()[[*columns, "species"]]}, facts, "scikit-learn iris (Fisher 1936)", True)


def draw_heart(r: Random) -> Capsule:
    """All patients."""
    file = file_name(r)
    return Capsule({file: heart()}, {"file": file}, "statsmodels heart (Miller 1976)", True)


PBMC = Kind("pbmc", draw_pbmc, True)
TUMOURS = Kind("tumours", draw_tumours, True)
DIABETES = Kind("diabetes", draw_diabetes, True)
IRIS = Kind("iris", draw_iris, True)
HEART = Kind("heart", draw_heart, True)


def _between(r: Random, values: pd.Series) -> str:
    """A threshold within the middle of the values, with three digits or so."""
    x = float(values.quantile(r.uniform(0.1, 0.9)))
    return f"{x:.0f}" if x >= 50 else f"{x:.1f}" if x >= 2 else f"{x:.2f}"


def pbmc_mean(r: Random, c: Capsule) -> Draft:
    """Mean expression of a gene in a cell type."""
    return expression_mean(r, c, c.facts["genes"], PBMC_TYPES)


def pbmc_count(r: Random, c: Capsule) -> Draft:
    """Cells of a type with a gene above a threshold."""
    return expression_count(r, c, c.facts["genes"], PBMC_TYPES, ["0", "0.5", "1", "1.5", "2"])


def group_count(r: Random, c: Capsule) -> Draft:
    """Rows of a group with a column above a threshold."""
    table, label, noun = c.tables[c.facts["file"]], c.facts["label"], c.facts["noun"]
    group, column = r.choice(c.facts["groups"]), r.choice(c.facts["columns"])
    x = _between(r, table[table[label] == group][column])
    wording = (
        f"How many {group} {noun} have {column} above {x}?",
        f"What number of {group} {noun} has {column} > {x}?",
        f"Count the {group} {noun} with {column} above {x}.",
    )
    second = f'print(((df["{label}"]=="{group}")&(df["{column}"]>{x})).sum())'
    rivals = (
        f'print((df["{label}"]=="{group}").sum())',
        f'print(((df["{label}"]=="{group}")&(df["{column}"]<={x})).sum())',
    )
    return Draft(r.choice(wording), (group, column, x), (look(c.facts["file"]), second), rivals=rivals)


def tumour_mean(r: Random, c: Capsule) -> Draft:
    """Mean of a measurement over tumours with another one above a threshold; 2 decimals, 3 for small numbers."""
    table = c.tables[c.facts["file"]]
    by, column = r.sample(c.facts["columns"], 2)
    x = _between(r, table[by])
    places = 2 if table[column].mean() >= 5 else 3
    wording = (
        f"What is the mean {column} of tumours with {by} above {x} ({places} decimals)?",
        f"Among tumours with {by} > {x}, what is the mean {column} ({places} decimals)?",
        f"Give the mean {column} over the tumours with {by} above {x}, {places} decimals.",
    )
    second = f'print(round(df[df["{by}"]>{x}]["{column}"].mean(),{places}))'
    rivals = (
        f'print(round(df["{column}"].mean(),{places}))',
        f'print(round(df[df["{by}"]<={x}]["{column}"].mean(),{places}))',
    )
    cells = (look(c.facts["file"]), second)
    return Draft(r.choice(wording), (by, x, column), cells, "range_verifier", places, rivals)


def diabetes_pearson(r: Random, c: Capsule) -> Draft:
    """Pearson correlation of two columns over patients with a third above a threshold."""
    a, b, by = r.sample(c.facts["columns"], 3)
    x = _between(r, c.tables[c.facts["file"]][by])
    wording = (
        f"What is the Pearson correlation of {a} and {b} in patients with {by} above {x} (2 decimals)?",
        f"Among patients with {by} > {x}, give the Pearson correlation of {a} and {b}, 2 decimals.",
        f"For {by} above {x}, how strong is the Pearson correlation of {a} with {b} (2 decimals)?",
    )
    second = f'd=df[df["{by}"]>{x}]\nprint(round(d["{a}"].corr(d["{b}"],method="pearson"),2))'
    rivals = (f'print(round(df["{a}"].corr(df["{b}"],method="pearson"),2))',)
    cells = (look(c.facts["file"]), second)
    return Draft(r.choice(wording), (*sorted((a, b)), by, x), cells, "range_verifier", 2, rivals)


def diabetes_count(r: Random, c: Capsule) -> Draft:
    """Patients with a column above a threshold."""
    column = r.choice(c.facts["columns"])
    x = _between(r, c.tables[c.facts["file"]][column])
    wording = (
        f"How many patients have {column} above {x}?",
        f"What number of patients has {column} > {x}?",
        f"Count the patients with {column} above {x}.",
    )
    rivals = (f'print((df["{column}"]<={x}).sum())',)
    cells = (look(c.facts["file"]), f'print((df["{column}"]>{x}).sum())')
    return Draft(r.choice(wording), (column, x), cells, rivals=rivals)


def heart_median(r: Random, c: Capsule) -> Draft:
    """Median survival of patients above an age whose death was observed."""
    x = _between(r, heart()["age"])
    wording = (
        f"What is the median survival of patients with age above {x} and censors 1?",
        f"Among patients with age > {x} and censors 1, what is the median survival?",
        f"Give the median survival at age above {x} with censors 1.",
    )
    second = f'print(df[(df["age"]>{x})&(df["censors"]==1)]["survival"].median())'
    rivals = (f'print(df[df["age"]>{x}]["survival"].median())', 'print(df[df["censors"]==1]["survival"].median())')
    return Draft(r.choice(wording), (x,), (look(c.facts["file"]), second), rivals=rivals)


FAMILIES = (
    Family("pbmc_mean", "mean of a gene in a cell type, pbmc68k (.h5ad)", PBMC, pbmc_mean),
    Family("pbmc_count", "cells of a type with a gene above a threshold, pbmc68k (.h5ad)", PBMC, pbmc_count),
    Family("tumour_mean", "mean of a measurement above a threshold of another, breast cancer", TUMOURS, tumour_mean),
    Family("tumour_count", "tumours of a diagnosis above a threshold, breast cancer", TUMOURS, group_count),
    Family(
        "diabetes_pearson",
        "Pearson correlation of two columns above a threshold of a third, diabetes",
        DIABETES,
        diabetes_pearson,
    ),
    Family("diabetes_count", "patients above a threshold, diabetes", DIABETES, diabetes_count),
    Family("iris_count", "irises of a species above a threshold", IRIS, group_count),
    Family("heart_median", "median survival above an age, heart transplants", HEART, heart_median),
)
