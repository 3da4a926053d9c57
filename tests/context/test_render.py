"""Outputs and cells as text."""

import base64
import copy
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.failure import error_text
from nbagent_context.images import image_name, image_parts
from nbagent_context.render import cell_text, cell_view, content_chars, content_key, one_line, output_text


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def error(name, value, *trace):
    return {"output_type": "error", "ename": name, "evalue": value, "traceback": list(trace)}


def png(width, height, mode="RGB", kind="PNG"):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, kind)
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


def test_an_error_shows_the_agents_frames_the_last_library_frame_and_the_exception():
    # As IPython writes it, with a library in between and another exception as the cause.
    output = error(
        "KeyError",
        "'x'",
        "KeyError   Traceback (most recent call last)",
        "File /v/lib/python3.11/site-packages/pandas/base.py:10, in Index.get_loc(self, key)\n---> 10 return key",
        "The above exception was the direct cause of the following exception:",
        "KeyError   Traceback (most recent call last)",
        "Cell In[7], line 2\n      1 a=1\n----> 2 total('x')\n      3 b=2",
        "Cell In[3], line 5, in total(name)\n      4 d = 0\n----> 5 return df[name]",
        "File /v/lib/python3.11/site-packages/pandas/frame.py:4102, in DataFrame.__getitem__(self, key)\n-> 4102 pass",
        "File /v/lib/python3.11/site-packages/pandas/base.py:3812, in Index.get_loc(self, key)\n-> 3812 raise",
        "KeyError: 'x'",
    )
    assert error_text(output) == (
        "at: total('x')\nat In[3]: return df[name]\nin pandas/base.py:3812 Index.get_loc\nKeyError: 'x'"
    )
    assert one_line([output], error_text(output), 80) == "KeyError: 'x'…"


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (
            error("SyntaxError", "invalid syntax (18.py, line 1)", "  Cell In[4], line 1\n    x = = 1\n        ^\n"),
            "at: x = = 1\nSyntaxError: invalid syntax",
        ),
        (error("KeyError", "'g'", "\x1b[31mKeyError\x1b[0m", "Cell In[3], line 1", "KeyError: 'g'"), "KeyError: 'g'"),
        (
            error(
                "ERROR", "Error in file(f): no", "Error in file(f): no\nTraceback:\n", '1. read.csv("a")\n2. file(f)'
            ),
            'at: read.csv("a")\nin file(f)\nERROR: Error in file(f): no',
        ),
        (error("SystemExit", "3"), "SystemExit: 3"),
    ],
)
def test_other_errors_show_what_they_have(output, text):
    assert error_text(output) == text


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
    ]
    assert len({key, content_key(cell, "r"), *(content_key(other, "python") for other in others)}) == 6


leaves = st.none() | st.booleans() | st.integers() | st.text()
mimes = st.sampled_from(["text/plain", "image/png", "image/svg+xml", "text/html", "video/mp4"])
outputs = st.lists(
    st.builds(stream, st.text() | st.lists(st.text()))
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


@given(outputs, st.text(), st.sampled_from(["code", "markdown"]))
def test_a_view_has_all_texts_and_cells_with_the_same_key_have_the_same_view(outputs, source, kind):
    cell = {"id": "c1", "cell_type": kind, "source": source, "execution_count": 1, "outputs": outputs}
    view = cell_view(cell, "python", 80)
    assert view.output == output_text(outputs, "c1")
    other = dict(cell, outputs=copy.deepcopy(outputs)[::-1])
    if content_key(other, "python") == content_key(cell, "python"):
        assert cell_view(other, "python", 80) == view
    assert view.source == cell_text(cell)
    assert "\n" not in view.line.removesuffix("\n")
    assert "\x1b" not in view.output


def test_images_are_named_with_their_size():
    assert image_name("c3", "image/png", png(640, 480)) == "[image of c3: 640x480 png]"
    assert image_name("", "image/jpeg", png(64, 48, kind="JPEG")) == "[image: 64x48 jpeg]"
    assert image_name("c3", "image/svg+xml", "<svg/>") == "[image of c3: svg]"
    assert image_name("c3", "image/png", "aGk=") == "[image of c3: png]"
    assert image_name("c3", "image/gif", "no base64!") == "[image of c3: gif]"


def test_images_are_scaled_and_what_is_none_is_left_out():
    from PIL import Image

    large = {"output_type": "display_data", "data": {"image/png": png(2000, 500, "RGBA")}}
    broken = {"output_type": "display_data", "data": {"image/png": "aGk="}}
    (part,) = image_parts({"outputs": [large, broken, stream("text")]})
    head, _, data = part["image_url"]["url"].partition(",")
    assert (part["type"], head) == ("image_url", "data:image/png;base64")
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (768, 192)
