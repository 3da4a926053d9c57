"""Confinement on systems that grant less of it: older Landlocks, no namespaces, other languages."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nbagent_kernels import SessionSpec, confinement, open_session
from nbagent_kernels.confine import landlock_abi
from nbagent_kernels.confinement import confined_command, gaps, plan
from nbagent_kernels.fork import end_servers
from nbagent_kernels.workspace import Workspace

ACTIONS = """
import os, socket, sys
for name, action in {
    "write": lambda: open(sys.argv[1], "r+"),
    "truncate": lambda: os.truncate(sys.argv[1], 1),
    "tcp": lambda: socket.create_connection(("127.0.0.1", int(sys.argv[2]))),
    "signal": lambda: os.kill(os.getppid(), 0),
}.items():
    try:
        action()
    except PermissionError:
        print(name)
"""
SINCE = {"write": 1, "truncate": 3, "tcp": 4, "signal": 6}
"""Landlock ABI that brought the refusal."""


def refused(tmp_path, abi: int, outer: Sequence[str] = ()) -> set[str]:
    """What a process confined on such a system cannot do, without namespaces."""
    (tmp_path / "file").write_text("content")
    wanted = {**plan(SessionSpec(), Workspace(), sys.executable), "abi": abi, "apart": bool(outer)}
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        command = confined_command([sys.executable, "-c", ACTIONS, str(tmp_path / "file"), port], wanted)
        if outer:
            command = [*outer, *command]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(answer.stdout.split())


@pytest.mark.parametrize("abi", [abi for abi in range(8) if abi <= landlock_abi()])
def test_each_abi_refuses_what_it_knows(tmp_path, abi):
    assert refused(tmp_path, abi) == {name for name, since in SINCE.items() if since <= abi}


@pytest.mark.skipif(landlock_abi() < 4, reason="this system's Landlock knows nothing of TCP")
def test_without_namespaces_landlock_forbids_tcp(tmp_path):
    # Nobody who is confined can make namespaces: the inner one stands for a system that grants none.
    outer = {**plan(SessionSpec(), Workspace(), sys.executable), "apart": False, "network": True}
    outer["read"] = [*outer["read"], str(confinement.PROGRAM.parent), str(tmp_path)]
    outer["write"] = [*outer["write"], str(tmp_path)]
    assert "tcp" in refused(tmp_path, landlock_abi(), confined_command([], outer))


@pytest.mark.parametrize(
    ("abi", "words"),
    [(0, ["no Landlock"]), (2, ["truncated", "signal"]), (3, ["signal"]), (6, [])],
)
def test_what_is_missing_is_told(monkeypatch, abi, words):
    if abi > landlock_abi():
        pytest.skip("this system's Landlock is older")
    monkeypatch.setattr(confinement, "landlock_abi", lambda: abi)
    told = [gap for gap in gaps.__wrapped__() if "namespaces" not in gap and "open" not in gap]
    assert len(told) == len(words)
    assert all(word in gap for word, gap in zip(words, told, strict=True))


def test_it_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(confinement, "gaps", lambda: ("no walls",))
    confinement.tell_gaps.cache_clear()
    try:
        confinement.tell_gaps()
        confinement.tell_gaps()
    finally:
        confinement.tell_gaps.cache_clear()
    assert caplog.text.count("no walls") == 1


def test_what_is_installed_does_not_open_what_lies_beside_it(tmp_path):
    home = tmp_path / "project"
    for folder in ("bin", "lib", "runs"):
        (home / folder).mkdir(parents=True)
    (home / "bin" / "tool").write_text("#!/bin/sh\n")
    (home / "bin" / "tool").chmod(0o755)
    read = confinement.installed(str(home / "bin" / "tool"), "")
    assert {str(home / "bin"), str(home / "lib")} <= set(read)
    assert not {str(home), str(home / "runs"), str(tmp_path), "/", "/etc", "/home", "/root"} & set(read)


@pytest.mark.skipif(shutil.which("R") is None or landlock_abi() == 0, reason="R or Landlock is not installed")
@pytest.mark.asyncio
async def test_a_kernel_of_another_language_is_confined_too(tmp_path):
    (tmp_path / "secret").write_text("key")
    session = await open_session(SessionSpec(language="R"), "local")
    try:
        result = await session.execute(
            f"try(readLines({json.dumps(str(tmp_path / 'secret'))})); writeLines('a', 'own'); 7", 60
        )
        outputs = json.dumps(result.outputs)
        assert "Permission denied" in outputs
        assert "key" not in outputs
        assert [entry.name for entry in session.workdir.iterdir()] == ["own"]
    finally:
        await session.close()


@pytest.mark.slow
@pytest.mark.skipif(landlock_abi() == 0, reason="there is no Landlock here")
@pytest.mark.asyncio
async def test_compiled_functions_beside_a_library_are_loaded_and_not_written(tmp_path):
    pytest.importorskip("numba")
    (tmp_path / "compiled.py").write_text("import numba\n@numba.njit(cache=True)\ndef more(x):\n    return x + 1\n")
    (tmp_path / "python").write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    spec = SessionSpec(interpreter=str(tmp_path / "python"), preload=("compiled",))
    call = "import compiled; (compiled.more(1), sum(compiled.more.stats.cache_hits.values()))"
    for preload, hits in ((("compiled",), 0), (("numba",), 1)):
        session = await open_session(replace(spec, preload=preload), "fork")
        try:
            result = await session.execute(call, 120)
            assert result.outputs[-1].get("data") == {"text/plain": f"(2, {hits})"}, result.outputs
        finally:
            await session.close()
        assert bool(list(tmp_path.rglob("*.nbi"))) == bool(hits)
        subprocess.run([spec.interpreter, "-B", "-c", call], check=True)
    end_servers()
