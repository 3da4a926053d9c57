import pytest

from nbagent_bixbench.draw import draft_tasks
from nbagent_bixbench.families import FAMILIES
from nbagent_bixbench.reference import Notebook, blocking, execute, execute_alone, open_kernel

FILES = {"a.txt": b"7"}


async def shared(*notebooks):
    kernel = await open_kernel()
    try:
        return await execute(kernel, notebooks)
    finally:
        await kernel.close()


@pytest.mark.slow
def test_one_kernel_for_all_and_one_kernel_each_print_the_same_in_every_family(drawn):
    alone = blocking(execute_alone([Notebook(task.files, task.cells) for task in drawn]))
    assert len(alone) == len(FAMILIES)
    for task, executed in zip(drawn, alone, strict=True):
        assert not executed.error
        assert executed.outputs == task.outputs, task.family


async def test_notebooks_do_not_see_each_other_and_run_in_their_capsule():
    first = Notebook(FILES, ("x = 1", "print(open('a.txt').read())"))
    second = Notebook({"a.txt": b"8"}, ("print('x' in globals())", "print(open('a.txt').read())"))
    one, other = await shared(first, second)
    assert one.outputs == ("", "7\n")
    assert other.outputs == ("False\n", "8\n")


async def test_extras_start_from_the_state_before_the_last_cell():
    notebook = Notebook(FILES, ("x = 1", "x = 2\nprint(x)"), ("print(x)", "x = 5", "print(x)", "1/0"))
    (executed,) = await shared(notebook)
    assert executed.outputs == ("", "2\n")
    assert executed.extras == ("1\n", "", "1\n", None)


async def test_a_cell_that_raises_is_told_and_the_others_run():
    broken, whole = await shared(Notebook(FILES, ("print(1)", "1/0")), Notebook(FILES, ("pass", "print(2)")))
    assert broken.error == "ZeroDivisionError: division by zero"
    assert broken.outputs == ("1\n",)
    assert whole.outputs == ("", "2\n")
    (alone,) = await execute_alone([Notebook(FILES, ("print(1)", "1/0"))])
    assert alone.error == broken.error
    assert alone.outputs == broken.outputs


async def test_tasks_can_be_drawn_while_a_loop_runs():
    assert len(draft_tasks(2, seed=1, families=["dose_mean"])) == 2
