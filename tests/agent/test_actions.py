"""The action formats: render and parse are inverses, parse never raises, and every reason says what to do."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbagent.actions import action_format
from nbagent.errors import UsageError
from nbagent.models.base import Completion
from nbagent.tools import TOOLS, complaint, tool_name

NOISE = [
    "<tool_call>", "</tool_call>", "<answer>", "</answer>", "<think>", "</think>", "```", "```python", "````",
    "\n", "\r", '{"name":', '"', "\\", "{", "}", " ", "x = 1", "é", "\u2028", "NaN", "[" * 50,
]  # fmt: skip
texts = st.one_of(st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.sampled_from(NOISE)).map("".join))


def parse(name: str, text: str, **fields):
    return action_format(name).parse(Completion(text, fields.pop("finish", "stop"), **fields))


@given(st.sampled_from(TOOLS), st.data())
@pytest.mark.parametrize("name", ["hermes", "native"])
def test_what_is_rendered_is_what_is_parsed(name, schema, data):
    keys = data.draw(st.sets(st.sampled_from(sorted(schema["function"]["parameters"]["properties"]) or ["none"])))
    args = {key: data.draw(texts) for key in keys}
    action = parse(name, action_format(name).render(tool_name(schema), args))
    assert (action.tool, action.args, action.error) == (tool_name(schema), args, "")


@given(texts)
@pytest.mark.parametrize("language", ["python", "R"])
def test_fenced_code_comes_back_exactly(language, code):
    fmt = action_format("fenced", language)
    action = fmt.parse(Completion(fmt.render("run_cell", {"code": code}), "stop"))
    assert (action.tool, action.args, action.error) == ("run_cell", {"code": code}, "")


@given(texts)
def test_a_fenced_answer_comes_back_exactly_or_is_refused(answer):
    fmt = action_format("fenced")
    if "<answer>" in answer or "</answer>" in answer:
        with pytest.raises(ValueError, match="cannot write"):
            fmt.render("submit_answer", {"answer": answer})
        return
    action = fmt.parse(Completion(fmt.render("submit_answer", {"answer": answer}), "stop"))
    assert (action.tool, action.args, action.error) == ("submit_answer", {"answer": answer}, "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@given(
    texts,
    st.sampled_from(["stop", "length", "tool_calls", "content_filter"]),
    st.lists(
        st.dictionaries(st.sampled_from(["id", "type", "function", "name", "arguments"]), json_values), max_size=2
    ),
)
@pytest.mark.parametrize("name", ["hermes", "fenced", "native"])
def test_parse_never_raises(name, text, finish, calls):
    action = parse(name, text, finish=finish, tool_calls=tuple(calls))
    assert not action.error or (action.tool, action.args) == ("", {})
    assert not action.error.endswith(".")
    assert "\n" not in action.error


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>" + '{"a":' * 100_000,
        "<tool_call>" + "[" * 100_000,
        '<tool_call>{"name": "run_cell", "arguments": ' + "9" * 5000 + "}</tool_call>",
        "<tool_call>" * 2000,
        "```python\n" * 2000,
        "<answer>" * 2000,
    ],
)
@pytest.mark.parametrize("name", ["hermes", "fenced", "native"])
def test_hostile_text_is_malformed(name, text):
    assert parse(name, text).error


CALL = '<tool_call>\n{"name": "run_cell", "arguments": {"code": "1"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I think it is 4.", "there is no tool call"),
        ("<tool_call>\n{'name': 'x'}\n</tool_call>", "not JSON: Expecting property name"),
        ("<tool_call>\n[1]\n</tool_call>", '"name" and "arguments"'),
        ('<tool_call>\n{"name": "x", "arguments": [1]}\n</tool_call>', "must be an object"),
        ('<tool_call>\n{"name": "x", "arguments": "{"}\n</tool_call>', "arguments are not JSON"),
        ('<tool_call>\n{"name": "x", "arguments": {}}', "must end with </tool_call>"),
        (f"{CALL}\n{CALL}", "there are 2 actions in it; give exactly one"),
        ("<think>hm, " + CALL, "the thinking has no end"),
    ],
)
def test_hermes_says_what_is_wrong(text, reason):
    action = parse("hermes", text)
    assert (action.tool, action.args, action.text) == ("", {}, text)
    assert reason in action.error


@pytest.mark.parametrize(
    "text",
    [
        CALL,
        f"First I look.\n{CALL}\n",
        f"<think>maybe {CALL} or <tool_call>no</think>\n{CALL}",
        f"maybe {CALL} </think>\n{CALL}",
        '<tool_call>{"name": "run_cell", "arguments": "{\\"code\\": \\"1\\"}"}</tool_call>',
    ],
)
def test_hermes_leaves_prose_and_thinking_aside(text):
    action = parse("hermes", text)
    assert (action.tool, action.args, action.error) == ("run_cell", {"code": "1"}, "")


def test_hermes_reads_raw_newlines_in_strings():
    action = parse("hermes", '<tool_call>{"name": "run_cell", "arguments": {"code": "a\nb\tc"}}</tool_call>')
    assert action.args == {"code": "a\nb\tc"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4", "write one ```python block, or <answer>…</answer>"),
        ("```python\nprint(1)```", "not closed by ``` on a line of its own"),
        ("<answer>4", "<answer> is not closed"),
        ("```r\n1\n```", "write one ```python block"),
        ("```python\n1\n```\n```python\n2\n```", "there are 2 actions"),
        ("```python\n1\n```\n<answer>1</answer>", "there are 2 actions"),
    ],
)
def test_fenced_says_what_is_wrong(text, reason):
    assert reason in parse("fenced", text).error


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("```python\nx = '<answer>'\n```", "x = '<answer>'"),
        ("I sum.\n\n```py\n1\n```\nThen I answer.", "1"),
        ("```\nnot code\n```\n```python\n1\n```", "1"),
        ("<think>```python\n0\n```</think>```python\n1\n```", None),
        ("<think>```python\n0\n```</think>\n```python\n1\n```", "1"),
        ("```python\n```", ""),
        ("````python\n```\n````", "```"),
    ],
)
def test_fenced_finds_the_block(text, code):
    action = parse("fenced", text)
    assert action.error if code is None else (action.tool, action.args) == ("run_cell", {"code": code})


@pytest.mark.parametrize("name", ["hermes", "fenced", "native"])
def test_a_cut_completion_is_malformed(name):
    text = "```python\n1\n```" if name == "fenced" else CALL
    assert parse(name, text, finish="length", ids=(1, 2, 3)).error == "it was cut off at 3 tokens; write less"
    assert "at 9 tokens" in parse(name, text, finish="length", usage={"completion_tokens": 9.0}).error
    assert parse(name, text, finish="length").error == "it was cut off; write less"


def endpoint_call(name, arguments, call_id="call_1"):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_native_takes_the_endpoints_call_and_keeps_it_for_the_history():
    call = endpoint_call("run_cell", json.dumps({"code": "1"}))
    action = parse("native", "I look.", finish="tool_calls", tool_calls=(call,))
    assert (action.tool, action.args, action.call_id, action.error) == ("run_cell", {"code": "1"}, "call_1", "")
    assert action.text == f"I look.\n{CALL}"


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ((), "there is no tool call; call exactly one tool"),
        ((endpoint_call("a", "{}"), endpoint_call("b", "{}")), "there are 2 actions"),
        ((endpoint_call("a", "{"),), "arguments are not JSON"),
        (({"id": "x"},), '"name" and "arguments"'),
    ],
)
def test_native_says_what_is_wrong(calls, reason):
    assert reason in parse("native", "", tool_calls=calls).error


@pytest.mark.parametrize("args", [{"code": "1", "cell": "c1"}, {}])
def test_fenced_refuses_to_write_what_it_cannot_say(args):
    with pytest.raises(ValueError, match="format fenced cannot write run_cell"):
        action_format("fenced").render("run_cell", args)


def test_instructions():
    assert action_format("fenced").instruction(TOOLS) == "Answer with Python."
    assert action_format("fenced", "r").instruction(TOOLS) == "Answer with R."
    hermes = action_format("hermes").instruction(TOOLS)
    lines = hermes.split("<tools>\n")[1].split("\n</tools>")[0].split("\n")
    assert [json.loads(line) for line in lines] == TOOLS
    assert "tool_call" not in action_format("native").instruction(TOOLS)


def test_which_tools_a_format_has():
    assert [tool_name(tool) for tool in action_format("fenced").available(TOOLS)] == ["run_cell", "submit_answer"]
    assert action_format("hermes").available(TOOLS) == action_format("native").available(TOOLS) == TOOLS
    assert [action_format(name).sends_schemas for name in ("hermes", "fenced", "native")] == [False, False, True]


def test_an_unknown_format_is_bad_input():
    with pytest.raises(UsageError, match="there are: answer, fenced, hermes, native"):
        action_format("xml")


def test_qwens_own_template_writes_the_same_call():
    # What Qwen3's published chat template gives for an assistant message with this tool call.
    assert action_format("hermes").render("run_cell", {"code": 'print("é")\n'}) == (
        '<tool_call>\n{"name": "run_cell", "arguments": {"code": "print(\\"é\\")\\n"}}\n</tool_call>'
    )
    assert not complaint("run_cell", {"code": "1"})


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>42</answer>", "42"),
        ("It is so.\n<ANSWER> B </Answer> done", " B "),
        ("42", "42"),
        ("<think>maybe <answer>1</answer></think><answer>2</answer>", "2"),
        ("<answer>1</answer> or <answer>2</answer>", "<answer>1</answer> or <answer>2</answer>"),
        ("<answer>1", "<answer>1"),
        ("</answer>1<answer>", "</answer>1<answer>"),
        ("", ""),
    ],
)
def test_an_answer_is_what_stands_in_one_pair_of_tags_or_the_whole_reply(text, answer):
    action = parse("answer", text)
    assert (action.tool, action.args) == ("submit_answer", {"answer": answer})


@given(texts)
def test_an_answer_rendered_is_the_answer_parsed(text):
    fmt = action_format("answer")
    try:
        rendered = fmt.render("submit_answer", {"answer": text})
    except ValueError:
        assert "answer>" in text
        return
    assert fmt.parse(Completion(rendered, "stop")).args == {"answer": text}


def test_an_answer_that_was_cut_off_is_none():
    assert "cut off" in parse("answer", "<answer>4", finish="length").error
    assert [tool_name(tool) for tool in action_format("answer").available(TOOLS)] == ["submit_answer"]
    with pytest.raises(ValueError, match="cannot write run_cell"):
        action_format("answer").render("run_cell", {"code": "1"})
