"""The environment over real kernels: what each tool does, what the agent reads, and whose failure it is."""

from __future__ import annotations

import asyncio

import nbformat
import pytest

from nbagent.actions import Action
from nbagent.models.base import Completion
from nbagent.tasks import Outcome, Verdict
from nbagent_kernels import KernelPool, Limits, SessionSpec

# One loop for the module, and with it one fork server.
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_attempt_from_reset_to_reward(task, opened):
    async with opened(task) as at:
        messages, tools = at.first
        assert [m["role"] for m in messages] == ["system", "user"]
        assert messages[1]["content"][0]["text"] == "What is x + y?\nFiles: a.csv, deep/b.h5, long.txt"
        assert len(tools) == 9
        assert await at.do("run_cell", code="import pandas as pd\nd = pd.read_csv('a.csv')\nd.shape") == "[c1]\n(1, 2)"
        assert await at.do("run_cell", code="print(d.x[0] + d.y[0])") == "[c2]\n4"
        assert (at.reward, at.done, at.truncated) == (0.0, False, False)
        assert await at.do("submit_answer", answer=" 4\n") == "Answer submitted."
        assert (at.reward, at.done, at.truncated) == (1.0, True, False)
        assert (at.env.answer, at.env.verdict.outcome, at.env.steps_taken) == ("4", Outcome.CORRECT, 3)
        with pytest.raises(RuntimeError, match="has ended"):
            await at.do("list_dir")
    assert [e["kind"] for e in at.events] == ["cell", "execution", "observation"] * 2 + ["answer", "observation"]
    execution = at.kinds("execution")[0]
    assert execution["outputs"] == [
        {"output_type": "execute_result", "data": {"text/plain": "(1, 2)"}, "metadata": {}, "execution_count": 1}
    ]
    assert {"status": "ok", "state_kept": True, "dropped_bytes": 0, "cause": "", "step": 0}.items() <= execution.items()
    assert [(x.step, x.tool, x.cell_id, x.shown, x.short) for x in at.env.history] == [
        (0, "run_cell", "c1", True, "run_cell c1"),
        (1, "run_cell", "c2", True, "run_cell c2"),
        (2, "submit_answer", "", False, "submit_answer 4"),
    ]


@pytest.mark.parametrize("answer", ["5", ""])
async def test_a_wrong_answer_ends_it_without_reward(task, answer, opened):
    async with opened(task) as at:
        await at.do("submit_answer", answer=answer)
        assert (at.reward, at.done, at.truncated) == (0.0, True, False)
        assert at.env.verdict.outcome == (Outcome.INCORRECT if answer else Outcome.NO_ANSWER)


async def test_only_what_changed_is_run(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="n = 0")
        await at.do("run_cell", code="n += 1; print(n)")
        assert await at.do("run_cell", code="n += 10; print(n)", cell="c2") == "[c2]\n11"
        assert await at.do("edit_cell", cell="c1", source="n = 100") == "c1 changed, not run."
        assert await at.do("insert_cell", source="n = 7", before="c2") == "c3 inserted, not run."
        assert await at.do("add_markdown", text="# Counting", before="c1") == "c4 added."
        assert await at.do("run_cell", code="print(n)") == "[c5]\n11"
        assert await at.do("delete_cell", cell="c2") == "c2 deleted; what it defined stays in memory."
        assert await at.do("run_cell", code="print(n)") == "[c6]\n11"
        cells = [(c.id, c.cell_type, c.source) for c in at.env.notebook.cells]
    assert cells == [
        ("c4", "markdown", "# Counting"),
        ("c1", "code", "n = 100"),
        ("c3", "code", "n = 7"),
        ("c5", "code", "print(n)"),
        ("c6", "code", "print(n)"),
    ]
    assert [(e["op"], e["cell"], e["index"], e["cell_type"]) for e in at.kinds("cell")] == [
        ("insert", "c1", 0, "code"),
        ("insert", "c2", 1, "code"),
        ("edit", "c2", 1, "code"),
        ("edit", "c1", 0, "code"),
        ("insert", "c3", 1, "code"),
        ("insert", "c4", 0, "markdown"),
        ("insert", "c5", 4, "code"),
        ("delete", "c2", 3, "code"),
        ("insert", "c6", 4, "code"),
    ]
    assert [e["cell"] for e in at.kinds("execution")] == ["c1", "c2", "c2", "c5", "c6"]


