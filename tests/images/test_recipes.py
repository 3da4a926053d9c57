"""Recipes: all of them pinned, and their image's name and age told apart."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from nbagent_images import RECIPES, Recipe
from nbagent_images.lock import HEAD
from nbagent_images.wheels import pins, requirement

EACH = pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)


@EACH
def test_every_python_package_has_a_version_and_a_hash(recipe: Recipe) -> None:
    lines = recipe.lock.read_text().removeprefix(HEAD.format(recipe.requirements.name)).splitlines()
    assert len(lines) > 20
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line)] == []


@EACH
def test_the_lock_holds_what_was_asked_for(recipe: Recipe) -> None:
    asked = [line.lower().replace("_", "-") for line in recipe.requirements.read_text().split()]
    assert set(asked) <= {pin.replace("_", "-") for pin in pins(recipe.lock)}


@EACH
def test_debian_packages_have_upstream_versions(recipe: Recipe) -> None:
    unpinned = [line for line in recipe.packages() if "=" not in line]
    assert set(unpinned) <= {"fonts-dejavu-core", "procps", "unzip"}


def test_full_holds_what_the_questions_expect() -> None:
    names = {line.partition("=")[0] for line in RECIPES["full"].packages()}
    r = "tidyverse seurat survival lme4 ape phangorn readxl data.table".split()
    assert names >= {f"r-cran-{name}" for name in r} | {f"r-bioc-{name}" for name in ("deseq2", "edger", "limma")}
    assert names >= set("samtools bcftools bedtools bwa fastp trimmomatic mafft iqtree".split())


def test_the_digest_changes_with_what_goes_in() -> None:
    python = RECIPES["python"]
    assert python.digest() == replace(python, about="other words").digest()
    assert len({python.digest(), replace(python, python="kernel").digest(), RECIPES["full"].digest()}) == 3


def test_a_wheel_s_requirement() -> None:
    assert requirement(Path("/w/scikit_learn-1.9.1-cp311-cp311-manylinux_2_28_x86_64.whl")) == "scikit_learn==1.9.1"
