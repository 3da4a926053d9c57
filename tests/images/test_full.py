"""The full image, where somebody built it (`make image-full`): all that the questions expect loads and runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nbagent_images import Image, ImageMissing, require

pytestmark = [pytest.mark.docker, pytest.mark.slow]

R = "DESeq2 edgeR limma tximport ComplexHeatmap org.Hs.eg.db tidyverse Seurat survival survminer lme4 lmerTest emmeans"
MORE_R = "ape phangorn vegan readxl openxlsx data.table pheatmap ggrepel MASS IRkernel"


@pytest.fixture
def full(client: Any) -> Image:
    try:
        return require("full", client)
    except ImageMissing as error:
        pytest.skip(str(error))


def test_r_packages_load(full: Image, run: Callable[..., tuple[int, str]]) -> None:
    code = f"for (name in strsplit('{R} {MORE_R}', ' ')[[1]]) suppressMessages(library(name, character.only = TRUE))"
    status, printed = run(full.id, ["Rscript", "-e", code])
    assert status == 0, printed


def test_deseq2_works(full: Image, run: Callable[..., tuple[int, str]]) -> None:
    code = "library(DESeq2); x <- results(DESeq(makeExampleDESeqDataSet(n = 200, m = 6))); stopifnot(nrow(x) == 200)"
    status, printed = run(full.id, ["Rscript", "-e", code])
    assert status == 0, printed


def test_python_s_stack_loads(full: Image, run: Callable[..., tuple[int, str]]) -> None:
    status, printed = run(full.id, ["python", "-c", "import scanpy, pydeseq2, gseapy, Bio, lifelines, leidenalg"])
    assert status == 0, printed


@pytest.mark.parametrize(
    "command",
    [
        "samtools --version",
        "bcftools --version",
        "tabix --version",
        "bedtools --version",
        "bwa 2>&1 | grep Version",
        "fastp --version",
        "TrimmomaticSE -version",
        "printf '>a\\nACGT\\n>b\\nACGA\\n' > f && mafft --quiet f",
        "printf '>a\\nACGT\\n>b\\nACGA\\n>c\\nACGG\\n>d\\nTCGG\\n' > f && iqtree2 -s f -m JC --quiet && cat f.treefile",
    ],
)
def test_programs_run(full: Image, run: Callable[..., tuple[int, str]], command: str) -> None:
    status, printed = run(full.id, ["sh", "-c", command])
    assert status == 0, printed
    assert printed
