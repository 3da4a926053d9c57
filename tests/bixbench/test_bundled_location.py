import pytest

from nbagent.errors import UsageError
from nbagent_bixbench.bundled import open_source


def test_a_location_says_split_number_seed_and_families(tmp_path):
    location = "bundled:validation?n=3&seed=2&families=ti_tv,dose_mean"
    source = open_source(location, tmp_path)
    assert [task.family for task in source.tasks()] == ["ti_tv", "dose_mean", "ti_tv"]
    assert source.fingerprint()["location"] == location


def test_a_set_is_made_once_and_another_location_makes_another(tmp_path):
    first = open_source("bundled:train?n=2&families=ti_tv", tmp_path).fingerprint()
    files = sorted(tmp_path.rglob("*.zip"))
    assert open_source("bundled:train?n=2&families=ti_tv", tmp_path).fingerprint() == first
    assert sorted(tmp_path.rglob("*.zip")) == files
    other = open_source("bundled:train?n=2&seed=1&families=ti_tv", tmp_path).fingerprint()
    assert other["sha256"] != first["sha256"]


def test_without_a_cache_the_set_goes_with_the_source():
    source = open_source("bundled:?n=1&families=ti_tv")
    capsule = source.tasks()[0].capsule
    assert capsule.is_dir()
    del source
    assert not capsule.exists()


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("bundled:train?m=3", "unknown option 'm'; there are: n, seed, families"),
        ("bundled:train?n=many", "n and seed are whole numbers"),
        ("bundled:test", "unknown split 'test'"),
    ],
)
def test_bad_locations_give_one_line(location, message):
    with pytest.raises(UsageError, match=message):
        open_source(location)


def test_other_locations_are_left_alone():
    assert open_source("somewhere") is None
