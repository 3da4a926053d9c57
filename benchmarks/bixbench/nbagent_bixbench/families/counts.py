"""Questions over bulk RNA counts with a sample sheet."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pandas as pd

from nbagent_bixbench.families.draft import Capsule, Draft, Family, Kind
from nbagent_bixbench.families.words import CONDITIONS, GENES, file_name, names

SHEET = "samples.csv"


def draw(r: Random) -> Capsule:
    """Negative-binomial-like counts of 12–20 genes in two conditions of 4–5 samples; about half of the genes differ."""
    noise = np.random.default_rng(r.getrandbits(64))
    conditions = names(r, CONDITIONS, 2)
    genes = names(r, GENES, r.randint(12, 20))
    each = r.randint(4, 5)
    labels = conditions * each
    r.shuffle(labels)
    prefix = r.choice("spmr")
    samples = [f"{prefix}{i + 1}" for i in range(2 * each)]
    base = noise.gamma(2.0, 40.0, len(genes)) + 5
    change = np.exp(noise.normal(0, 0.9, len(genes)) * (noise.random(len(genes)) < 0.6))
    mean = np.where(np.array(labels)[None, :] == conditions[0], base[:, None], (base * change)[:, None])
    counts = noise.poisson(mean * noise.gamma(20.0, 1 / 20.0, mean.shape))
    table = pd.DataFrame(counts, index=pd.Index(genes, name="gene"), columns=samples)
    sheet = pd.DataFrame({"condition": labels}, index=pd.Index(samples, name="sample"))
    file = file_name(r)
    return Capsule({file: table, SHEET: sheet}, {"file": file, "conditions": conditions})


COUNTS = Kind("counts", draw)


def _cell(file: str) -> str:
    return (
        f'import pandas as pd\ndf=pd.read_csv("{file}",index_col=0)\n'
        f's=pd.read_csv("{SHEET}",index_col=0)["condition"]\nprint(list(df))'
    )


def _parts(r: Random, c: Capsule) -> tuple[Any, str, str, str]:
    first, second = r.sample(c.facts["conditions"], 2)
    return c.tables[c.facts["file"]], _cell(c.facts["file"]), first, second


def library_size(r: Random, c: Capsule) -> Draft:
    """Sum of one sample's counts."""
    df, first, _, _ = _parts(r, c)
    x = r.choice(list(df))
    wording = (
        f"What is the library size of {x}?",
        f"What is the total count of sample {x}?",
        f"How many reads does sample {x} have in all?",
    )
    rivals = (f'print(df["{x}"].max())', f'print(len(df["{x}"]))')
    return Draft(r.choice(wording), (x,), (first, f'print(df["{x}"].sum())'), rivals=rivals)


def read_share(r: Random, c: Capsule) -> Draft:
    """One gene's percentage of a sample's counts."""
    df, first, _, _ = _parts(r, c)
    x, g = r.choice(list(df)), r.choice(list(df.index))
    wording = (
        f"What percent of the reads of {x} are {g} (1 decimal)?",
        f"In sample {x}, which percent of all counts is {g} (1 decimal)?",
        f"Give the percent of counts of {x} that come from {g}, 1 decimal.",
    )
    second = f'print(round(100*df["{x}"]["{g}"]/df["{x}"].sum(),1))'
    rivals = (f'print(round(100*df["{x}"]["{g}"]/df.loc["{g}"].sum(),1))',)
    return Draft(r.choice(wording), (x, g), (first, second), "range_verifier", 1, rivals)


def genes_above(r: Random, c: Capsule) -> Draft:
    """Genes whose mean count lies above a threshold."""
    df, first, _, _ = _parts(r, c)
    x = int(df.mean(axis=1).quantile(r.uniform(0.15, 0.85)))
    wording = (
        f"How many genes have a mean count above {x}?",
        f"What number of genes has a mean count > {x}?",
        f"Count the genes with mean count above {x}.",
    )
    rivals = (f"print((df.max(axis=1)>{x}).sum())", f"print((df.mean()>{x}).sum())")
    return Draft(r.choice(wording), (str(x),), (first, f"print((df.mean(axis=1)>{x}).sum())"), rivals=rivals)


def genes_kept(r: Random, c: Capsule) -> Draft:
    """Genes kept by a filter on counts in a number of samples."""
    df, first, _, _ = _parts(r, c)
    x, k = int(df.stack().quantile(r.uniform(0.15, 0.7))), r.randint(2, df.shape[1] - 2)
    wording = (
        f"How many genes have a count of at least {x} in at least {k} samples?",
        f"How many genes pass the filter count >= {x} in >= {k} samples?",
        f"Count the genes with counts of {x} or more in {k} or more samples.",
    )
    rivals = (f"print((df>={x}).any(axis=1).sum())", f"print((df>={x}).all(axis=1).sum())")
    second = f"print(((df>={x}).sum(axis=1)>={k}).sum())"
    return Draft(r.choice(wording), (str(x), str(k)), (first, second), rivals=rivals)


def group_mean(r: Random, c: Capsule) -> Draft:
    """Mean count of a gene in one condition."""
    df, first, a, b = _parts(r, c)
    g = r.choice(list(df.index))
    wording = (
        f"What is the mean count of {g} in {a} samples (1 decimal)?",
        f"In condition {a}, what is the mean count of {g} (1 decimal)?",
        f"Give the mean of {g} over the {a} samples, 1 decimal.",
    )
    second = f'm=df.T.groupby(s).mean()\nprint(round(m["{g}"]["{a}"],1))'
    rivals = (
        f'm=df.T.groupby(s).mean()\nprint(round(m["{g}"]["{b}"],1))',
        f'print(round(df.loc["{g}"].mean(),1))',
    )
    return Draft(r.choice(wording), (g, a), (first, second), "range_verifier", 1, rivals)


