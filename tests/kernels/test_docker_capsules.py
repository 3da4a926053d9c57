"""Capsules in a container: what of them can be read there, whatever the host says; those too large; wheels."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace

import pytest
from conftest import container
from kernel_probes import text

from nbagent_kernels import KernelStartError, Limits, SessionSpec, open_session

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.docker]
BIG = 9 << 20


@pytest.fixture
def backend():
    return "docker"


@pytest.fixture
def capsule(tmp_path):
    made = tmp_path / "capsule"
    (made / "sub").mkdir(parents=True)
    for place in ("big", "sub/big"):
        (made / place).write_bytes(b"x" * BIG)
        (made / place).chmod(0o644)
    for folder in (made, made / "sub"):
        folder.chmod(0o755)
    return made


READ = """
import os
import zipfile
for place in ("big", "sub/big"):
    print(place, len(open(place, "rb").read()), os.path.islink(place))
"""


@pytest.mark.parametrize(
    ("modes", "shared"),
    [
        ({}, (True, True)),
        ({"": 0o700}, (False, False)),
        ({"": 0o711}, (False, False)),
        ({"sub": 0o700}, (True, False)),
        ({"sub/big": 0o600}, (True, False)),
    ],
    ids=["open", "private", "unlisted", "private folder", "private file"],
)
async def test_large_files_are_read_whatever_the_modes(opened, capsule, modes, shared):
    for place, mode in modes.items():
        (capsule / place).chmod(mode)
    session = await opened(SessionSpec(preload=(), capsule=capsule))
    result = await session.execute(READ, 60)
    assert text(result.outputs) == f"big {BIG} {shared[0]}\nsub/big {BIG} {shared[1]}\n"
    for place in ("big", "sub/big"):
        assert await session.read(place, 10) == b"x" * 10


async def test_a_capsule_made_under_a_strict_umask_is_read(opened, tmp_path):
    before = os.umask(0o077)
    try:
        made = tmp_path / "strict"
        (made / "sub").mkdir(parents=True)
        for place in ("big", "sub/big"):
            (made / place).write_bytes(b"x" * BIG)
    finally:
        os.umask(before)
    session = await opened(SessionSpec(preload=(), capsule=made))
    assert text((await session.execute(READ, 60)).outputs) == f"big {BIG} False\nsub/big {BIG} False\n"


@pytest.mark.parametrize(("work", "memory"), [(64 << 20, 1 << 30), (1 << 30, 64 << 20)], ids=["files", "memory"])
async def test_a_capsule_that_is_too_large_is_one_clear_line(tmp_path, work, memory):
    for number in range(14):
        (tmp_path / f"f{number}").write_bytes(b"x" * (7 << 20))
    settings = replace(container("python"), work_bytes=work)
    spec = SessionSpec(preload=(), container=settings, capsule=tmp_path, limits=Limits(memory_bytes=memory))
    with pytest.raises(KernelStartError) as raised:
        await open_session(spec, "docker")
    said = f"it does not fit into a sandbox with {work >> 20} MiB of files and {memory >> 20} MiB of memory"
    assert said in str(raised.value)
    assert "--backend docker,work=GIB" in str(raised.value)


async def test_pip_installs_wheels_that_are_mounted(tmp_path):
    about = "tiny-1.0.dist-info"
    files = {
        "tiny.py": "value = 42\n",
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": f"tiny.py,,\n{about}/METADATA,,\n{about}/WHEEL,,\n{about}/RECORD,,\n",
    }
    tmp_path.chmod(0o755)
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for path, text_ in files.items():
            wheel.writestr(path, text_)
    settings = replace(container("python"), wheels=tmp_path)
    session = await open_session(SessionSpec(preload=(), container=settings), "docker")
    code = "!pip install -q tiny\nimport tiny, os\nprint(tiny.value, os.access('/wheels', os.W_OK))"
    try:
        assert text((await session.execute(code, 120)).outputs).endswith("42 False\n")
    finally:
        await session.close()


async def test_any_name_of_a_capsules_folder_will_do(opened, tmp_path):
    capsule = tmp_path / "a:b, c"
    capsule.mkdir()
    (capsule / "a.csv").write_text("a\n")
    session = await opened(SessionSpec(preload=(), capsule=capsule))
    assert text((await session.execute("print(open('a.csv').read())")).outputs) == "a\n\n"
