"""Which backend runs what, and what the user sets of containers."""

from __future__ import annotations

import pytest

from nbagent import backends
from nbagent.errors import UsageError


def test_wheels_are_a_folder_that_anybody_may_read(tmp_path, monkeypatch):
    folder = tmp_path / "wheels"
    monkeypatch.setenv(backends.WHEELS, str(folder))
    with pytest.raises(UsageError, match="no such folder"):
        backends.wheels()
    folder.mkdir()
    (folder / "a-1-py3-none-any.whl").write_text("")
    folder.chmod(0o700)
    with pytest.raises(UsageError, match=r"chmod -R o\+rX"):
        backends.wheels()
    folder.chmod(0o755)
    (folder / "a-1-py3-none-any.whl").chmod(0o600)
    with pytest.raises(UsageError, match=r"chmod -R o\+rX"):
        backends.wheels()
    (folder / "a-1-py3-none-any.whl").chmod(0o644)
    assert backends.wheels() == folder
    monkeypatch.setenv(backends.WHEELS, "")
    assert backends.wheels() is None
