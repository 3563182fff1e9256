"""A deadline keeps the promises of `asyncio.timeout`."""

import asyncio

import pytest

from proxy.deadline import Deadline


async def test_what_is_in_time_goes_on_and_nothing_happens_later() -> None:
    with Deadline(0.01) as deadline:
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    assert not deadline.expired


async def test_what_takes_longer_is_stopped() -> None:
    with pytest.raises(TimeoutError):
        with Deadline(0.01):
            await asyncio.sleep(10)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)


async def test_it_can_be_moved_both_ways() -> None:
    with Deadline(0.01) as deadline:
        deadline.move(5)
        await asyncio.sleep(0.03)
        with pytest.raises(asyncio.CancelledError):
            deadline.move(0)
            await asyncio.sleep(10)
        deadline.move(0)  # over is over
        assert deadline.expired
    assert deadline.expired


async def test_another_error_stays_itself() -> None:
    with pytest.raises(KeyError):
        with Deadline(5):
            raise KeyError
    with pytest.raises(KeyError):
        with Deadline(0):
            try:
                await asyncio.sleep(10)
            finally:
                raise KeyError


@pytest.mark.parametrize("late", [True, False])
async def test_a_cancellation_by_somebody_else_stays_one(late: bool) -> None:
    caught: list[BaseException] = []

    async def limited() -> None:
        try:
            with Deadline(0 if late else 10):
                await asyncio.sleep(10)
        except BaseException as error:
            caught.append(error)
            raise

    task = asyncio.ensure_future(limited())
    await asyncio.sleep(0)
    if late:
        asyncio.get_running_loop().call_later(0, task.cancel)
    else:
        task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert [type(error) for error in caught] == [asyncio.CancelledError]


async def test_deadlines_nest() -> None:
    with Deadline(5) as outer:
        with pytest.raises(TimeoutError):
            with Deadline(0.01):
                await asyncio.sleep(10)
        await asyncio.sleep(0)
    assert not outer.expired
    with pytest.raises(TimeoutError):
        with Deadline(0.01):
            with Deadline(5):
                await asyncio.sleep(10)
