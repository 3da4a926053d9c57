"""The scientific stack: arrays, tables, files, models, single cells, plots, several processes and threads."""

import io
import sqlite3
import warnings

import matplotlib as mpl
import numpy as np
import pandas as pd

mpl.use("agg")
warnings.simplefilter("ignore")

import anndata  # noqa: E402
import igraph  # noqa: E402
import matplotlib.pyplot as plt  # noqa: E402
import scanpy as sc  # noqa: E402
import statsmodels.api as sm  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402
from lifelines import KaplanMeierFitter  # noqa: E402
from scipy import linalg, stats  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.ensemble import RandomForestClassifier  # noqa: E402

rng = np.random.default_rng(0)
table = pd.DataFrame(rng.poisson(2, (300, 200)).astype(float), columns=[f"g{i}" for i in range(200)])

table.to_csv("t.csv.gz")
table.to_parquet("t.parquet")
table.iloc[:20, :5].to_excel("t.xlsx")
assert pd.read_csv("t.csv.gz", index_col=0).shape == pd.read_parquet("t.parquet").shape
assert pd.read_excel("t.xlsx", index_col=0).shape == (20, 5)
with sqlite3.connect("t.db") as db:
    db.execute("pragma journal_mode=wal")
    table.to_sql("t", db)
np.save("t.npy", table)
assert np.load("t.npy", mmap_mode="r").shape == table.shape

linalg.svd(rng.normal(size=(400, 400)))
stats.mannwhitneyu(table["g0"], table["g1"])
sm.OLS(table["g0"], sm.add_constant(table[["g1", "g2"]])).fit().summary()
KMeans(3, n_init=2).fit(table)
RandomForestClassifier(20, n_jobs=2).fit(table, table["g0"] > 2)
Parallel(n_jobs=2)(delayed(abs)(-i) for i in range(4))
KaplanMeierFitter().fit(rng.exponential(size=50))

cells = anndata.AnnData(table)
sc.pp.normalize_total(cells)
sc.pp.log1p(cells)
sc.pp.pca(cells, n_comps=10)
sc.pp.neighbors(cells)
sc.tl.umap(cells)
sc.tl.leiden(cells, flavor="igraph", n_iterations=2)
sc.tl.rank_genes_groups(cells, "leiden")
cells.write_h5ad("t.h5ad")
assert anndata.read_h5ad("t.h5ad", backed="r").n_obs == 300
igraph.Graph.Erdos_Renyi(50, 0.1).community_multilevel()

figure, axes = plt.subplots()
axes.hist(table["g0"])
figure.savefig(io.BytesIO(), format="png")
figure.savefig("t.pdf")