async def test_cells_that_are_not_there_or_no_code(task, opened):
    async with opened(task) as at:
        assert await at.do("delete_cell", cell="c1") == "There is no cell c1; there are: none."
        await at.do("add_markdown", text="a")
        assert await at.do("edit_cell", cell="1", source="") == "There is no cell 1; there are: c1."
        assert "c1 is a markdown cell" in await at.do("run_cell", code="1", cell="c1")
        assert await at.do("run_cell", code="2", cell="c9") == "There is no cell c9; there are: c1."
        assert not at.kinds("execution")


async def test_outputs_as_text(task, opened):
    code = (
        "from IPython.display import display, HTML\n"
        "print('\\x1b[31mred\\x1b[0m\\r50%\\r100%')\n"
        "display(HTML('<b>bold</b>'))\n"
        "display({'text/html': '<i>table</i>', 'text/plain': 'table'}, raw=True)\n"
        "display({'image/png': 'aGk=', 'text/plain': '<Figure>'}, raw=True)"
    )
    async with opened(task) as at:
        assert await at.do("run_cell", code=code) == (
            "[c1]\n100%\n<IPython.core.display.HTML object>\ntable\n[image of c1: png]"
        )
        assert await at.do("run_cell", code="x = 1") == "[c2]\n(no output)"
        assert await at.do("run_cell", code="") == "[c3]\n(no output)"
        text = await at.do("run_cell", code="def f(k):\n    return {}[k]\nf('gene')")
        assert text.startswith("[c4]\n")
        assert text.endswith("KeyError: 'gene'")
        assert "f('gene')" in text
        assert "\x1b" not in text
        assert "site-packages" not in text
        assert "SyntaxError" in await at.do("run_cell", code="x = (")
        assert at.env.history[-1].shown


async def test_outputs_that_break_nbformat_do_not_break_the_notebook(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="display({'text/plain': 5, 'text/x': ['a', 3]}, raw=True); print('\\ud800')")
        nbformat.writes(at.env.notebook).encode("utf-8")
        assert at.kinds("execution")[0]["outputs"] == at.env.notebook.cells[0].outputs


async def test_long_observations_lose_their_middle(task, opened):
    async with opened(task, limits={"observation_chars": 200}) as at:
        text = await at.do("run_cell", code="print('\\n'.join(map(str, range(999))))")
        assert text.startswith("[c1]\n0\n1\n")
        assert text.endswith("\n998")
        assert "lines cut" in text
        assert len(text) < 300
        assert at.env.history[-1].full_chars == len("[c1]\n" + "\n".join(map(str, range(999))))
        assert await at.do("run_cell", code="print(1)") == "[c2]\n1"
        assert at.env.history[-1].full_chars == 0
        await at.do("read_file", path="long.txt")
        await at.do("read_file", path="a.csv")
        await at.do("run_cell", code="for i in range(300):\n    open(f'file_{i}', 'w').close()")
        listed = await at.do("list_dir")
        assert len(listed) < 300
    assert [e.get("full_chars", 0) for e in at.kinds("observation")] == [3890, 0, 98_880, 0, 0, 4426]


async def test_an_exception_keeps_its_name_and_first_line(task, opened):
    message = "print('before\\n' * 99)\nraise ValueError('Input X has NaN.\\n' + 'See the docs on this.\\n' * 99)"
    async with opened(task, limits={"observation_chars": 200}) as at:
        text = await at.do("run_cell", code=message)
        assert text.startswith("[c1]\nbefore\n")
        assert "\nValueError: Input X has NaN.\n" in text
        assert text.endswith("See the docs on this.\n")
        assert await at.do("run_cell", code="1")
    failed, worked = at.kinds("observation")
    assert failed["exception"] == at.env.history[0].exception == "ValueError: Input X has NaN."
    assert "exception" not in worked


async def test_dropped_output_is_said(task, opened):
    async with opened(task, session_limits=Limits(output_bytes=1000)) as at:
        text = await at.do("run_cell", code="print('a' * 100_000)")
        assert "bytes of output dropped]" in text
        assert not at.env.history[-1].shown
        assert at.kinds("execution")[0]["dropped_bytes"] > 90_000