def fold_change(r: Random, c: Capsule) -> Draft:
    """Log2 fold change of a gene between conditions, pseudocount 1."""
    df, first, a, b = _parts(r, c)
    g = r.choice(list(df.index))
    wording = (
        f"What is the log2 fold change of {g} in {a} over {b} (means, pseudocount 1, 2 decimals)?",
        f"For {g}, give log2((mean {a}+1)/(mean {b}+1)) to 2 decimals.",
        f"Give the log2 fold change of {g}, mean of {a} over mean of {b}, pseudocount 1, 2 decimals.",
    )
    head = "import numpy as np\nm=df.T.groupby(s).mean()+1\n"
    second = head + f'print(round(np.log2(m["{g}"]["{a}"]/m["{g}"]["{b}"]),2))'
    rivals = (
        head + f'print(round(np.log2(m["{g}"]["{b}"]/m["{g}"]["{a}"]),2))',
        head + f'print(round(m["{g}"]["{a}"]/m["{g}"]["{b}"],2))',
    )
    return Draft(r.choice(wording), (g, a, b), (first, second), "range_verifier", 2, rivals)


def top_gene(r: Random, c: Capsule) -> Draft:
    """Gene with the largest ratio of means, pseudocount 1."""
    df, first, a, b = _parts(r, c)
    wording = (
        f"Which gene has the largest fold change of {a} over {b} (means, pseudocount 1)?",
        f"Which gene has the highest ratio (mean {a}+1)/(mean {b}+1)?",
        f"Name the gene most up in {a} over {b}, ratio of means, pseudocount 1.",
    )
    head = "m=df.T.groupby(s).mean()+1\n"
    second = head + f'print((m.loc["{a}"]/m.loc["{b}"]).idxmax())'
    rivals = (head + f'print((m.loc["{b}"]/m.loc["{a}"]).idxmax())', head + f'print(m.loc["{a}"].idxmax())')
    twins = (head + f'print((m.loc["{a}"]/m.loc["{b}"])[::-1].idxmax())',)
    return Draft(r.choice(wording), (a, b), (first, second), rivals=rivals, twins=twins, choices=tuple(df.index))


def _test(call: str, tail: str, a: str, b: str) -> str:
    groups = f'df.loc[:,s=="{a}"],df.loc[:,s=="{b}"]'
    return f"from scipy import stats\np=stats.{call.format(groups)}.pvalue\n{tail}"


def _count_test(r: Random, c: Capsule, name: str, call: str, corrected: bool) -> Draft:
    _, first, a, b = _parts(r, c)
    x = r.choice(("0.05", "0.1", "0.2") if corrected else ("0.02", "0.05", "0.1"))
    raw, bh = f"print((p<{x}).sum())", f"q=stats.false_discovery_control(p)\nprint((q<{x}).sum())"
    if corrected:
        wording = (
            f"How many genes differ between {a} and {b} with BH-adjusted {name} p below {x}?",
            f"{name} of {a} against {b} with BH correction: how many genes have adjusted p < {x}?",
            f"Count the genes with BH-adjusted p below {x} in a {name}, {a} against {b}.",
        )
    else:
        wording = (
            f"How many genes differ between {a} and {b} with raw {name} p below {x}?",
            f"{name} of {a} against {b} without correction: how many genes have raw p < {x}?",
            f"Count the genes with raw p below {x} in a {name}, {a} against {b}.",
        )
    second = _test(call, bh if corrected else raw, a, b)
    # The raw and the adjusted count must differ, so that an attempt that takes the wrong one is never right by chance.
    rivals = (_test(call, raw if corrected else bh, a, b), _test(call, f"print((p>={x}).sum())", a, b))
    params = (*sorted((a, b)), x)
    return Draft(r.choice(wording), params, (first, second), rivals=rivals)


WELCH = "ttest_ind({},axis=1,equal_var=False)"


def welch_raw(r: Random, c: Capsule) -> Draft:
    """Genes with a raw Welch p below a threshold."""
    return _count_test(r, c, "Welch t-test", WELCH, False)


def welch_bh(r: Random, c: Capsule) -> Draft:
    """Genes with a Benjamini-Hochberg-adjusted Welch p below a threshold."""
    return _count_test(r, c, "Welch t-test", WELCH, True)


def mann_whitney(r: Random, c: Capsule) -> Draft:
    """Genes with a raw Mann-Whitney p below a threshold."""
    return _count_test(r, c, "Mann-Whitney test", "mannwhitneyu({},axis=1)", False)


FAMILIES = (
    Family("library_size", "total counts of a sample", COUNTS, library_size),
    Family("read_share", "percentage of a sample's reads from a gene", COUNTS, read_share),
    Family("genes_above", "genes with a mean count above a threshold", COUNTS, genes_above),
    Family("genes_kept", "genes kept by a filter: count >= x in >= k samples", COUNTS, genes_kept),
    Family("group_mean", "mean count of a gene in a condition (sample sheet)", COUNTS, group_mean),
    Family("fold_change", "log2 fold change of a gene (sample sheet)", COUNTS, fold_change),
    Family("top_gene", "gene with the largest fold change (sample sheet)", COUNTS, top_gene),
    Family("welch_raw", "genes by raw Welch t-test p (sample sheet)", COUNTS, welch_raw),
    Family("welch_bh", "genes by BH-adjusted Welch t-test p (sample sheet)", COUNTS, welch_bh),
    Family("mann_whitney", "genes by raw Mann-Whitney p (sample sheet)", COUNTS, mann_whitney),
)
