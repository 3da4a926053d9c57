"""The tools' schemas, pinned in a golden file, and what a wrong call is told."""

from __future__ import annotations

import json

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.tools import TOOLS, complaint, tool_name


def test_the_schemas_are_the_golden_ones(golden):
    golden("tools.json", json.dumps(TOOLS, indent=2) + "\n")


def test_every_schema_is_json_schema():
    for tool in TOOLS:
        jsonschema.Draft202012Validator.check_schema(tool["function"]["parameters"])


@pytest.mark.parametrize(
    ("tool", "args", "reason"),
    [
        ("run_cel", {}, "there is no tool 'run_cel'; did you mean 'run_cell'?"),
        ("xyz", {}, "there is no tool 'xyz'; there are: add_markdown, delete_cell"),
        ("run_cell", {"cod": "1"}, "run_cell has no argument 'cod'; did you mean 'code'?"),
        ("restart_kernel", {"x": 1}, "restart_kernel has no argument 'x'"),
        ("run_cell", {}, "run_cell needs the argument 'code' (a string)"),
        ("run_cell", {"code": None}, "run_cell needs the argument 'code' (a string)"),
        ("run_cell", {"code": ["a"]}, "run_cell: 'code' must be a string, not a list"),
        ("run_cell", {"code": "", "cell": 2}, "run_cell: 'cell' must be a string, not a number"),
        ("run_cell", {"code": "", "cell": True}, "run_cell: 'cell' must be a string, not a boolean"),
        ("run_cell", {"code": "", "cell": {}}, "run_cell: 'cell' must be a string, not an object"),
        ("run_cell", {"code": "\ud800"}, "half a surrogate pair"),
        ("run_cell", {"code": "1", "cell": None}, ""),
        ("list_dir", {}, ""),
    ],
)
def test_a_wrong_call_is_told_what_is_wrong(tool, args, reason):
    told = complaint(tool, args)
    assert told.startswith(reason) or (reason and reason in told)
    assert bool(told) == bool(reason)


@given(
    st.sampled_from(TOOLS),
    st.dictionaries(
        st.sampled_from(["code", "cell", "source", "before", "text", "path", "answer", "other"]),
        st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.integers(), st.lists(st.text()), st.booleans()),
        max_size=3,
    ),
)
def test_the_check_agrees_with_json_schema(tool, args):
    valid = jsonschema.Draft202012Validator(tool["function"]["parameters"]).is_valid(args)
    assert valid == (complaint(tool_name(tool), args) == "")
