import os
import stat
import struct
import zipfile

import pytest

from nbagent.errors import TaskFormatError
from nbagent_bixbench.archive import CapsuleLimits
from nbagent_bixbench.capsule import unpack

DATA, NOTEBOOK = "CapsuleData-u", "CapsuleNotebook-u"


def zipped(tmp_path, entries, name="CapsuleFolder-u.zip"):
    path = tmp_path / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return path


def held(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def entry(name, mode=0o100644):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_a_strict_umask_leaves_the_data_open_to_sandboxes(tmp_path):
    path = zipped(tmp_path, [(f"{DATA}/sub/deep/big.csv", "a"), (f"{NOTEBOOK}/x.ipynb", "{}")])
    before = os.umask(0o077)
    try:
        data = unpack(path, tmp_path / "cache").data
    finally:
        os.umask(before)
    modes = {place.name: stat.S_IMODE(place.stat().st_mode) for place in (data.parent, data, *data.rglob("*"))}
    assert modes == {data.parent.name: 0o755, "data": 0o755, "sub": 0o755, "deep": 0o755, "big.csv": 0o444}


def test_data_and_notebooks_are_kept_apart(tmp_path):
    path = zipped(
        tmp_path,
        [
            (f"{DATA}/counts.csv", "a"),
            (f"{DATA}/sub/deep.tsv", "b"),
            (f"{DATA}/Data/inner.tsv", "b"),
            (f"{NOTEBOOK}/x_executed.ipynb", "{}"),
            (f"{NOTEBOOK}/table.csv", "the expert's result"),
            ("CapsuleNotebook-second/y.ipynb", "{}"),
        ],
    )
    capsule = unpack(path, tmp_path / "cache")
    assert held(capsule.data) == ["Data/inner.tsv", "counts.csv", "sub/deep.tsv"]
    assert held(capsule.notebooks) == [
        "CapsuleNotebook-second/y.ipynb",
        f"{NOTEBOOK}/table.csv",
        f"{NOTEBOOK}/x_executed.ipynb",
    ]


@pytest.mark.parametrize(
    "leak",
    [
        "notes.ipynb",
        "sub/deep/notes.IPYNB",
        "analysis.Rmd",
        "report.html",
        "page.HTM",
        "paper.qmd",
        ".ipynb_checkpoints/a.csv",
    ],
)
def test_nothing_that_may_hold_answers_reaches_the_data_folder(tmp_path, leak):
    path = zipped(tmp_path, [(f"{DATA}/counts.csv", "a"), (f"{DATA}/{leak}", "the answer is 42"), ("stray.txt", "42")])
    capsule = unpack(path, tmp_path / "cache")
    assert held(capsule.data) == ["counts.csv"]


@pytest.mark.parametrize("data", [f"CapsuleFolder-u/{DATA}", "Data", "wrapped/InputData"])
def test_the_data_folder_is_found_inside_one_wrapping_folder_and_by_part_of_its_name(tmp_path, data):
    path = zipped(tmp_path, [(f"{data}/counts.csv", "a"), (f"{data}/RawData/b.csv", "b")])
    assert held(unpack(path, tmp_path / "cache").data) == ["RawData/b.csv", "counts.csv"]


def test_a_capsule_is_unpacked_once_and_shared(tmp_path):
    path = zipped(tmp_path, [(f"{DATA}/counts.csv", "a")])
    first = unpack(path, tmp_path / "cache")
    before = (first.data / "counts.csv").stat().st_ino
    assert unpack(path, tmp_path / "cache") == first
    assert (first.data / "counts.csv").stat().st_ino == before
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_two_zips_with_other_content_do_not_meet_in_the_cache(tmp_path):
    one = zipped(tmp_path, [(f"{DATA}/counts.csv", "a")], "one.zip")
    other = zipped(tmp_path, [(f"{DATA}/counts.csv", "b")], "other.zip")
    assert unpack(one, tmp_path / "cache").data != unpack(other, tmp_path / "cache").data


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (entry("/etc/passwd"), "absolute or unusable path"),
        (entry("C:/x.csv"), "absolute or unusable path"),
        (entry(f"{DATA}\\x.csv"), "absolute or unusable path"),
        (entry(f"{DATA}/../../x.csv"), "leads out of the capsule"),
        (entry("../x.csv"), "leads out of the capsule"),
        (entry(f"{DATA}/link", stat.S_IFLNK | 0o777), "is a link; capsules hold plain files"),
        (entry(f"{DATA}/pipe", stat.S_IFIFO | 0o644), "is not a plain file"),
        (entry(f"{DATA}/device", stat.S_IFCHR | 0o644), "is not a plain file"),
    ],
)
def test_unsafe_entries_are_refused_and_nothing_is_written(tmp_path, bad, message):
    path = zipped(tmp_path, [(f"{DATA}/counts.csv", "a"), (bad, "/etc/passwd")])
    with pytest.raises(TaskFormatError) as caught:
        unpack(path, tmp_path / "cache")
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_a_missing_zip_says_where_it_belongs(tmp_path):
    with pytest.raises(TaskFormatError, match="capsule not found; it belongs beside the file of questions"):
        unpack(tmp_path / "none.zip", tmp_path / "cache")


