"""What is kept of an attempt, whatever its sandbox says: names that cannot be, silence, a line that breaks."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from nbagent.artefacts import keep_artefacts
from nbagent_kernels import FileEntry, SessionSpec, open_session

pytestmark = pytest.mark.asyncio


class Said:
    """A sandbox as the host hears it. A fake: entries of one folder, with their content or what reading them raises."""

    def __init__(self, **files: bytes | float | Exception) -> None:
        self.files = files
        self.asked: list[str] = []

    async def list(self, path: str = ".") -> list[FileEntry]:
        return [FileEntry(name, 4, False) for name in self.files]

    async def read(self, path: str, max_bytes: int = 1 << 20) -> bytes:
        self.asked.append(path)
        content = self.files[path]
        if isinstance(content, Exception):
            raise content
        if isinstance(content, float):
            await asyncio.sleep(content)
            return b"late"
        return content


@pytest.fixture
def capsule(tmp_path):
    (tmp_path / "capsule").mkdir()
    (tmp_path / "capsule" / "same").write_text("same")
    return tmp_path / "capsule"


async def test_a_name_that_cannot_be_is_left_out_and_no_other(capsule, tmp_path):
    names = {"x" * 300: b"long", "a/" * 600: b"deep", "\ud800": b"half", "good": b"good", "good/below": b"file"}
    said = Said(**names, same=b"same", last=b"last")
    assert await keep_artefacts(said, capsule, tmp_path / "out", 1000) == ["good", "last"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["good", "last"]


async def test_a_line_that_is_broken_is_not_tried_again(capsule, tmp_path, caplog):
    said = Said(first=b"once", second=OSError(errno.EPIPE, "the sandbox has ended"), third=b"late")
    assert await keep_artefacts(said, capsule, tmp_path / "out", 1000) == ["first"]
    assert said.asked == ["first", "second"]
    assert "1 files were kept; the rest is left out: the sandbox has ended" in caplog.text


async def test_all_files_together_have_a_time(capsule, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("nbagent.artefacts.KEEP_S", 0.2)
    said = Said(first=b"once", second=600.0, third=b"late")
    assert await keep_artefacts(said, capsule, tmp_path / "out", 1000) == ["first"]
    assert "in 0.2 s" in caplog.text


async def test_an_error_of_one_file_is_that_files(capsule, tmp_path):
    said = Said(first=OSError(errno.EREMOTEIO, "too many open files"), second=ValueError("no"), third=b"kept")
    assert await keep_artefacts(said, capsule, tmp_path / "out", 1000) == ["third"]


async def test_a_run_folder_that_cannot_be_written_is_the_hosts(capsule, tmp_path):
    (tmp_path / "out").symlink_to("/proc/self/nowhere")
    with pytest.raises(OSError, match=r"."):
        await keep_artefacts(Said(first=b"once"), capsule, tmp_path / "out", 1000)


async def test_bytes_that_are_no_text_in_a_name(capsule, tmp_path):
    session = await open_session(SessionSpec(capsule=capsule, preload=()), "local")
    code = "open('good', 'w').write('x'); open(b'\\xff' * 100, 'w').write('y'); open('zgood', 'w').write('z')"
    assert (await session.execute(code)).status == "ok"
    assert await keep_artefacts(session, capsule, Path(tmp_path, "out"), 1000) == ["good", "zgood"]
    await session.close()
