"""Capsules in a container: what of them can be read there, whatever the host's modes say; those that are too large."""

from __future__ import annotations

import os

import pytest
from kernel_probes import text

from nbagent_kernels import SessionSpec

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
