"""Libraries with threads of their own: after each was used, a branch uses it again, or is refused. Never a hang."""

from __future__ import annotations

import pytest
from kernel_probes import text

from nbagent_kernels import CannotBranch, SessionSpec

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

SETUP = """
import warnings; warnings.simplefilter('ignore')
import numpy as np, pandas as pd, anndata as ad, scanpy as sc
cells = ad.AnnData(np.random.default_rng(0).random((300, 50)).astype('float32'))
"""
STEPS = {
    "scanpy scale": "copy = cells.copy(); sc.pp.scale(copy); print(copy.X.sum())",
    "scanpy PCA": "sc.pp.pca(cells, n_comps=10); print(cells.obsm['X_pca'].std())",
    "scanpy neighbors": "sc.pp.neighbors(cells, n_neighbors=10); print(cells.obsp['distances'].sum())",
    "UMAP": "sc.tl.umap(cells, maxiter=20); print(cells.obsm['X_umap'].std())",
    "Leiden, igraph": "sc.tl.leiden(cells, flavor='igraph', n_iterations=2); print(list(cells.obs.leiden))",
    "scikit-learn KMeans": (
        "from sklearn.cluster import KMeans\nprint(KMeans(4, n_init=2, random_state=0).fit(cells.X).inertia_)"
    ),
    "scikit-learn forest, two jobs": (
        "from sklearn.ensemble import RandomForestClassifier\n"
        "print(RandomForestClassifier(10, n_jobs=2, random_state=0).fit(cells.X, np.arange(300) % 2).predict(cells.X))"
    ),
    "numba in parallel": (
        "import numba\n@numba.njit(parallel=True)\ndef total(a):\n    s = 0.0\n    for i in numba.prange(a.size):\n"
        "        s += a[i]\n    return s\nprint(total(np.ones(10**5)))"
    ),
    "Arrow's threads": (
        "pd.DataFrame({'a': np.arange(10**5)}).to_parquet('a.parquet'); print(pd.read_parquet('a.parquet').a.sum())"
    ),
    "progress bars": "import sys\nfrom tqdm import tqdm\nprint(sum(tqdm(range(9), file=open('bar', 'w'))))",
}
REFUSED = {
    "an OpenMP pool is running": (
        "from sklearn.cluster import KMeans\nfrom threadpoolctl import threadpool_limits\n"
        "with threadpool_limits(2, user_api='openmp'):\n    KMeans(4, n_init=1).fit(np.random.rand(20000, 4))"
    ),
    "numba runs on omp threads": (
        "import numba\nnumba.config.THREADING_LAYER = 'omp'\n@numba.njit(parallel=True)\ndef total(a):\n    s = 0.0\n"
        "    for i in numba.prange(a.size):\n        s += a[i]\n    return s\ntotal(np.ones(10**5))"
    ),
    "a thread of .*torch": "import torch\ntorch.set_num_threads(2)\nx = torch.rand(2000, 2000)\n(x @ x).sum()",
}


@pytest.fixture
def backend():
    return "fork"


async def test_libraries_work_on_in_the_branch_and_in_its_parent(opened, branched):
    session = await opened(SessionSpec())
    assert (await session.execute(SETUP, timeout=60)).status == "ok"
    for step, code in STEPS.items():
        first = await session.execute(code, timeout=300)
        assert first.status == "ok", (step, first)
        child = await branched(session)
        grandchild = await branched(child)
        for one in (grandchild, child, session):
            again = await one.execute(code, timeout=60)
            assert (again.status, text(again.outputs)) == ("ok", text(first.outputs)), step
        await grandchild.close()
        await child.close()


@pytest.mark.parametrize("why", REFUSED)
async def test_pools_that_would_not_survive_are_refused(opened, why):
    session = await opened(SessionSpec())
    assert (await session.execute(f"import numpy as np\n{REFUSED[why]}", timeout=120)).status == "ok"
    with pytest.raises(CannotBranch, match=why):
        await session.branch()
    assert (await session.execute(f"import numpy as np\n{REFUSED[why]}", timeout=60)).status == "ok"
