"""The seccomp profile of sandboxes, made by docker/seccomp/make.py."""

from __future__ import annotations

from nbagent_images.recipe import HERE


def profile() -> str:
    """The profile as JSON text, as `security_opt=["seccomp=" + profile()]` of the Docker SDK takes it."""
    return (HERE / "seccomp.json").read_text(encoding="utf-8")
