"""Sets from the hub, through the real huggingface_hub, from a server on loopback."""

import io
import json
import os
import random
import subprocess
import sys
import zipfile

import pytest
from hub_server import Hub

NAME = "somebody/BixLike"
ROW = {
    "question_id": "bix-90-q1", "question": "How many genes rise?", "ideal": "17", "distractors": ["16", "18", "71"],
    "eval_mode": "str_verifier", "capsule_uuid": "u", "data_folder": "CapsuleFolder-u.zip", "categories": "Genomics",
}  # fmt: skip


def capsule(seed=0, size=300_000):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("CapsuleData-u/a.csv"), random.Random(seed).randbytes(size))
    return packed.getvalue()


def rows(*changes):
    return "".join(json.dumps({**ROW, **change}) + "\n" for change in changes or ({},)).encode()


@pytest.fixture
def hub():
    hub = Hub()
    yield hub
    hub.close()


@pytest.fixture
def nbagent(hub, tmp_path):
    def run(*words, **more):
        env = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        env |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "NBAGENT_CACHE": str(tmp_path / "cache")}
        env |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}
        command = [sys.executable, "-m", "nbagent.cli", *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def downloads(hub):
    return [path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path]


def test_a_set_is_fetched_once_and_then_needs_no_hub(hub, nbagent):
    hub.put(NAME, {"BixBench.jsonl": rows(), "CapsuleFolder-u.zip": capsule(), "CapsuleFolder-v.zip": capsule(1)})
    first = nbagent("bixbench", "check", NAME)
    assert (first.returncode, first.stdout) == (0, "rows: 1 (1 str_verifier), capsules: 1, no problems\n"), first.stderr
    assert sorted(downloads(hub)) == ["BixBench.jsonl", "CapsuleFolder-u.zip"], "only what the rows name"
    shown = nbagent("tasks", "show", NAME, HF_HUB_OFFLINE="1")
    assert "How many genes rise?" in shown.stdout, shown.stderr
    assert len(downloads(hub)) == 2


def test_a_revision_stays_while_the_set_goes_on(hub, nbagent):
    old = hub.put(NAME, {"BixBench.jsonl": rows()})
    hub.put(NAME, {"BixBench.jsonl": rows({}, {"question_id": "bix-90-q2"})})
    check = "bixbench", "check", "--no-capsules"
    assert nbagent(*check, f"{NAME}@{old}").stdout.startswith("rows: 1 ")
    assert nbagent(*check, NAME).stdout.startswith("rows: 2 ")
    gone = nbagent(*check, f"{NAME}@v9")
    assert gone.returncode == 2
    assert gone.stderr.splitlines()[-1] == f"nbagent: {NAME}@v9: the hub has the set, but no revision 'v9'"


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, nbagent):
    # huggingface_hub writes 10 MB at a time, and goes on after the last of these.
    hub.put(NAME, {"BixBench.jsonl": rows(), "CapsuleFolder-u.zip": capsule(size=24 << 20)})
    hub.cut.add("CapsuleFolder-u.zip")
    result = nbagent("bixbench", "check", NAME)
    assert result.returncode == 0, result.stderr
    ranges = [part for method, path, part in hub.requests if method == "GET" and path.endswith(".zip")]
    assert ranges == [None, f"bytes={10 << 20}-"]


@pytest.mark.parametrize("path", ["CapsuleFolder-u.zip", "BixBench.jsonl"])
def test_bytes_that_are_not_those_of_the_digest_are_refused_and_removed(hub, nbagent, path):
    hub.put(NAME, {"BixBench.jsonl": rows(), "CapsuleFolder-u.zip": capsule()})
    hub.corrupt.add(path)
    result = nbagent("bixbench", "check", NAME)
    assert result.returncode in (1, 2)
    assert f"{path}: what was fetched has not the digest that the hub names" in result.stdout + result.stderr
    hub.corrupt.clear()
    assert nbagent("bixbench", "check", NAME).returncode == 0


def test_a_gated_set_says_how_to_log_in(hub, nbagent):
    name = "phylobio/BixBench-Verified-50"
    hub.put(name, {"BixBench-Verified-50.jsonl": rows()})
    hub.gated.add(name)
    result = nbagent("bixbench", "check", name, "--no-capsules")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"nbagent: {name}: this set is gated: ask for access at https://huggingface.co/datasets/{name}, then log in "
        "with `hf auth login`, or set HF_TOKEN"
    )
    assert nbagent("bixbench", "check", name, "--no-capsules", HF_TOKEN="hf_x").returncode == 0


def test_what_is_neither_here_nor_on_the_hub_is_one_line(hub, nbagent):
    result = nbagent("bixbench", "check", "nobody/Nothing")
    assert result.returncode == 2
    assert "no folder here and no set on the hub; check the name" in result.stderr.splitlines()[-1]
    result = nbagent("bixbench", "check", "nobody/Nothing", HF_HUB_OFFLINE="1")
    assert result.returncode == 2
    assert "no folder here, and the hub does not give it" in result.stderr.splitlines()[-1]


def test_a_path_that_was_mistyped_asks_no_hub(hub, nbagent, tmp_path):
    (tmp_path / "sets").mkdir()
    assert "no set in BixBench's format" in nbagent("bixbench", "check", "sets/Nothing").stderr
    assert not hub.requests


def test_hypotheses_say_where_their_capsules_lie(hub, nbagent):
    name = "EdisonScientific/bixbench_hypothesis"
    row = {"id": "h-1", "hypothesis": "Old mice weigh more.", "answer": True, "input_data_path": "capsules/h-1"}
    hub.put(name, {"data/train.jsonl": (json.dumps(row) + "\n").encode()})
    result = nbagent("bixbench", "check", name)
    assert result.returncode == 1
    assert "`hf sync hf://buckets/EdisonScientific/bixbench-hypothesis-capsules FOLDER`" in result.stdout
    assert nbagent("bixbench", "check", name, "--no-capsules").stdout.startswith("rows: 1 (1 hypothesis)")
