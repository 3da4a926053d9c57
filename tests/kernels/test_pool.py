"""Many sessions at once: bounds, order, memory, warm ones, and nothing left behind."""

from __future__ import annotations

import asyncio

import pytest
from kernel_probes import text

from nbagent_kernels import KernelStartError, Limits, SessionClosed, SessionSpec, open_session, pool
from nbagent_kernels.memory import available_bytes, kernels_bytes
from nbagent_kernels.pool import KernelPool

pytestmark = pytest.mark.asyncio(loop_scope="module")
SPEC = SessionSpec(preload=("numpy",), limits=Limits(grace_s=1.0))
STATE = """
import random, sys, os
numpy = sys.modules.get("numpy")
print(random.random(), numpy and numpy.random.random(), sorted(os.listdir()), hash("a"))
print(sorted(name for name in dir() if name != "numpy"), len(In), Out, get_ipython().execution_count)
"""


async def until(condition, seconds: float = 20.0) -> None:
    """Wait for something that happens in the background."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", [1, 2])
async def test_no_more_than_size_are_out_and_the_first_to_ask_is_served_first(size):
    order = []

    async def use(number: int, kernels: KernelPool) -> None:
        async with kernels.session() as session:
            order.append(number)
            out.add(number)
            assert len(out) <= size
            assert (await session.execute("1")).status == "ok"
            out.discard(number)

    out: set[int] = set()
    async with KernelPool(size, spec=SPEC) as kernels:
        users = [asyncio.create_task(use(number, kernels)) for number in range(8)]
        await asyncio.gather(*users)
        health = await kernels.health()
    assert sorted(order) == list(range(8))
    if size == 1:  # Two that start side by side may come up in either order.
        assert order == list(range(8))
    assert (health.open, health.waiting, health.starting, health.deaths) == (0, 0, 0, 0)
    assert health.starts_per_s > 0
    assert str(health).startswith(f"0/{size} open, 0 warm, 0 starting, 0 waiting; kernels take ")


async def test_starts_in_flight_are_bounded(monkeypatch):
    starting, most = 0, 0

    async def counted(spec, backend):
        nonlocal starting, most
        starting += 1
        most = max(most, starting)
        try:
            return await open_session(spec, backend)
        finally:
            starting -= 1

    monkeypatch.setattr(pool, "open_session", counted)
    async with KernelPool(12, spec=SPEC, starts=3) as kernels:
        sessions = await asyncio.gather(*(kernels.acquire() for _ in range(12)))
        assert most == 3
        await asyncio.gather(*(session.close() for session in sessions))


async def test_a_cancelled_caller_takes_nothing_along():
    async with KernelPool(1, spec=SPEC) as kernels:
        first = await kernels.acquire()
        waiting = [asyncio.create_task(kernels.acquire()) for _ in range(3)]
        await until(lambda: kernels._waiting == 3)
        waiting[0].cancel()
        waiting[1].cancel()
        await first.close()
        session = await waiting[2]
        assert (await session.execute("1")).status == "ok"
        await session.close()
        starting = asyncio.create_task(kernels.acquire())
        await until(lambda: kernels._starting == 1)
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled()
        async with kernels.session() as session:
            assert (await kernels.health()).open == 1


async def test_a_closed_pool_ends_its_sessions_and_tells_those_who_wait():
    kernels = KernelPool(1, warm=1, spec=SPEC)
    async with kernels:
        session = await kernels.acquire()
        waiting = asyncio.create_task(kernels.acquire())
        await until(lambda: kernels._waiting == 1)
    with pytest.raises(SessionClosed, match="pool is closed"):
        await waiting
    with pytest.raises(SessionClosed):
        await session.execute("1")
    with pytest.raises(SessionClosed, match="pool is closed"):
        await kernels.acquire()
    await kernels.close()


async def test_a_failed_start_gives_the_room_back():
    async with KernelPool(1, spec=SPEC) as kernels:
        with pytest.raises(KernelStartError, match="capsule"):
            await kernels.acquire(SessionSpec(preload=("numpy",), capsule="/nowhere"))
        async with kernels.session() as session:
            assert (await session.execute("1")).status == "ok"


async def test_memory_below_the_floor_holds_new_sessions_back(caplog):
    floor = available_bytes() + (1 << 40)
    async with KernelPool(4, spec=SPEC, floor_bytes=floor) as kernels:
        first = await kernels.acquire()  # with none open one is always let through
        second = asyncio.create_task(kernels.acquire())
        await until(lambda: "waiting for memory: sessions open or coming up: 1" in caplog.text)
        assert not second.done()
        kernels._floor = 0
        await (await second).close()
        await first.close()


async def test_patience_ends_the_wait_for_memory(caplog):
    async with KernelPool(2, spec=SPEC, floor_bytes=available_bytes() + (1 << 40), patience_s=0.3) as kernels:
        async with kernels.session(), kernels.session() as second:
            assert (await second.execute("1")).status == "ok"
    assert "no longer waiting for memory: sessions open or coming up: 1" in caplog.text


async def test_memory_of_the_kernels_is_measured():
    before = kernels_bytes()
    async with KernelPool(1, spec=SPEC) as kernels, kernels.session() as session:
        await session.execute("block = bytearray(b'x') * (200 << 20)")
        grown = kernels_bytes() - before
        assert 190 << 20 < grown < 400 << 20
        assert (await kernels.health()).kernels_bytes > 190 << 20


async def test_losses_are_counted():
    async with KernelPool(1, spec=SPEC) as kernels:
        async with kernels.session() as session:
            assert (await session.execute("import os; os._exit(3)")).status == "dead"
            assert (await kernels.health()).deaths == 1
            assert (await session.execute("while True: pass", timeout=0.3)).status == "timeout"
        assert (await kernels.health()).deaths == 1


async def test_a_warm_session_is_as_a_fresh_one(tmp_path):
    (tmp_path / "data.csv").write_text("a\n1\n")
    wanted = SessionSpec(preload=SPEC.preload, limits=SPEC.limits, capsule=tmp_path, seed=1 << 40)
    fresh = await open_session(wanted, "fork")
    expected = text((await fresh.execute(STATE)).outputs)
    await fresh.close()
    async with KernelPool(2, warm=1, spec=SPEC) as kernels:
        await until(lambda: len(kernels._spare) == 1)
        ready = kernels._spare[0]
        session = await kernels.acquire(wanted)
        assert session is ready
        assert session.spec == wanted
        result = await session.execute(STATE)
        assert result.execution_count == 1
        assert text(result.outputs) == expected
        await session.restart()
        assert text((await session.execute(STATE)).outputs) == expected
        await until(lambda: len(kernels._spare) == 1)


async def test_a_warm_session_serves_only_what_it_can_become():
    async with KernelPool(2, warm=1, spec=SPEC) as kernels:
        await until(lambda: len(kernels._spare) == 1)
        other = await kernels.acquire(SessionSpec(preload=("numpy",), env={"A": "1"}))
        assert text((await other.execute("import os; print(os.environ['A'])")).outputs) == "1\n"
        assert len(kernels._spare) == 1
    async with KernelPool(2, warm=1, backend="local", spec=SPEC) as kernels:
        await until(lambda: len(kernels._spare) == 1)
        warm = kernels._spare[0]
        assert kernels._fitting(SessionSpec(preload=("numpy",), limits=SPEC.limits, seed=1)) is None
        assert await kernels.acquire() is warm


async def test_a_warm_session_that_died_is_not_handed_out():
    async with KernelPool(1, warm=1, spec=SPEC) as kernels:
        await until(lambda: len(kernels._spare) == 1)
        dead = kernels._spare[0]
        dead.wire.kill()
        await dead.wire.dead
        session = await kernels.acquire()
        assert session is not dead
        assert (await session.execute("1")).status == "ok"


async def test_warm_sessions_give_way_where_memory_is_short():
    async with KernelPool(2, warm=1, spec=SPEC) as kernels:
        await until(lambda: len(kernels._spare) == 1)
        first = await kernels.acquire()
        await until(lambda: len(kernels._spare) == 1)
        kernels._floor = available_bytes() + (1 << 40)
        other = asyncio.create_task(kernels.acquire(SessionSpec(preload=("numpy",), env={"A": "1"})))
        await until(lambda: not kernels._spare)
        assert not other.done()
        await first.close()
        assert (await (await other).execute("1")).status == "ok"


async def test_a_warm_session_that_is_taken_at_once_is_replaced():
    async with KernelPool(4, warm=1, spec=SPEC) as kernels:
        for _ in range(4):
            async with asyncio.timeout(30):
                while not kernels._spare:
                    await asyncio.sleep(0)
            await kernels.acquire()


async def test_who_comes_while_a_warm_session_comes_up_takes_it_over(monkeypatch):
    opened = []

    async def counted(spec, backend):
        opened.append(spec)
        return await open_session(spec, backend)

    monkeypatch.setattr(pool, "open_session", counted)
    async with KernelPool(2, spec=SPEC) as kernels:
        kernels.keep_warm(1)
        await until(lambda: kernels._starting == 1)
        kernels.warm = 0
        session = await kernels.acquire(SessionSpec(preload=SPEC.preload, limits=SPEC.limits, seed=5))
        assert (await session.execute("1")).status == "ok"
        assert len(opened) == 1


async def test_who_is_cancelled_as_the_session_taken_over_comes_up_leaves_none(monkeypatch):
    made, go = [], asyncio.Event()

    async def held(spec, backend):
        made.append(await open_session(spec, backend))
        await go.wait()
        return made[0]

    monkeypatch.setattr(pool, "open_session", held)
    async with KernelPool(1, spec=SPEC) as kernels:
        kernels.keep_warm(1)
        await until(lambda: made)
        (coming,) = kernels._warming
        coming.add_done_callback(lambda _: caller.cancel())
        kernels.warm = 0
        caller = asyncio.create_task(kernels.acquire())
        await until(lambda: kernels._coming == 1)
        go.set()
        await asyncio.wait([caller])
        assert caller.cancelled()
        with pytest.raises(SessionClosed):
            await made[0].execute("1")


async def test_nothing_is_warmed_up_beside_those_who_start(monkeypatch):
    monkeypatch.setattr(pool.os, "cpu_count", lambda: 2)
    async with KernelPool(4, spec=SPEC) as kernels:
        kernels.warm = 4
        callers = [asyncio.create_task(kernels.acquire()) for _ in range(3)]
        await until(lambda: kernels._coming == 3)
        kernels.keep_warm(4)
        assert not kernels._warming
        await asyncio.gather(*callers)
        await until(lambda: len(kernels._spare) == 4)


async def test_who_waits_for_others_to_end_does_not_keep_warm_sessions_from_starting():
    async with KernelPool(1, spec=SPEC) as kernels:
        first = await kernels.acquire()
        second = asyncio.create_task(kernels.acquire())
        await until(lambda: kernels._waiting == 1)
        kernels.keep_warm(1)
        await until(lambda: len(kernels._spare) == 1)
        ready = kernels._spare[0]
        await first.close()
        assert await second is ready


async def test_warm_sessions_are_held_only_where_memory_is_plenty():
    async with KernelPool(4, spec=SPEC, floor_bytes=available_bytes() - (5 << 29)) as kernels:
        kernels.keep_warm(4)
        async with asyncio.timeout(20):
            while kernels._warming or not kernels._spare:
                await asyncio.sleep(0.01)
        assert len(kernels._spare) in (1, 2)  # two and a half GiB above the floor, and one for each


async def test_a_warm_session_of_another_language_has_nothing_imported():
    kernels = KernelPool(1, backend="docker", spec=SessionSpec(language="R"))
    assert kernels._warm_spec().preload is None
    assert not pool.reseeds(kernels.spec, "docker")
    await kernels.close()