async def test_a_limit_that_was_hit_is_said(task, opened):
    async with opened(task, session_limits=Limits(open_files=64)) as at:
        text = await at.do("run_cell", code="held = [open('/dev/null') for _ in range(100)]")
        assert text.endswith("\n[limit reached: open files: 64]")
        assert not at.env.history[-1].shown
        assert await at.do("run_cell", code="1") == "[c2]\n1"


async def test_a_timeout_says_whether_variables_survived(task, opened):
    limits, session_limits = {"cell_timeout_s": 0.5}, Limits(grace_s=0.5)
    async with opened(task, limits=limits, session_limits=session_limits) as at:
        await at.do("run_cell", code="a = 1")
        text = await at.do("run_cell", code="import time\ntime.sleep(60)")
        assert text.endswith("The cell ran longer than 0.5 s: it was interrupted. Variables are kept.")
        assert await at.do("run_cell", code="a") == "[c3]\n1"
        stubborn = "import time\nwhile True:\n    try:\n        time.sleep(9)\n    except BaseException:\n        pass"
        text = await at.do("run_cell", code=stubborn)
        assert "The cell ran longer than 0.5 s: its kernel was killed. All variables are lost; notebook" in text
        assert "NameError" in await at.do("run_cell", code="a")
    assert [e["status"] for e in at.kinds("execution")] == ["ok", "timeout", "ok", "timeout", "error"]
    assert [(e["op"], bool(e["cause"])) for e in at.kinds("kernel")] == [("lost", True)]


async def test_a_death_is_an_observation_and_the_attempt_goes_on(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="a = 1; open('made.txt', 'w').write('kept')")
        text = await at.do("run_cell", code="import os\nos._exit(3)")
        assert "The kernel died (exit code 3). All variables are lost; notebook and files stay." in text
        assert not at.env.history[-1].shown
        assert "NameError" in await at.do("run_cell", code="a")
        assert await at.do("read_file", path="made.txt") == "kept"
    assert [(e["op"], e["cause"], e["step"]) for e in at.kinds("kernel")] == [("lost", "exit code 3", 1)]


async def test_restart_keeps_the_notebook(task, opened):
    async with opened(task) as at:
        await at.do("run_cell", code="a = 1")
        assert await at.do("restart_kernel") == "Kernel restarted: variables are gone, notebook and files stay."
        assert "NameError" in await at.do("run_cell", code="a")
        assert len(at.env.notebook.cells) == 2
    assert [(e["op"], e["step"]) for e in at.kinds("kernel")] == [("restart", 1)]


async def test_files(task, opened):
    async with opened(task, limits={"observation_chars": 300}) as at:
        assert await at.do("list_dir") == "a.csv (8 B)\ndeep/\nlong.txt (98.9 kB)"
        assert await at.do("list_dir", path="deep") == "deep/b.h5 (72 B)"
        assert await at.do("read_file", path="a.csv") == "x,y\n1,3\n"
        assert await at.do("read_file", path="deep/b.h5") == "deep/b.h5 is a binary file (72 B); open it in a cell."
        long = await at.do("read_file", path="long.txt")
        assert long.startswith("line 0\n")
        assert long.endswith("line 9998\n")
        assert len(long) < 400
        assert await at.do("read_file", path="../x") == "../x: outside the working directory."
        assert await at.do("read_file", path="/etc/passwd") == "/etc/passwd: outside the working directory."
        assert await at.do("read_file", path="no.txt") == "no.txt: no such file or folder."
        assert await at.do("read_file", path="deep") == "deep: a folder; list_dir lists it."
        assert await at.do("list_dir", path="a.csv") == "a.csv: not a folder; read_file reads it."
        assert "null byte" in await at.do("read_file", path="a\0b")
        assert "too long" in (await at.do("read_file", path="a" * 5000)).lower()
        await at.do(
            "run_cell", code="open('empty', 'w'); import os; os.mkdir('none'); os.symlink('/etc/passwd', 'link')"
        )
        assert await at.do("read_file", path="empty") == "(empty file)"
        assert await at.do("list_dir", path="none") == "(empty folder)"
        assert "root:" not in await at.do("read_file", path="link")
    assert [(e["op"], e["path"], e["bytes"]) for e in at.kinds("file")][:3] == [
        ("list", ".", 0),
        ("list", "deep", 0),
        ("read", "a.csv", 8),
    ]


