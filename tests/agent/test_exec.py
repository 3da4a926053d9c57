"""Notebooks run through a kernel session, and outputs compared in their normal form."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nbagent.errors import UsageError
from nbagent.execute_notebook import difference, exec_notebook, language_of
from nbagent.normal_form import digest, normal_text, ran, state_key


def notebook(*sources, **metadata):
    return new_notebook(cells=[new_code_cell(source) for source in sources], metadata=metadata)


@pytest.fixture
def written(tmp_path):
    def write(made):
        nbformat.write(made, tmp_path / "in.ipynb")
        return tmp_path / "in.ipynb", tmp_path / "out" / "done.ipynb"

    return write


def texts(path):
    cells = nbformat.read(path, as_version=4).cells
    return [
        "".join(output.get("text", output.get("ename", "")) for output in cell.get("outputs", ())) for cell in cells
    ]


def test_a_notebook_runs_in_one_kernel_from_top_to_bottom(written, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("from a file")
    made = notebook("x = 2", "print(x * 21)", "", "print(open('a.txt').read())")
    made.cells.insert(1, new_markdown_cell("Words."))
    made.cells[2].outputs = [new_output("stream", text="an old output")]
    path, out = written(made)
    report = exec_notebook(path, out, files=tmp_path / "data")
    assert texts(out) == ["", "", "42\n", "", "from a file\n"]
    assert [(cell.index, cell.status) for cell in report.cells] == [(0, "ok"), (2, "ok"), (3, "ok"), (4, "ok")]
    assert (report.failed, report.skipped) == ((), ())
    assert texts(path)[2] == "an old output"
    nbformat.validate(nbformat.read(out, as_version=4))


def test_a_failure_ends_the_run_and_what_ran_is_written(written):
    path, out = written(notebook("print(1)", "1 / 0", "print(3)"))
    report = exec_notebook(path, out)
    assert texts(out) == ["1\n", "ZeroDivisionError", ""]
    assert [(cell.index, cell.status) for cell in report.failed] == [(1, "error")]
    assert report.skipped == (2,)


def test_errors_may_be_allowed_for_all_cells_or_for_tagged_ones(written):
    path, out = written(notebook("1 / 0", "print(3)"))
    assert exec_notebook(path, out, allow_errors=True).skipped == ()
    assert texts(out) == ["ZeroDivisionError", "3\n"]
    made = notebook("1 / 0", "print(3)")
    made.cells[0].metadata["tags"] = ["raises-exception"]
    path, out = written(made)
    assert exec_notebook(path, out).skipped == ()


def test_a_cell_past_its_time_and_a_death_are_told_with_their_cause(written):
    path, out = written(notebook("while True: pass", "import os; os._exit(4)", "print('still here')"))
    report = exec_notebook(path, out, timeout=1.0, allow_errors=True)
    assert [cell.status for cell in report.cells] == ["timeout", "dead", "ok"]
    assert "4" in report.cells[1].cause


def test_what_is_no_notebook_is_one_line(tmp_path):
    (tmp_path / "bad.ipynb").write_text("{")
    (tmp_path / "old.ipynb").write_text('{"nbformat": 4, "cells": 3, "metadata": {}, "nbformat_minor": 5}')
    for name, what in [("none", "cannot be read"), ("bad", "not a valid notebook"), ("old", "not a valid notebook")]:
        with pytest.raises(UsageError, match=rf"{name}\.ipynb: {what}") as error:
            exec_notebook(tmp_path / f"{name}.ipynb", tmp_path / "out.ipynb")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.ipynb").exists()


def test_a_missing_folder_of_files_is_one_line(written, tmp_path):
    with pytest.raises(UsageError, match="nowhere: no such folder"):
        exec_notebook(*written(notebook("1")), files=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({}, "python"),
        ({"kernelspec": {"name": "ir", "display_name": "R", "language": "R"}}, "r"),
        ({"language_info": {"name": "julia"}}, "julia"),
    ],
)
def test_the_notebook_names_its_language(metadata, language):
    assert language_of(notebook(**metadata)) == language


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("<object object at 0x7f3a51c0>", "<object object at 0x7fffffffab10>"),
        ("/tmp/ipykernel_41/1234.py:1: UserWarning", "/tmp/ipykernel_7/99.py:1: UserWarning"),
        ("File /tmp/abc/task/a.py:3, in f", "File /var/tmp/x-1/task/a.py:3, in f"),
        ("\x1b[31mCell In[3], line 1\x1b[0m", "Cell In[17], line 1"),
        ("wrote tmpab12_xyz.csv", "wrote tmpqqqqqqqq.csv"),
    ],
)
def test_chance_is_left_out_of_a_comparison(first, second):
    assert normal_text(first) == normal_text(second)


@pytest.mark.parametrize(
    ("first", "second"), [("1/2/3", "1/2/4"), ("a.csv", "b.csv"), ("/data/a.csv", "/data/b.csv"), ("0x10", "0x11")]
)
def test_and_nothing_else_is(first, second):
    assert normal_text(first) != normal_text(second)


def stream(*texts):
    return [{"output_type": "stream", "name": "stdout", "text": text} for text in texts]


def test_how_a_stream_was_cut_makes_no_difference():
    assert difference(stream("a\n", "b\n"), stream("a\nb\n")) == ""
    assert difference(stream("a\n"), stream("b\n")) != ""
    assert difference(stream("a\n"), []).startswith("1 outputs before, 0 now")
    result = {"output_type": "execute_result", "metadata": {}, "data": {"text/plain": "1"}}
    assert difference([{**result, "execution_count": 1}], [{**result, "execution_count": 5}]) == ""


def test_the_key_of_a_notebooks_state_leaves_ids_and_counts_out():
    first, second = notebook("x", "y"), notebook("x", "y")
    assert state_key(first, {}) == state_key(second, {})
    assert state_key(first, {}) != state_key(notebook("xy", ""), {})
    first.cells[0].outputs = stream("1")
    digests = {first.cells[0].id: digest(stream("1")), second.cells[0].id: digest(stream("1"))}
    assert state_key(first, digests) != state_key(second, digests)
    second.cells[0].outputs = stream("1")
    assert state_key(first, digests) == state_key(second, digests)


def test_the_key_of_a_state_knows_what_ran_since_the_kernels_last_start():
    first = notebook("x = 1", "x = 2")
    one, two = ({"source": f"x = {n}", "status": "ok"} for n in (1, 2))
    orders = [ran(ran("", *a), *b) for a, b in (((one, ""), (two, "")), ((two, ""), (one, "")), ((one, ""), (one, "")))]
    keys = {state_key(first, {}, kernel) for kernel in ["", ran("", one, ""), *orders]}
    assert len(keys) == 5
    assert ran("", one, "") != ran("", {**one, "status": "timeout"}, "") != ran("", one, digest(stream("1")))
