"""Event logs: exact reading, tearing, damage, a full disk."""

import json
import re
import subprocess
import sys
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from nbagent.blobs import Blobs
from nbagent.env import EnvLimits
from nbagent.errors import StorageError, TrajectoryError
from nbagent.models.base import Completion, Prompt
from nbagent.tasks import Outcome
from nbagent.trajectory import Recorder, Trajectory, shared_length
from nbagent.validation import problems, schema

START = {
    "rollout_id": "r",
    "attempt": 0,
    "task_id": "t",
    "question": "How many?",
    "family": "",
    "language": "python",
    "seed": 0,
    "backend": "fork",
    "action_format": "hermes",
    "policy": {"name": "full", "options": {}},
    "limits": {"max_steps": 3, "cell_timeout_s": 5.0, "total_s": 9.0},
    "files": ["a.csv"],
    "parent": None,
    "brief": {"instruction": "", "task": "How many?"},
}
END = {
    "outcome": "correct",
    "reason": "",
    "reward": 1.0,
    "n_steps": 1,
    "truncated": False,
    "seconds": 1.0,
    "error": "",
}
CALL = {"version": 0, "seconds": 0.1, "elisions": [], "state_key": "", "notice": ""}
RUN = {
    "step": 0,
    "cell": "c1",
    "source": "1",
    "execution_count": 1,
    "status": "ok",
    "seconds": 0.1,
    "state_kept": True,
    "cause": "",
    "dropped_bytes": 0,
}
OUTPUTS = [{"output_type": "stream", "name": "stdout", "text": "half a pair \ud800\n"}]


def log(tmp_path, ended=True):
    """A small sound log in a run folder's shape."""
    (tmp_path / "rollouts").mkdir(exist_ok=True)
    path = tmp_path / "rollouts" / "r.jsonl"
    recorder = Recorder(Blobs(tmp_path / "blobs"), path)
    recorder.record("start", **START)
    recorder.call(0, Prompt([], ids=[1, 2, 3]), Completion("x", "stop", (7, 8), (-0.5, -0.25)), **CALL)
    recorder.record("cell", step=0, op="insert", cell="c1", index=0, cell_type="code", source="1")
    recorder.record("execution", outputs=OUTPUTS, **RUN)
    recorder.record("answer", step=0, answer="4")
    if ended:
        recorder.record("end", **END)
    recorder.close()
    return path, recorder


prompts = st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=8)


@given(prompts)
def test_prompts_are_read_back_exactly(sequence):
    recorder = Recorder(Blobs())
    recorder.record("start", **START)
    for step, ids in enumerate(sequence):
        recorder.call(step, Prompt([], ids=ids), Completion("", "stop", (), ()), **CALL)
    assert [list(call.prompt_ids) for call in recorder.trajectory().calls()] == sequence


@given(prompts)
def test_messages_of_remote_models_too(sequence):
    recorder = Recorder(Blobs())
    recorder.record("start", **START)
    asked = [[{"role": "user", "content": str(n)} for n in numbers] for numbers in sequence]
    for step, messages in enumerate(asked):
        recorder.call(step, Prompt(messages), Completion("", "stop"), **CALL)
    assert [list(call.messages) for call in recorder.trajectory().calls()] == asked


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40))
def test_the_shared_prefix_is_the_longest(first, second):
    length = shared_length(first, second)
    assert first[:length] == second[:length]
    assert length == min(len(first), len(second)) or first[length] != second[length]


def test_appended_prompts_make_a_log_linear_in_its_length():
    recorder = Recorder(Blobs())
    recorder.record("start", **START)
    for step in range(50):
        recorder.call(step, Prompt([], ids=[1] * (100 + 10 * step)), Completion("", "stop", (), ()), **CALL)
    stored = sum(len(event["prompt"]["suffix"]) for event in recorder.events[1:])
    assert stored == 100 + 10 * 49


def test_a_log_reads_back_as_it_was_recorded(tmp_path):
    path, recorder = log(tmp_path)
    read = Trajectory.load(path)
    assert read.events == json.loads(json.dumps(recorder.events))
    assert (read.rollout_id, read.task_id, read.question, read.answer) == ("r", "t", "How many?", "4")
    assert (read.outcome, read.reward, read.n_steps) == (Outcome.CORRECT, 1.0, 1)
    assert read.outputs(read.events[3]) == OUTPUTS
    assert problems(path) == []


def test_equal_outputs_are_stored_once(tmp_path):
    blobs = Blobs(tmp_path / "blobs")
    assert blobs.put(OUTPUTS) == blobs.put(list(OUTPUTS)) == Blobs(tmp_path / "blobs").put(OUTPUTS)
    assert len([file for file in (tmp_path / "blobs").rglob("*") if file.is_file()]) == 1


def test_events_that_were_not_kept_are_read_from_the_log(tmp_path):
    recorder = Recorder(Blobs(tmp_path / "blobs"), tmp_path / "r.jsonl", keep=False)
    recorder.record("start", **START)
    assert recorder.events == []
    assert recorder.trajectory().task_id == "t"


