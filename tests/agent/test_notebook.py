"""The notebook validates after any sequence of operations, and ids are never used twice."""

from __future__ import annotations

import json

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.notebook import NotebookDocument, UnknownCell, valid_outputs

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
mimes = st.sampled_from(["text/plain", "image/png", "application/json", "application/x+json", "text/html"]) | st.text()
outputs = st.lists(
    st.fixed_dictionaries(
        {"output_type": st.sampled_from(["stream", "error", "display_data", "execute_result"]) | json_values},
        optional={
            "name": json_values,
            "text": json_values,
            "ename": json_values,
            "evalue": json_values,
            "traceback": json_values,
            "data": st.dictionaries(mimes, json_values, max_size=2) | json_values,
            "metadata": json_values,
            "execution_count": json_values,
            "transient": json_values,
        },
    ),
    max_size=3,
)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.integers(-1, 9), st.text(), st.sampled_from(["code", "markdown"])),
        st.tuples(st.just("replace"), st.integers(0, 9), st.text()),
        st.tuples(st.just("delete"), st.integers(0, 9)),
        st.tuples(st.just("outputs"), st.integers(0, 9), outputs, st.none() | st.integers(-1, 9)),
    ),
    max_size=12,
)


@given(st.sampled_from(["python", "R", "julia"]), operations)
def test_it_validates_after_every_operation(language, steps):
    document = NotebookDocument(language)
    seen: list[str] = []
    for kind, place, *rest in steps:
        cells = document.ids
        if kind == "insert":
            seen.append(document.insert(place, rest[0], rest[1]))
        elif place < len(cells):
            cell_id = cells[place]
            if kind == "replace":
                document.replace(cell_id, rest[0])
                assert not document.cell(cell_id).get("outputs")
            elif kind == "delete":
                document.delete(cell_id)
                with pytest.raises(UnknownCell):
                    document.cell(cell_id)
            elif document.cell(cell_id)["cell_type"] == "code":
                document.set_outputs(cell_id, rest[0], rest[1])
        nbformat.validate(document.node)
        nbformat.writes(document.node).encode("utf-8")
    assert seen == [f"c{n + 1}" for n in range(len(seen))]


ORDINARY = [
    {"output_type": "stream", "name": "stdout", "text": "a\n"},
    {"output_type": "stream", "name": "stderr", "text": ["a\n", "b"]},
    {"output_type": "error", "ename": "E", "evalue": "v", "traceback": ["\x1b[31mE\x1b[0m"]},
    {
        "output_type": "display_data",
        "data": {"image/png": "aGk=", "text/plain": "<Figure>"},
        "metadata": {"a": {"b": 1}},
    },
    {
        "output_type": "execute_result",
        "data": {"application/json": {"a": [1.5, None]}},
        "metadata": {},
        "execution_count": 3,
    },
]


def test_ordinary_outputs_come_back_equal():
    assert valid_outputs(ORDINARY) == ORDINARY


def test_outputs_that_no_notebook_may_hold():
    bad = [
        {"output_type": "display_data", "data": {"text/plain": 5}, "metadata": {}, "transient": {"display_id": "x"}},
        {"output_type": "stream", "name": "stdout", "text": "\ud800"},
        {"output_type": "update_display_data"},
    ]
    document = NotebookDocument()
    document.set_outputs(document.append("1"), bad, 1)
    nbformat.validate(document.node)
    first, second, third = document.node.cells[0].outputs
    assert first == {"output_type": "display_data", "data": {"text/plain": "5"}, "metadata": {}}
    assert second.text == "?"
    assert "unknown type" in third.text


def test_json_nested_past_all_reason_is_cut():
    value: list = []
    for _ in range(900):
        value = [value]
    document = NotebookDocument()
    data = {"application/json": value}
    document.set_outputs(document.append("1"), [{"output_type": "display_data", "data": data, "metadata": {}}], 1)
    assert json.dumps(document.node.cells[0].outputs[0]["data"]).count("[") == 101


def test_ids_come_from_the_log_when_it_is_rebuilt():
    document = NotebookDocument()
    document.insert(0, "a", cell_id="c3")
    assert document.append("b") == "c4"
    for used in ("c3", "c1", "x", "c", "c²", "cell"):
        with pytest.raises(ValueError, match="the cell id"):
            document.insert(0, "c", cell_id=used)


def test_metadata_names_the_language():
    metadata = NotebookDocument("R").node.metadata
    assert metadata.kernelspec == {"name": "ir", "display_name": "R", "language": "R"}
    assert metadata.language_info == {"name": "R"}


def test_a_markdown_cell_has_no_outputs():
    document = NotebookDocument()
    with pytest.raises(ValueError, match="markdown"):
        document.set_outputs(document.append("text", "markdown"), [], 1)
