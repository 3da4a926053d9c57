"""The words of question families: a capsule drawn from a seed, and drafts of questions over it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal

import pandas as pd

EvalMode = Literal["str_verifier", "range_verifier"]


@dataclass(frozen=True, slots=True)
class Capsule:
    """Data files that questions are asked about, not yet written as bytes."""

    tables: Mapping[str, pd.DataFrame]
    """File name to table; `.csv` files are written with their index, `.h5ad` files as AnnData: float columns become
    genes, the rest the table of cells."""
    facts: Mapping[str, Any]
    """What the families need to know to ask: names of columns, groups, samples."""
    paper: str = "drawn from a seed by nbagent"
    """Where the data come from."""
    real: bool = False
    """True for data that were measured."""

    def content(self) -> str:
        """SHA-256 (hex) of the tables' content and file names."""
        digest = hashlib.sha256()
        for name, table in sorted(self.tables.items()):
            digest.update(f"{name}\n{table.to_csv()}\n".encode())
        return digest.hexdigest()

    def files(self) -> dict[str, bytes]:
        """File name to bytes; the same tables always give the same bytes."""
        return {
            name: _h5ad(table) if name.endswith(".h5ad") else table.to_csv().encode()
            for name, table in sorted(self.tables.items())
        }


@dataclass(frozen=True, slots=True)
class Draft:
    """A question over a capsule, with the reference notebook that computes its key."""

    question: str
    """The text given to the agent."""
    params: tuple[str, ...]
    """What the question asks, canonically: two drafts of one family that ask the same have equal params."""
    cells: tuple[str, str]
    """The reference notebook: load and look; compute and print only the answer."""
    eval_mode: EvalMode = "str_verifier"
    """`str_verifier` for names and exact numbers, `range_verifier` for rounded ones."""
    decimals: int = 0
    """Decimals the question asks for; the range is one unit of the last decimal either side."""
    rivals: tuple[str, ...] = ()
    """Plausible wrong second cells. Each must print something else than the reference, or the draw is degenerate;
    what they print serves as distractors."""
    twins: tuple[str, ...] = ()
    """Second cells that must print the same, such as the same search in reversed order: unequal means a tie."""
    choices: tuple[str, ...] = field(default=())
    """Other names the answer could be; the distractors of a question about names."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of data: how a capsule is drawn."""

    name: str
    """E.g. `counts`."""
    draw: Callable[[Random], Capsule]
    """Capsule from a seeded generator."""
    real: bool = False
    """True for measured data, where many capsules share rows."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of questions over one kind of data."""

    name: str
    """E.g. `fold_change`."""
    about: str
    """One line for `nbagent tasks list-families`."""
    kind: Kind
    """The data it asks about."""
    ask: Callable[[Random, Capsule], Draft]
    """Draft from a seeded generator and a capsule."""


def look(file: str) -> str:
    """The first cell of every reference notebook over a CSV: read it and print its columns."""
    return f'import pandas as pd\ndf=pd.read_csv("{file}",index_col=0)\nprint(list(df))'


def _h5ad(table: pd.DataFrame) -> bytes:
    # Late: anndata costs half a second that `nbagent --help` should not pay.
    import anndata
    import h5py

    genes = [name for name in table if table[name].dtype.kind == "f"]
    obs = table.drop(columns=genes)
    obs.index = obs.index.astype(str)
    data = anndata.AnnData(X=table[genes].to_numpy(dtype="float32"), obs=obs, var=pd.DataFrame(index=pd.Index(genes)))
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as store:
        anndata.io.write_elem(store, "/", data)
    return buffer.getvalue()
