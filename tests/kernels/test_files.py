"""File verbs on what hostile cells leave behind. Everything is planted from inside a real kernel."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

import pytest
import pytest_asyncio

from nbagent_kernels import PathOutside, SessionSpec, files, open_session
from nbagent_kernels.confine import landlock_abi
from nbagent_kernels.fork import end_servers
from nbagent_kernels.removal import remove_tree
from nbagent_kernels.workspace import SHARED_BYTES, Workspace

inside = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def session():
    """One forked session."""
    opened = await open_session(SessionSpec(preload=()))
    yield opened
    await opened.close()


@pytest.fixture(scope="module", autouse=True)
def _servers_end_with_the_module():
    yield
    end_servers()


async def plant(session, code: str) -> None:
    result = await session.execute(f"import os, socket, stat\n{code}", 60)
    assert result.status == "ok", result.outputs


def entries(folder: Path) -> dict[str, str]:
    """What an export made: paths and what they are."""
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}
    return {
        str(path.relative_to(folder)): kinds.get(stat.S_IFMT(path.lstat().st_mode), "other")
        for path in folder.rglob("*")
    }


@inside
async def test_links_devices_and_pipes_lead_nowhere(session, tmp_path):
    (tmp_path / "secret").write_text("key")
    await plant(
        session,
        f"os.symlink({str(tmp_path / 'secret')!r}, 'out')\nos.symlink('../../..', 'up')\n"
        f"os.symlink({str(tmp_path)!r}, 'folder')\nos.symlink('loop', 'loop')\nos.symlink('gone', 'broken')\n"
        "os.symlink('/proc/self/root/etc', 'root')\nos.symlink('/dev/zero', 'zero')\n"
        "os.mkfifo('pipe')\nsocket.socket(socket.AF_UNIX).bind('socket')\n"
        "os.mkdir('real'); open('real/file', 'w').write('own'); os.symlink('real/file', 'inner')\n"
        "os.symlink(os.path.abspath('real'), 'absolute')",
    )
    for path in ("out", "up", "folder/secret", "root/passwd", "zero", "../x", "/etc/passwd", "real/../../home"):
        with pytest.raises(PathOutside):
            await session.read(path)
        with pytest.raises(PathOutside):
            await session.list(path)
    for path in ("pipe", "socket", "loop", "broken", "nothing", "real", "a\0b", "x" * 5000, "y/" * 3000):
        with pytest.raises((OSError, ValueError)):
            await session.read(path)
    assert await session.read("inner") == await session.read("absolute/file") == b"own"
    assert [entry.path for entry in await session.list("absolute")] == ["real/file"]
    assert await session.export(tmp_path / "copy") == 3
    assert entries(tmp_path / "copy") == {"real": "folder", "real/file": "file"}


@inside
async def test_names_of_every_kind(session, tmp_path):
    await plant(
        session,
        "names = [b'new\\nline', b'\\xff\\xfe', 'Ω 🧬'.encode(), b'-rf', b' ', b'x' * 255, b'\\x1b[31mred', b'%s']\n"
        "for name in names: open(name, 'wb').write(name)",
    )
    listed = await session.list()
    assert len(listed) == 8
    assert "Ω 🧬" in [entry.path for entry in listed]
    assert all(entry.path.encode() for entry in listed)
    assert await session.read("Ω 🧬") == "Ω 🧬".encode()
    assert await session.read("new\nline") == b"new\nline"
    await session.export(tmp_path / "copy")
    copied = {os.fsencode(path.name): path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert len(copied) == 8
    assert all(name == content for name, content in copied.items())


@inside
async def test_a_hole_of_a_terabyte(session, tmp_path):
    await plant(
        session,
        "import resource\nfor at in range(2): open(f'small{at}', 'w').write('x')\nos.truncate('small1', 1 << 30)",
    )
    assert (await session.list())[1].size == 1 << 30
    assert len(await session.read("small1", 1000)) == 1000
    with pytest.raises(OSError, match="larger than the export may be") as raised:
        await session.export(tmp_path / "copy", 1 << 20)
    assert raised.value.errno == errno.EFBIG
    assert sum(path.stat().st_blocks for path in (tmp_path / "copy").iterdir()) <= 8


@inside
async def test_more_levels_than_python_nests_calls(session, tmp_path, caplog):
    await plant(
        session,
        "open('top', 'w').write('top')\nstart = os.getcwd()\n"
        "for _ in range(1500): os.mkdir('d'); os.chdir('d')\nopen('deep', 'w').write('x')\nos.chdir(start)",
    )
    assert [entry.path for entry in await session.list()] == ["d", "top"]
    assert await session.export(tmp_path / "copy") == 3
    assert len(entries(tmp_path / "copy")) == files.DEPTH + 1
    assert "is left out" in caplog.text
    assert await session.read("d/" * 1500 + "deep") == b"x"
    workdir = session.workdir
    await session.close()
    assert not workdir.parent.exists()


@inside
async def test_many_files_and_many_bytes(session, tmp_path, monkeypatch):
    await plant(
        session,
        "for at in range(400): open(f'{at}', 'w').write('x')\nos.mkdir('sub'); open('sub/y', 'w').write('y' * 5)",
    )
    monkeypatch.setattr(files, "LISTED", 100)
    assert len(await session.list()) == 100
    monkeypatch.setattr(files, "EXPORTED", 300)
    with pytest.raises(OSError, match="more than 300 entries"):
        await session.export(tmp_path / "copy")
    assert len(list((tmp_path / "copy").iterdir())) == 300
    monkeypatch.setattr(files, "EXPORTED", 5000)
    with pytest.raises(OSError, match="larger"):
        await session.export(tmp_path / "again", 404)
    assert await session.export(tmp_path / "whole", 405) == 405


@inside
async def test_what_may_not_be_read(session, tmp_path, caplog):
    await plant(
        session,
        "open('closed', 'w').write('x'); os.mkdir('shut'); open('shut/y', 'w').write('y')\n"
        "os.chmod('closed', 0); os.chmod('shut', 0)",
    )
    copied = await session.export(tmp_path / "copy")
    if os.geteuid() == 0:
        assert copied == 2
    else:
        assert copied == 0
        assert caplog.text.count("is left out") == 2
    workdir = session.workdir
    await session.close()
    assert not workdir.exists()


@inside
async def test_files_outside_cannot_be_linked_in(session, tmp_path):
    if landlock_abi() == 0:
        pytest.skip("there is no Landlock here")
    secret = session.workdir.parent / "secret"
    secret.write_text("key")
    await plant(
        session,
        f"try: os.link({str(secret)!r}, 'hard')\nexcept OSError as error: print(error)\nopen('own', 'w').write('x')",
    )
    assert [entry.path for entry in await session.list()] == ["own"]
    assert await session.export(tmp_path / "copy") == 1


@inside
async def test_a_folder_that_is_swapped_for_a_link_meanwhile(session, tmp_path):
    outside = session.workdir.parent / "outside"
    (outside / "data").mkdir(parents=True)
    (outside / "data" / "file").write_text("key")
    await plant(
        session,
        f"os.makedirs('real/data'); open('real/data/file', 'w').write('own'); os.symlink({str(outside)!r}, 'link')\n"
        "import ctypes, threading\nlibc = ctypes.CDLL(None)\n"
        "def swap():\n"
        "    while True: libc.renameat2(-100, b'real', -100, b'link', 2)\n"
        "threading.Thread(target=swap, daemon=True).start()",
    )
    end = time.monotonic() + 1.5
    seen, copies = set(), 0
    while time.monotonic() < end:
        for path in ("real/data/file", "link/data/file"):
            try:
                seen.add(await session.read(path))
            except OSError as error:
                seen.add(type(error).__name__)
        copies += 1
        await session.export(tmp_path / f"copy{copies}")
    assert b"own" in seen
    assert b"key" not in seen
    assert not [path for path in tmp_path.rglob("file") if path.read_text() == "key"]


@inside
async def test_the_working_directory_itself_is_replaced(tmp_path):
    workspace = Workspace()
    (workspace.work / "own").write_text("own")
    workspace.work.rename(workspace.folder / "moved")
    workspace.work.symlink_to("/etc")
    for path in (".", "passwd"):
        with pytest.raises(PathOutside):
            workspace.files.list(path)
    assert workspace.files.export(tmp_path) == 3
    await workspace.remove()
    assert Path("/etc/passwd").exists()
    assert not workspace.folder.exists()


def test_trees_are_removed_whatever_they_are(tmp_path):
    tree, kept = tmp_path / "tree", tmp_path / "kept"
    (tree / "shut" / "inner").mkdir(parents=True)
    kept.mkdir()
    (kept / "file").write_text("x")
    (tree / "link").symlink_to(kept)
    (tree / "shut" / "file").write_text("x")
    (tree / "shut").chmod(0)
    start = os.open(tree, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=start)
        inner = os.open("d", os.O_RDONLY, dir_fd=start)
        os.close(start)
        start = inner
    os.close(start)
    remove_tree(tree)
    assert not tree.exists()
    assert (kept / "file").exists()
    remove_tree(tree)
    (tmp_path / "link").symlink_to(kept)
    remove_tree(tmp_path / "link")
    assert (kept / "file").exists()


@inside
@pytest.mark.skipif(landlock_abi() < 3, reason="this system's Landlock does not keep capsules from being written")
@pytest.mark.parametrize("backend", ["local", "fork"])
async def test_large_capsule_files_are_shared_and_stay_as_they_are(backend, tmp_path):
    capsule, big = tmp_path / "capsule", os.urandom(SHARED_BYTES)
    (capsule / "sub").mkdir(parents=True)
    (capsule / "sub" / "big").write_bytes(big)
    (capsule / "small").write_bytes(b"small")
    (capsule / "key").write_bytes(b"k")
    session = await open_session(SessionSpec(preload=(), capsule=capsule), backend)
    try:
        assert {(entry.path, entry.size) for entry in await session.list("sub")} == {("sub/big", len(big))}
        assert await session.read("sub/big", 1 << 30) == big
        assert (session.workdir / "sub" / "big").is_symlink()
        assert not (session.workdir / "small").is_symlink()
        result = await session.execute(
            "import os\nwith open('sub/big', 'rb') as file: print(len(file.read()))\n"
            "for action in (lambda: open('sub/big', 'r+'), lambda: os.truncate('sub/big', 1), "
            "lambda: os.remove(os.readlink('sub/big')), lambda: open(os.path.realpath('sub/big')[:-7] + 'small')):\n"
            "    try: action(); print('done')\n    except PermissionError: print('refused')\n"
            "os.rename('sub/big', 'mine'); os.symlink('mine', 'again'); open('sub/big', 'w').write('own')"
        )
        assert result.outputs[0]["text"].split() == [str(len(big)), *["refused"] * 4]
        assert await session.read("mine", 1 << 30) == await session.read("again", 1 << 30) == big
        assert await session.read("sub/big") == b"own"
        with pytest.raises(PathOutside):
            await session.read(str(capsule / "key"))
        assert await session.export(tmp_path / "copy") == len(big) + len(b"small" + b"k" + b"own")
        assert (tmp_path / "copy" / "mine").read_bytes() == big
        assert (capsule / "sub" / "big").read_bytes() == big
        if backend == "fork":
            branch = await session.branch()
            assert await branch.read("mine", 1 << 30) == big
            assert (await branch.execute("len(open('mine', 'rb').read())")).outputs[0]["data"]["text/plain"] == str(
                len(big)
            )
            await branch.close()
    finally:
        await session.close()
    assert (capsule / "sub" / "big").read_bytes() == big
