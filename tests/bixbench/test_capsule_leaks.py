"""What may hold answers stays out of the agent's files, and the one unpacked copy stays as it was unpacked."""

import io
import json
import tarfile
import zipfile

import pytest

from nbagent.errors import TaskFormatError
from nbagent_bixbench.archive import CapsuleLimits
from nbagent_bixbench.capsule import unpack

DATA, NOTEBOOK = "CapsuleData-u", "CapsuleNotebook-u"
EXPERT = json.dumps({"cells": [], "nbformat": 4, "nbformat_minor": 5, "metadata": {"answer": "0.0231"}})
HYPOTHESIS = 'Loss of "MYC" lowers the α-diversity of the gut of old mice'


@pytest.fixture
def unpacked(tmp_path):
    def made(*entries, secrets=(), cache="cache"):
        path = tmp_path / "CapsuleFolder-u.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"{DATA}/counts.csv", "gene,a\nMYC,1\n")
            archive.writestr(f"{NOTEBOOK}/bix-1_executed.ipynb", EXPERT)
            for name, content in entries:
                archive.writestr(name, content)
        return unpack(path, tmp_path / cache, secrets=secrets)

    return made


def held(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def zipped(name, content="x"):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def tarred(name, mode="w:gz"):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode=mode) as archive:
        archive.addfile(tarfile.TarInfo(name))
    return packed.getvalue()


def named(cases):
    """An archive holds the time it was made at, so that its content as a test's name would differ between processes."""
    return pytest.mark.parametrize(("name", "content"), cases, ids=[name for name, _ in cases])


@named(
    [
        ("deep/er/solution.ipynb", EXPERT),
        ("solution.ipynb.gz", b"\x1f\x8b"),
        ("solution.html.bak", "<p>0.0231"),
        ("notes.txt", EXPERT),
        ("notes.json", "\n  " + EXPERT.replace("0.0231", "0.02310")),
        ("bix-1_executed.py", "print(0.0231)"),
        ("bix-1_executed.md", "0.0231"),
        ("sub/BIX-1_Executed.R", "0.0231"),
        ("page.txt", " <!DOCTYPE html><p>0.0231"),
        ("page.dat", "<html><p>0.0231"),
        ("all.zip", zipped("a/b/solution.ipynb")),
        ("all.tar.gz", tarred("solution.Rmd")),
        ("all.tar", tarred("solution.qmd", "w")),
        ("CapsuleNotebook-v/table.csv", "0.0231"),
        ("x/CapsuleNotebook/table.csv", "0.0231"),
        (".ipynb_checkpoints/x.csv", "0.0231"),
    ],
)
def test_a_notebook_reaches_the_agent_in_no_disguise(unpacked, name, content):
    assert held(unpacked((f"{DATA}/{name}", content)).data) == ["counts.csv"]


@named(
    [
        ("counts.json", '{"cells": [1, 2]}'),
        ("script.py", "print(1)"),
        ("bix-1_executed.csv", "a,b"),
        ("fastqc.zip", zipped("fastqc_report.html")),
        ("reads.tar.gz", tarred("reads.fastq")),
        ("broken.zip", "no zip"),
        ("page.csv", "a<html>"),
    ],
)
def test_data_stay_data(unpacked, name, content):
    capsule = unpacked((f"{DATA}/{name}", content))
    assert held(capsule.data) == sorted(["counts.csv", name])
    assert not capsule.kept_out


def test_several_and_nested_folders_of_notebooks_are_all_kept_out(unpacked):
    capsule = unpacked(
        ("CapsuleNotebook-v/a/b/second.ipynb", "{}"),
        ("CapsuleNotebook-v/result.csv", "0.0231"),
        (f"{DATA}/CapsuleNotebook-w/third.ipynb", "{}"),
        (f"{DATA}/inner/fourth.Rmd", "0.0231"),
        ("fifth.html", "0.0231"),
    )
    assert held(capsule.data) == ["counts.csv"]
    assert len(held(capsule.notebooks)) == 6