def test_a_killed_writer_loses_at_most_the_line_it_was_writing(tmp_path):
    path, _ = log(tmp_path, ended=False)
    whole = path.read_bytes()
    for cut in (1, 20):
        path.write_bytes(whole[:-cut])
        read = Trajectory.load(path)
        assert [event["kind"] for event in read.events] == ["start", "call", "cell", "execution"]
        assert (read.end, read.outcome, read.reward) == (None, None, None)
        assert "torn line" in str(problems(path)[-1])
    again = Recorder(Blobs(tmp_path / "blobs"), path)
    again.record("start", **{**START, "attempt": 1})
    again.record("end", **END)
    again.close()
    assert [event["kind"] for event in Trajectory.load(path).events] == ["start", "end"]
    assert problems(path) == []


def test_a_process_killed_while_writing_leaves_whole_lines(tmp_path):
    code = """
import os, sys
from pathlib import Path
from nbagent.blobs import Blobs
from nbagent.trajectory import Recorder
recorder = Recorder(Blobs(), Path(sys.argv[1]), keep=False)
recorder.record("start", n=-1)
for n in range(1000):
    recorder.record("file", n=n, path="x" * 500)
    if n == 700:
        os.kill(os.getpid(), 9)
"""
    path = tmp_path / "r.jsonl"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    events = Trajectory.load(path).events
    assert [event["n"] for event in events] == list(range(-1, 701))


def test_the_last_attempt_counts(tmp_path):
    path, _ = log(tmp_path)
    recorder = Recorder(Blobs(tmp_path / "blobs"), path)
    recorder.record("start", **{**START, "attempt": 1})
    recorder.close()
    assert Trajectory.load(path).start["attempt"] == 1
    assert Trajectory.load(path).end is None


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the log is empty"),
        (b'{"kind":"call"}\n', ":1: the log does not begin with a start event"),
        (b"[]\n", ":1: not an event but a list"),
        (b'{"kind":"start"}\nrubbish\n', ":2: not JSON"),
    ],
)
def test_a_damaged_log_names_file_and_line(tmp_path, content, what):
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)
    with pytest.raises(TrajectoryError, match=what) as error:
        Trajectory.load(path)
    assert str(error.value).startswith(str(path))


def damaged(events, number, **changes):
    return [{**event, **changes} if n == number else event for n, event in enumerate(events)]


@pytest.mark.parametrize(
    ("number", "changes", "what"),
    [
        (0, {"v": 2}, ":1: start.v: 1 was expected"),
        (0, {"rollout_id": "q"}, ":1: rollout_id is 'q' in the log of 'r'"),
        (1, {"prompt": {"shared": 5, "suffix": []}}, ":2: shares 5 with a prompt of 0"),
        (1, {"logprobs": [-1.0]}, ":2: 2 completion ids and 1 log-probs"),
        (1, {"finish": "tired"}, ":2: call.finish: 'tired' is not one of"),
        (1, {"kind": "thought"}, ":2: unknown kind 'thought'"),
        (2, {"op": "delete"}, ":3: delete of c1, which is not in the notebook"),
        (2, {"index": 3}, ":3: insert at 3 in a notebook of 0 cells"),
        (3, {"t": 0.0}, ":4: t goes back"),
        (3, {"cell": "c9"}, ":4: execution of c9, which is no code cell"),
        (3, {"outputs": "0" * 64}, ":4: .*the blob is missing"),
        (4, {"kind": "end"}, ":5: end: "),
        (5, {"reward": None}, ":6: outcome correct with reward None"),
        (5, {"extra": 1}, ":6: end: Additional properties"),
    ],
)
def test_validation_names_every_kind_of_damage_with_its_line(tmp_path, number, changes, what):
    path, recorder = log(tmp_path)
    events = damaged(recorder.events, number, **changes)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    found = [str(problem) for problem in problems(path)]
    assert found
    assert any(re.search(what, problem) for problem in found), found


def test_a_damaged_blob_is_found_when_read_and_when_validated(tmp_path):
    path, recorder = log(tmp_path)
    blob = recorder.blobs.path(recorder.events[3]["outputs"])
    blob.write_text("[]")
    with pytest.raises(TrajectoryError, match="does not match its name"):
        Trajectory.load(path).outputs(recorder.events[3])
    assert "does not match its name" in str(problems(path)[0])


def test_the_schema_is_one_and_knows_the_settings_it_names():
    Draft202012Validator.check_schema(schema())
    assert {field.name for field in fields(EnvLimits)} >= set(
        schema()["$defs"]["start"]["properties"]["limits"]["required"]
    )


def test_a_full_disk_is_a_storage_error_that_names_the_file_and_what_to_do(tmp_path):
    full = tmp_path / "r.jsonl"
    full.symlink_to("/dev/full")
    recorder = Recorder(Blobs(), full)
    with pytest.raises(StorageError, match=r"r\.jsonl: cannot write: No space left.*free some space and resume"):
        recorder.record("start", **START)
    assert isinstance(recorder.failure, OSError)


def test_a_log_survives_the_disk_filling_up_in_the_middle_of_a_line(tmp_path):
    code = """
import resource, signal, sys
from pathlib import Path
from nbagent.blobs import Blobs
from nbagent.errors import StorageError
from nbagent.trajectory import Recorder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
recorder = Recorder(Blobs(), Path(sys.argv[1]), keep=False)
recorder.record("start", n=-1)
try:
    for n in range(1000):
        recorder.record("file", n=n, path="x" * 500)
except StorageError as error:
    print(error)
"""
    path = tmp_path / "r.jsonl"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert "r.jsonl: cannot write: File too large" in done.stdout
    assert path.read_bytes().endswith(b"\n")
    assert [event["n"] for event in Trajectory.load(path).events] == [-1, 0, 1, 2, 3, 4]
