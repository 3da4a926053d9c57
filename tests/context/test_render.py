"""Outputs and cells as text."""

from nbagent_context.render import cell_text, clean, error_text, first_line, head_tail, output_text


def test_terminal_noise_is_removed():
    assert clean("\x1b[31mred\x1b[0m") == "red"
    assert clean("10%\r50%\r100%\ndone\r\n") == "100%\ndone\n"


def test_outputs_keep_their_order_and_prefer_plain_text():
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": "a\n"},
        {"output_type": "execute_result", "data": {"text/html": "<b>7</b>", "text/plain": "7"}, "metadata": {}},
        {"output_type": "display_data", "data": {"text/plain": "<Figure>", "image/png": "xxxx"}, "metadata": {}},
        {"output_type": "stream", "name": "stderr", "text": "b\n"},
    ]
    assert output_text(outputs) == "a\n7\n[image/png]\nb"


def test_an_error_shows_the_failing_line_and_the_exception():
    output = {
        "output_type": "error",
        "ename": "KeyError",
        "evalue": "'x'",
        "traceback": [
            "\x1b[31mTraceback\x1b[0m",
            "      1 a=1\n----> 2 df['x']\n      3 b=2",
            "  -> 99 inner",
            "KeyError: 'x'",
        ],
    }
    assert error_text(output) == "at: df['x']\nKeyError: 'x'"


def test_long_text_loses_its_middle():
    text = "a" * 50 + "b" * 50
    cut = head_tail(text, 20)
    assert cut.startswith("a" * 10 + "\n")
    assert cut.endswith("\n" + "b" * 10)
    assert "80 characters cut" in cut
    assert head_tail("short", 20) == "short"
    assert first_line("one\ntwo", 10) == "one…"


def test_cells_carry_their_ids():
    assert cell_text({"id": "c3", "cell_type": "code", "source": "x=1"}, "r") == "[c3]\n```r\nx=1\n```\n"
    assert cell_text({"id": "c4", "cell_type": "markdown", "source": "# T"}) == "[c4]\n# T\n"