@pytest.mark.parametrize("written", [str, json.dumps, lambda text: json.dumps({"h": text}, ensure_ascii=False)])
def test_a_file_that_holds_a_text_of_the_row_is_kept_out(unpacked, written):
    entry = (f"{DATA}/readme.txt", f"id,hypothesis\n1,{written(HYPOTHESIS)}\n")
    capsule = unpacked(entry, secrets=[HYPOTHESIS, "MYC"])
    assert held(capsule.data) == ["counts.csv"], "and the short text, a gene, is no reason to keep data out"
    assert capsule.kept_out["readme.txt"].startswith("holds the text 'Loss of")
    assert held(capsule.notebooks / "from-data") == ["readme.txt"]


def test_a_second_set_over_the_same_capsule_has_its_own_texts_searched_for(unpacked):
    entry = (f"{DATA}/readme.txt", HYPOTHESIS)
    first = unpacked(entry)
    assert held(first.data) == ["counts.csv", "readme.txt"]
    second = unpacked(entry, secrets=[HYPOTHESIS])
    assert second.data == first.data
    assert held(second.data) == ["counts.csv"]
    assert unpacked(entry).kept_out == second.kept_out, "what was found once stays out"


def test_files_are_read_only_and_one_copy_serves_every_call(unpacked):
    first = unpacked((f"{DATA}/deep/b.csv", "1"))
    assert {path.stat().st_mode & 0o777 for path in first.data.rglob("*") if path.is_file()} == {0o444}
    inode = (first.data / "counts.csv").stat().st_ino
    assert (unpacked((f"{DATA}/deep/b.csv", "1")).data / "counts.csv").stat().st_ino == inode


def changed(file):
    file.chmod(0o644)
    file.write_text("gene,a\nMYC,9\n")
    file.chmod(0o444)


def planted(file):
    (file.parent / "answers.csv").write_text("0.0231")


def linked(file):
    file.rename(file.parent.parent / "elsewhere.csv")
    file.symlink_to(file.parent.parent / "elsewhere.csv")


@pytest.mark.parametrize("damage", [changed, planted, linked, lambda file: file.unlink(), lambda f: f.rename(f"{f}x")])
def test_a_copy_that_was_changed_is_unpacked_again(unpacked, damage):
    damage(unpacked().data / "counts.csv")
    capsule = unpacked()
    assert held(capsule.data) == ["counts.csv"]
    assert (capsule.data / "counts.csv").read_text() == "gene,a\nMYC,1\n"
    assert not (capsule.data / "counts.csv").is_symlink()
    assert len(list(capsule.data.parent.parent.iterdir())) == 1, "no rest of the damaged copy"


def test_a_mode_or_a_time_that_changed_is_no_damage(unpacked):
    file = unpacked().data / "counts.csv"
    inode = file.stat().st_ino
    file.chmod(0o666)
    file.with_name("again").hardlink_to(file)
    file.with_name("again").unlink()
    assert (unpacked().data / "counts.csv").stat().st_ino == inode
    assert file.stat().st_mode & 0o777 == 0o444


def test_a_lost_manifest_means_unpacking_again(unpacked):
    home = unpacked().data.parent
    (home / "manifest.json").write_text("{")
    assert held(unpacked().data) == ["counts.csv"]


def test_a_folder_is_a_capsule_too(tmp_path):
    folder = tmp_path / "h-1"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "counts.csv").write_text("1")
    (folder / "solution.ipynb").write_text("0.0231")
    capsule = unpack(folder, tmp_path / "cache")
    assert held(capsule.data) == ["sub/counts.csv"]
    assert held(capsule.notebooks) == ["solution.ipynb"]
    (folder / "CapsuleData-u").mkdir()
    (folder / "CapsuleData-u" / "a.csv").write_text("1")
    assert held(unpack(folder, tmp_path / "cache").data) == ["a.csv"]
    (folder / "link").symlink_to("/etc/passwd")
    with pytest.raises(TaskFormatError, match="is a link or no plain file"):
        unpack(folder, tmp_path / "cache")
    (folder / "link").unlink()
    with pytest.raises(TaskFormatError, match="has 3 entries, more than 2"):
        unpack(folder, tmp_path / "cache", CapsuleLimits(files=2))
