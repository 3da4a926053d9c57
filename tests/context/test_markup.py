"""HTML as the text that its reader would see."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.markup import html_text
from nbagent_context.render import output_text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<div><style>.a{}</style><table border='1'><tr><td>1</td></tr></table></div>", "1"),
        ("<h3>Top</h3><p>GENE1 &amp; <b>GENE2</b>&nbsp;&lt; 3</p>", "Top\nGENE1 & GENE2\xa0< 3"),
        ("a<br>b<br/>c <!-- d --> e", "a\nb\nc  e"),
        ("<ul>\n  <li>one\n  two</li>\n  <li>three</li>\n</ul>", "one two\nthree"),
        ("<pre>a  b\n1  2</pre>", "a  b\n1  2"),
        ("<SCRIPT>x<y</Script >after", "after"),
        ("<script>never closed 5", ""),
        ("1 < 2 and 3 > 2", "1 < 2 and 3 > 2"),
        ("&#99999999999; &bogus; &#27;[31m", "&#99999999999; &bogus; [31m"),
        ("", ""),
    ],
)
def test_tags_go_and_text_stays(source, text):
    assert html_text(source) == text


def test_a_table_is_rows_of_cells():
    frame = pd.DataFrame({"n": [3, 4], "share": [0.5, 1.0]}, index=["TP53", "KRAS"])
    assert html_text(frame.to_html()) == "\tn\tshare\nTP53\t3\t0.5\nKRAS\t4\t1.0"


def test_markup_without_text_is_named():
    plotly = {
        "application/vnd.plotly.v1+json": {"data": []},
        "text/html": "<div><script>Plotly.newPlot()</script></div>",
    }
    assert output_text([{"output_type": "display_data", "data": plotly}]) == "[text/html, 44 characters]"
    table = {"output_type": "display_data", "data": {"text/html": ["<td>1</td>", "<td>2</td>"]}}
    assert output_text([table]) == "1\t2"


MARKS = st.sampled_from(
    [*"<>&;'\" \n\t", "<td>", "</td>", "<br>", "<script", "</script>", "<!--", "-->", "&lt;", "&#7;"]
)


@given(st.text() | st.lists(MARKS | st.text(max_size=3)).map("".join))
def test_any_markup_has_a_text_that_is_no_longer(source):
    text = html_text(source)
    assert html_text(source) == text
    assert len(text) <= len(source)
    assert "\x1b" not in text
