"""Outputs and cells as text."""

import base64
import copy
import io

from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.render import cell_text, cell_view, content_chars, content_key, output_text


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def error(name, value, *trace):
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": list(trace)}


def png(width, height):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_outputs_keep_their_order_and_prefer_plain_text():
    outputs = [
        stream("a\n"),
        {"output_type": "execute_result", "data": {"text/html": "<b>7</b>", "text/plain": "7"}, "metadata": {}},
        {"output_type": "display_data", "data": {"text/plain": "<Figure>", "image/png": png(640, 480)}, "metadata": {}},
        {"output_type": "display_data", "data": {"application/x-thing": "1"}, "metadata": {}},
        stream("b\n", "stderr"),
    ]
    assert output_text(outputs, "c3") == "a\n7\n[image of c3: 640x480 png]\n[application/x-thing]\nb"


def test_cells_carry_their_ids_and_a_count_that_is_not_the_ids():
    def cell(count, kind="code"):
        return {"id": "c3", "cell_type": kind, "source": "x=1", "execution_count": count}

    assert cell_text(cell(3), "r") == "[c3]\n```r\nx=1\n```\n"
    assert cell_text(cell(7)).startswith("[c3 In 7]\n")
    assert cell_text(cell(None)).startswith("[c3 not run]\n")
    assert cell_text({"id": "c4", "cell_type": "markdown", "source": "# T"}) == "[c4]\n# T\n"
    assert "````" in cell_text({"id": "c4", "cell_type": "code", "source": "'''```'''", "execution_count": 4})


def test_the_key_of_a_cell_is_its_content():
    cell = {"id": "c1", "cell_type": "code", "source": "x", "execution_count": 1, "outputs": [stream("1\n" * 3)]}
    key = content_key(cell, "python")
    assert content_key(copy.deepcopy(cell), "python") == key
    assert content_chars(key) > 6
    others = [
        dict(cell, source="y"),
        dict(cell, execution_count=2),
        dict(cell, outputs=[stream("2")]),
        dict(cell, id="c2"),
        dict(cell, outputs=[stream("1\n" * 3, "stderr")]),
        dict(cell, execution_count=None),
        {name: value for name, value in cell.items() if name != "execution_count"},
    ]
    assert len({key, content_key(cell, "r"), *(content_key(other, "python") for other in others)}) == 9


def test_cells_that_differ_in_the_names_of_their_streams_have_different_keys():
    # The one line of a cell passes over what stands in stderr.
    def cell(*names):
        outputs = [stream(text, name) for text, name in zip("ab", names, strict=True)]
        return {"id": "c1", "cell_type": "code", "source": "x", "execution_count": 1, "outputs": outputs}

    cells = cell("stdout", "stderr"), cell("stderr", "stdout")
    assert [cell_view(one, "python", 80).output_line for one in cells] == ["a…", "b…"]
    assert len({content_key(one, "python") for one in cells}) == 2


names = st.sampled_from(["stdout", "stderr"])
leaves = st.none() | st.booleans() | st.integers() | st.text()
mimes = st.sampled_from(["text/plain", "image/png", "image/svg+xml", "text/html", "video/mp4"])
outputs = st.lists(
    st.builds(stream, st.text() | st.lists(st.text()), names)
    | st.builds(error, st.text(), st.text(), st.text(), st.text())
    | st.fixed_dictionaries(
        {
            "output_type": st.just("display_data"),
            "data": st.dictionaries(mimes, st.text() | st.lists(st.text()))
            | st.dictionaries(
                st.just("application/json"), leaves | st.lists(leaves) | st.dictionaries(st.text(), leaves)
            ),
        }
    ),
    max_size=5,
)


@given(outputs, st.text(), st.sampled_from(["code", "markdown"]), st.randoms(use_true_random=False))
def test_a_view_has_all_texts_and_cells_with_the_same_key_have_the_same_view(outputs, source, kind, chance):
    cell = {"id": "c1", "cell_type": kind, "source": source, "execution_count": 1, "outputs": outputs}
    view = cell_view(cell, "python", 80)
    assert view.output == output_text(outputs, "c1")
    changed = copy.deepcopy(outputs)
    for output in changed:
        if "name" in output:
            output["name"] = chance.choice(["stdout", "stderr"])
    other = dict(cell, outputs=chance.choice([changed, changed[::-1]]))
    if content_key(other, "python") == content_key(cell, "python"):
        assert cell_view(other, "python", 80) == view
    assert view.source == cell_text(cell)
    assert "\n" not in view.line.removesuffix("\n")
    assert "\x1b" not in view.output
