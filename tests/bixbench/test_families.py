import re
from random import Random

import pytest

from nbagent.tasks import Outcome
from nbagent_bixbench.families import FAMILIES
from nbagent_bixbench.families.words import CONDITIONS, FILES, GENES
from nbagent_bixbench.grade import grade

HANDFUL = range(6)


def drafts(name):
    family = FAMILIES[name]
    for seed in HANDFUL:
        r = Random(seed)
        capsule = family.kind.draw(r)
        yield capsule, family.ask(r, capsule)


def test_there_are_enough_families_over_drawn_and_over_real_data():
    kinds = {family.kind.name for family in FAMILIES.values() if not family.kind.real}
    assert kinds == {"counts", "variants", "doses", "survival", "expression", "cells"}
    assert sum(not family.kind.real for family in FAMILIES.values()) >= 14
    assert sum(family.kind.real for family in FAMILIES.values()) >= 5


def test_a_small_set_has_all_kinds_of_data():
    kinds = {family.kind.name for family in FAMILIES.values()}
    assert {family.kind.name for family in list(FAMILIES.values())[: len(kinds)]} == kinds


def test_pools_are_words_without_digits_and_without_repeats():
    for pool in (CONDITIONS, FILES, GENES):
        assert len(pool) == len(set(pool))
        assert all(re.fullmatch("[A-Za-z]+", word) for word in pool)


@pytest.mark.parametrize("name", FAMILIES)
def test_questions_are_short_and_vary_in_wording(name):
    questions = [draft.question for _, draft in drafts(name)]
    assert all(len(question.split()) <= 25 for question in questions)
    assert len(set(questions)) > 1


@pytest.mark.parametrize("name", FAMILIES)
def test_notebooks_are_two_short_cells_that_print(name):
    for _, draft in drafts(name):
        first, second = draft.cells
        assert first.startswith("import ")
        assert first.endswith("print(list(df))")
        assert second.splitlines()[-1].startswith("print(")
        assert len(first.splitlines()) <= 4
        assert len(second.splitlines()) <= 4


@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_says_what_decides_between_its_family_and_its_neighbours(name):
    for _, draft in drafts(name):
        for word in re.findall(r"round\(.*,(\d)\)\)", draft.cells[1]):
            assert f"{word} decimal" in draft.question
        if "corr(" in draft.cells[1]:
            method = re.search(r'method="(\w+)"', draft.cells[1]).group(1)
            assert method in draft.question.lower()
        if "false_discovery_control" in draft.cells[1]:
            assert "BH" in draft.question
        elif "stats." in draft.cells[1]:
            assert "raw p" in draft.question or "raw " in draft.question
        if "mannwhitneyu" in draft.cells[1]:
            assert "Mann-Whitney" in draft.question
        if "ttest_ind" in draft.cells[1]:
            assert "Welch" in draft.question
        if "+1\n" in draft.cells[1]:
            assert "+1" in draft.question or "pseudocount 1" in draft.question


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_seed_gives_the_same_bytes(name):
    family = FAMILIES[name]
    one, other = (family.kind.draw(Random(5)) for _ in range(2))
    assert one.files() == other.files()
    assert one.content() == other.content()
    assert family.ask(Random(6), one) == family.ask(Random(6), other)


def test_real_capsules_hold_the_rows_that_the_packages_ship():
    from nbagent_bixbench.families import real

    assert real.pbmc().shape[0] == 700
    assert real.tumours().shape == (569, 21)
    assert real.tumours()["diagnosis"].value_counts().to_dict() == {"benign": 357, "malignant": 212}
    assert real.diabetes().shape[0] == 442
    assert real.iris()["species"].value_counts().to_dict() == {"setosa": 50, "versicolor": 50, "virginica": 50}
    assert real.heart().shape == (69, 3)


def test_every_family_is_correct_with_its_key_and_incorrect_with_each_distractor(drawn):
    assert [task.family for task in drawn] == list(FAMILIES)
    for task in drawn:
        assert grade(task.answer, task.ideal, task.eval_mode).outcome is Outcome.CORRECT, task
        assert len(set(task.distractors)) == 3
        for wrong in task.distractors:
            assert grade(wrong, task.ideal, task.eval_mode).outcome is Outcome.INCORRECT, (task, wrong)


def test_what_the_model_must_read_and_write_is_short(drawn):
    for task in drawn:
        assert len(task.outputs[0]) <= 120, task
        assert len(task.answer) <= 12, task
        assert task.outputs[1] == task.answer + "\n"