async def test_a_malformed_action_counts_and_says_what_is_wrong(task, opened):
    async with opened(task) as at:
        action = at.env.fmt.parse(Completion("I think it is 4.", "stop"))
        messages, *rest = await at.env.step(action)
        assert messages[0]["content"][0]["text"].startswith("Not an action: there is no tool call")
        assert rest == [0.0, False, False]
        assert await at.do("run_cel", code="1") == "Not an action: there is no tool 'run_cel'; did you mean 'run_cell'?"
        assert "needs the argument 'code'" in await at.do("run_cell")
        assert "half a surrogate" in await at.do("run_cell", code="'\ud800'")
        assert at.env.steps_taken == 4
        assert [x.tool for x in at.env.history] == [""] * 4
    assert [bool(e["error"]) for e in at.kinds("observation")] == [True] * 4
    assert [e["remaining_steps"] for e in at.kinds("observation")] == [19, 18, 17, 16]


async def test_near_the_end_it_is_told_to_submit_and_at_the_end_it_must(task, opened):
    async with opened(task, limits={"max_steps": 3, "warn_steps": 2}) as at:
        assert at.env.notice == ""
        await at.do("run_cell", code="1")
        assert at.env.notice == "2 steps left: submit your answer."
        await at.do("run_cell", code="2")
        assert at.env.notice == "Last step: submit your answer."
        assert "had to be submit_answer" in await at.do("run_cell", code="3")
        assert (at.reward, at.done, at.truncated, at.env.notice) == (0.0, False, True, "")
        assert at.env.verdict == Verdict(Outcome.NO_ANSWER, "no answer within 3 steps")
        assert len(at.kinds("execution")) == 2
    async with opened(task, limits={"max_steps": 1, "warn_steps": 2}) as at:
        assert at.first[0][-1]["content"][-1]["text"] == "\nLast step: submit your answer."
        await at.do("submit_answer", answer="4")
        assert (at.reward, at.done, at.truncated) == (1.0, True, False)


async def test_when_the_time_is_up_one_step_is_left(task, opened):
    async with opened(task, limits={"total_s": 1.5, "warn_s": 1.5}) as at:
        assert at.env.notice.endswith("minutes left: submit your answer.")
        await at.do("run_cell", code="import time\ntime.sleep(30)")
        while at.env.notice != "Time is up: submit your answer now.":
            await at.do("run_cell", code="import time\ntime.sleep(0.5)")
        await at.do("submit_answer", answer="4")
        assert (at.reward, at.done) == (1.0, True)
    assert at.kinds("execution")[0]["status"] == "timeout"
    async with opened(task, limits={"total_s": 0.0}) as at:
        await at.do("run_cell", code="1")
        assert (at.truncated, at.env.verdict.outcome) == (True, Outcome.NO_ANSWER)


async def test_waiting_for_a_kernel_is_not_the_agents_time(task, opened):
    async with KernelPool(1) as kernels:
        other = await kernels.acquire(SessionSpec(preload=()))
        async with opened(task, limits={"total_s": 2.0, "warn_s": 0.0}, kernels=kernels) as at:
            step = asyncio.create_task(at.do("run_cell", code="1"))
            await asyncio.sleep(2.5)
            await other.close()
            assert await step == "[c1]\n1"
            assert (at.env.notice, at.truncated) == ("", False)
            branch = await at.env.branch(lambda kind, **fields: None)
            await branch.step(Action("run_cell", {"code": "2"}, "2"))
            assert branch.notice == ""
            await branch.close()


async def test_fenced_needs_no_ids(task, opened):
    async with opened(task, "fenced") as at:
        assert at.env.brief.instruction == "Answer with Python."
        assert len(at.first[1]) == 2
        messages, *_ = await at.env.step(at.env.fmt.parse(Completion("```python\nprint(4)\n```", "stop")))
        assert messages == [{"role": "user", "content": [{"type": "text", "text": "4"}]}]
        _, reward, done, _ = await at.env.step(at.env.fmt.parse(Completion("<answer>4</answer>", "stop")))
        assert (reward, done) == (1.0, True)


async def test_native_answers_name_the_call(task, opened):
    async with opened(task, "native") as at:
        call = {"id": "call_7", "function": {"name": "list_dir", "arguments": '{"path": null}'}}
        messages, *_ = await at.env.step(at.env.fmt.parse(Completion("", "tool_calls", tool_calls=(call,))))
        assert (messages[0]["role"], messages[0]["tool_call_id"]) == ("tool", "call_7")
        assert messages[0]["content"][0]["text"].startswith("a.csv")
