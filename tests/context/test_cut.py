"""Long text cut by rows and columns."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent_context.cut import SHORTEST, first_line, head_tail


def test_a_table_loses_rows_and_columns_and_stays_a_table():
    table = pd.DataFrame(
        np.arange(4000).reshape(100, 40),
        columns=[f"sample_{i}" for i in range(40)],
        index=[f"g{i}" for i in range(100)],
    ).to_string()
    cut = head_tail(table, 1000)
    head, *_, tail = cut.split("\n")
    assert head.split()[0] == "sample_0"
    assert head.split()[-1] == "sample_39"
    assert tail.split()[0] == "g99"
    assert tail.split()[-1] == "3999"
    rows = [line for line in cut.split("\n") if "lines cut" not in line]
    assert {line.index("…") for line in rows} == {head.index("…")}
    assert {len(line) for line in rows} == {len(head)}
    assert len(cut) <= 1000


def parted(cut, delimiter):
    return [line.split(delimiter) for line in cut.split("\n") if "lines cut" not in line]


def test_a_table_of_any_size_loses_the_same_columns_in_every_row():
    rows = [" ".join([f"g{r:03}", *(f"{r * 1000 + c:>7}" for c in range(1500))]) for r in range(200)]
    cut = head_tail("\n".join(rows), 3000).split("\n")
    kept = [line for line in cut if "lines cut" not in line]
    assert len("\n".join(rows)) > 1_000_000
    assert len(kept) > 6
    assert len({(len(line), line.index("…")) for line in kept}) == 1
    assert all("values" not in line for line in cut)
    numbers = head_tail("\n".join(",".join(row.split()) for row in rows), 3000)
    assert len({(len(row), row.index("…")) for row in parted(numbers, ",")}) == 1


def test_a_markdown_table_stays_one():
    rows = [["", *(f"sample_{n}" for n in range(30))], [":--", *["------:"] * 30]]
    rows += [[f"g{r}", *(f"{r * 100 + n:>9}" for n in range(30))] for r in range(200)]
    kept = parted(head_tail("\n".join(f"| {' | '.join(row)} |" for row in rows), 800), "|")
    assert len({(len(row), row.index("…")) for row in kept}) == 1
    assert all(row[0] == row[-1] == "" for row in kept)
    assert [kept[0][2].strip(), kept[0][-2].strip()] == ["sample_0", "sample_29"]
    assert set(kept[1][2]) <= set("-: ")


def test_a_delimiter_in_quotes_parts_no_fields():
    header = ["gene", "description", *(f"s{n}" for n in range(40))]
    rows = [[f"G{n}", f'"kinase {n}, putative"', *["1.5"] * 40] for n in range(30)]
    cut = head_tail("\n".join(",".join(row) for row in [header, *rows]), 600).split("\n")
    assert cut[0].startswith("gene,description,s0,")
    assert cut[1].startswith('G0,"kinase 0, putative",1.5,')
    kept = [line.replace(", ", " ").split(",") for line in cut if "lines cut" not in line]
    assert len({(len(row), row.index("…")) for row in kept}) == 1


def test_a_row_with_a_comma_more_or_less_leaves_the_table_one():
    rows = [[f"s{n}" for n in range(80)], *[["1.5"] * 80 for _ in range(30)]]
    rows[1].append("more")
    rows[-1] = ["# end"]
    cut = head_tail("\n".join(",".join(row) for row in rows), 600).split("\n")
    kept = [line.split(",") for line in cut[:-1] if "lines cut" not in line]
    assert len(kept) > 3
    assert len({(len(row), row.index("…")) for row in kept}) == 1
    assert cut[-1] == "# end"


def test_columns_are_as_wide_as_the_rows_that_are_shown():
    rows = [f"G{n},{'long ' * 400 if n == 50 else 'kinase'},{','.join(['1.5'] * 60)}" for n in range(100)]
    cut = head_tail("\n".join(rows), 1000).split("\n")
    assert cut[0].startswith("G0,kinase,1.5,")
    assert cut[-1].startswith("G99,kinase,1.5,")


def test_rows_of_a_table_that_would_fit_are_cut_as_the_others():
    rows = [f"G{n},{'kinase' if n % 2 else 'k'},{','.join(['1.5'] * 29)}" for n in range(100)]
    assert len({len(row) > 122 for row in rows}) == 2
    kept = parted(head_tail("\n".join(rows), 976), ",")
    assert len({(len(row), row.index("…")) for row in kept}) == 1


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_delimited_rows_lose_the_same_fields(delimiter):
    rows = [delimiter.join(str(r * 1000 + c) for c in range(200)) for r in range(50)]
    cut = head_tail("\n".join(rows), 600).split("\n")
    kept = [line.split(delimiter) for line in cut if "lines cut" not in line]
    assert len({(len(row), row.index("…")) for row in kept}) == 1
    assert kept[0][0] == "0"
    assert kept[0][-1] == "199"


def test_a_long_line_loses_whole_values():
    cut = head_tail(str(list(range(1000))), 200)
    assert cut.startswith("[0, 1, 2,")
    assert cut.endswith("998, 999]")
    head, _, rest = cut.partition(" … ")
    number, _, tail = rest.partition(" values cut … ")
    assert head.count(",") + int(number) + tail.count(",") + 1 == 1000
    assert head_tail("x" * 1000, 100).count("x") < 100


def test_short_text_stays_and_first_lines_are_marked():
    assert head_tail("short", 20) == "short"
    assert first_line("one\ntwo", 10) == "one…"
    assert first_line("one\n", 10) == "one"


ROWS = st.lists(st.text(alphabet=' ab,\t…x1"|;', max_size=300), max_size=80)
TABLES = st.builds(
    lambda rows, delimiter, ragged: [delimiter.join(row * 9) for row in rows] + ragged,
    st.lists(st.lists(st.text(alphabet='ab "1', max_size=9), min_size=3, max_size=9), max_size=30),
    st.sampled_from([",", "\t", "|", "  "]),
    ROWS,
)
TEXTS = st.text() | (ROWS | TABLES).map("\n".join)


@given(TEXTS, st.integers(0, 2000))
def test_a_cut_keeps_its_length_and_is_not_cut_again(text, chars):
    cut = head_tail(text, chars)
    assert head_tail("".join(list(text)), chars) == cut
    assert len(cut) <= max(chars, SHORTEST)
    assert head_tail(cut, chars) == cut
    if len(text) <= chars:
        assert cut == text


@pytest.mark.parametrize("text", ["x" * 3_000_000, "a,b\n" * 500_000, "1 " * 1_000_000, "\n".join(["y" * 5000] * 600)])
def test_huge_text_is_cut(text):
    assert len(head_tail(text, 3000)) <= 3000
