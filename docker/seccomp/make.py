"""Writes nbagent_images/seccomp.json from families.toml and traced.json: `python docker/seccomp/make.py`."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROFILE = HERE.parent / "nbagent_images" / "seccomp.json"
EPERM, ENOSYS = 1, 38
ARCHITECTURES = ("SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64")


def calls(families: dict[str, dict[str, str]]) -> set[str]:
    """All system calls of these families."""
    return {call for family in families.values() for call in family["calls"].split()}


def rules(condition: dict[str, Any]) -> list[dict[str, Any]]:
    """One rule for each value: the engine joins rules of one call by `or`, and what one rule compares by `and`."""
    compared = [comparisons(each) for each in (condition, *condition.get("also", ()))]
    allow: dict[str, Any] = {"action": "SCMP_ACT_ALLOW"}
    answer = {"action": "SCMP_ACT_ERRNO", "errnoRet": condition["errno"]} if "errno" in condition else allow
    return [{"names": [condition["call"]], **answer, "args": list(each)} for each in itertools.product(*compared)]


def comparisons(condition: dict[str, Any]) -> list[dict[str, Any]]:
    """One comparison of an argument for each value."""
    mask = condition.get("mask")
    return [
        {"index": condition["argument"], "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}
        if mask is None
        else {"index": condition["argument"], "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}
        for value in condition["values"]
    ]


def make(families: dict[str, Any], traced: dict[str, list[str]]) -> dict[str, Any]:
    """The profile as the engine reads it.

    Raises:
        ValueError: a call stands in two places.
    """
    allowed, absent, denied = (calls(families[kind]) for kind in ("allowed", "absent", "denied"))
    conditional = {condition["call"] for condition in families["condition"]}
    places = [*allowed, *absent, *denied, *conditional]
    if twice := sorted({call for call in places if places.count(call) > 1}):
        raise ValueError(f"families.toml names these in two places: {', '.join(twice)}")
    seen = {call for names in traced.values() for call in names}
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        # No second architecture: 32-bit calls would have other numbers, and end the program that makes them.
        "archMap": [{"architecture": name, "subArchitectures": []} for name in ARCHITECTURES],
        "syscalls": [
            {"names": sorted(allowed | (seen - absent - denied - conditional)), "action": "SCMP_ACT_ALLOW"},
            *(rule for condition in [*families["condition"], *families["refusal"]] for rule in rules(condition)),
            {"names": sorted(absent), "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS},
        ],
    }


def text() -> str:
    """The profile as it is written."""
    families = tomllib.loads((HERE / "families.toml").read_text(encoding="utf-8"))
    return json.dumps(make(families, json.loads((HERE / "traced.json").read_text())), indent=1) + "\n"


if __name__ == "__main__":
    PROFILE.write_text(text(), encoding="utf-8")
    print(f"{PROFILE.name}: {len(json.loads(text())['syscalls'][0]['names'])} system calls")