def test_a_missing_data_folder_is_an_error(tmp_path):
    path = zipped(tmp_path, [(f"{NOTEBOOK}/x.ipynb", "{}"), ("counts.csv", "a")])
    with pytest.raises(TaskFormatError, match="has no data folder; a capsule holds a folder CapsuleData-<uuid>"):
        unpack(path, tmp_path / "cache")


def test_two_data_folders_are_an_error(tmp_path):
    path = zipped(tmp_path, [("CapsuleData-a/x.csv", "a"), ("CapsuleData-b/x.csv", "b")])
    with pytest.raises(TaskFormatError, match="several data folders: CapsuleData-a, CapsuleData-b"):
        unpack(path, tmp_path / "cache")


def truncated(data):
    return data[: len(data) // 2]


def with_wrong_bytes(data):
    place = data.index(b"counts.csv") + len(b"counts.csv")
    return data[:place] + bytes(byte ^ 0xFF for byte in data[place : place + 8]) + data[place + 8 :]


def encrypted(data):
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.index(signature) + at
        data = data[:place] + struct.pack("<H", 1) + data[place + 2 :]
    return data


def with_unknown_compression(data):
    for signature, at in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        place = data.index(signature) + at
        data = data[:place] + struct.pack("<H", 77) + data[place + 2 :]
    return data


@pytest.mark.parametrize(
    "broken", [truncated, with_wrong_bytes, encrypted, with_unknown_compression, lambda _: b"text"]
)
def test_a_broken_zip_is_one_line_and_leaves_nothing(tmp_path, broken):
    path = zipped(tmp_path, [(f"{DATA}/counts.csv", "gene,count\n" * 50)])
    path.write_bytes(broken(path.read_bytes()))
    with pytest.raises(TaskFormatError) as caught:
        unpack(path, tmp_path / "cache")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("clash", [f"{DATA}/counts.csv", f"{DATA}/counts.csv/inner"])
def test_entries_that_clash_are_an_error(tmp_path, clash):
    path = zipped(tmp_path, [(f"{DATA}/counts.csv", "a"), (clash, "b")])
    with pytest.raises(TaskFormatError, match="cannot be unpacked"):
        unpack(path, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (CapsuleLimits(files=2), "has 3 entries, more than 2"),
        (CapsuleLimits(bytes=1000), "unpacks to 100002 bytes, more than 1000"),
        (CapsuleLimits(ratio=10, ratio_from=1000), "times its size, more than 10"),
    ],
)
def test_limits_hold(tmp_path, limits, message):
    path = zipped(tmp_path, [(f"{DATA}/{name}", data) for name, data in (("a", "a"), ("b", "b"), ("c", "0" * 100_000))])
    with pytest.raises(TaskFormatError, match=message):
        unpack(path, tmp_path / "cache", limits)
    assert not (tmp_path / "cache").exists()


def test_a_size_that_lies_does_not_pass_the_limit(tmp_path):
    path = zipped(tmp_path, [(f"{DATA}/zeros", "0" * 100_000)])
    data = path.read_bytes()
    place = data.index(b"PK\x01\x02") + 24
    path.write_bytes(data[:place] + struct.pack("<I", 10) + data[place + 4 :])
    with pytest.raises(TaskFormatError, match="broken zip"):
        unpack(path, tmp_path / "cache", CapsuleLimits(bytes=1000))
    assert not list((tmp_path / "cache").glob("*"))
