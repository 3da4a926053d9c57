from itertools import pairwise

import pytest

from nbagent.errors import UsageError
from nbagent_bixbench.draw import BUCKETS, SEED_RANGE, draft_tasks
from nbagent_bixbench.families import FAMILIES

SPLITS = ("train", "validation", "heldout")


@pytest.fixture(scope="module")
def sets():
    return {split: draft_tasks(3 * len(FAMILIES), seed=2, split=split) for split in SPLITS}


@pytest.mark.slow
def test_splits_share_no_question_and_no_drawn_capsule(sets):
    pairs = {split: {(task.question, task.content) for task in tasks} for split, tasks in sets.items()}
    capsules = {split: {task.content for task in tasks if not task.real} for split, tasks in sets.items()}
    asked = {split: {(task.family, task.params) for task in tasks if task.real} for split, tasks in sets.items()}
    for one, other in (("train", "validation"), ("train", "heldout"), ("validation", "heldout")):
        assert not pairs[one] & pairs[other]
        assert not capsules[one] & capsules[other]
        assert not asked[one] & asked[other]


def test_disjointness_holds_for_every_seed_because_the_buckets_and_seed_ranges_are_disjoint():
    assert sorted(x for buckets in BUCKETS.values() for x in buckets) == list(range(10))
    starts = sorted(SEED_RANGE.values())
    # A draw's seed is start + (seed << 32) + counter with seed < 2**31 and counter < 2**32.
    assert all(after - before >= 1 << 64 for before, after in pairwise(starts))


@pytest.mark.slow
def test_families_come_in_turn_and_some_questions_share_a_capsule(sets):
    tasks = sets["train"]
    assert [task.family for task in tasks] == list(FAMILIES) * 3
    by_capsule: dict[int, set[str]] = {}
    sizes: dict[int, int] = {}
    for task in tasks:
        by_capsule.setdefault(task.capsule, set()).add(task.content)
        sizes[task.capsule] = sizes.get(task.capsule, 0) + 1
    assert all(len(contents) == 1 for contents in by_capsule.values())
    assert max(sizes.values()) in (2, 3, 4)
    assert min(sizes.values()) == 1


@pytest.mark.slow
def test_questions_vary_with_the_seed_in_data_and_parameters(sets):
    by_family: dict[str, set[tuple[str, ...]]] = {}
    for task in sets["train"]:
        by_family.setdefault(task.family, set()).add((*task.params, task.content))
    assert all(len(different) == 3 for different in by_family.values())


@pytest.mark.slow
def test_the_same_arguments_give_the_same_tasks():
    one, other = (draft_tasks(12, seed=5, split="heldout", families=["top_gene", "ti_tv", "pbmc_mean"]) for _ in "ab")
    assert one == other
    assert one != draft_tasks(12, seed=6, split="heldout", families=["top_gene", "ti_tv", "pbmc_mean"])


def test_progress_adds_up():
    done: list[int] = []
    draft_tasks(9, seed=1, families=["welch_bh", "genes_kept"], progress=done.append)
    assert sum(done) == 9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "unknown split 'test'; there are: train, validation, heldout"),
        ({"families": ["welsh"]}, "unknown family 'welsh'; there are: library_size"),
        ({"seed": -1}, "seed -1 is not between"),
    ],
)
def test_bad_arguments_give_one_line(arguments, message):
    with pytest.raises(UsageError, match=message):
        draft_tasks(**{"n": 3, "seed": 0} | arguments)
