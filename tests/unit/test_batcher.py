"""Natural batching: one batch away, the next gathers; each item has its own fate."""

from __future__ import annotations

import asyncio

import pytest

from proxy.batcher import CROWD, Batcher, BatcherClosedError, BatcherFullError


class Counter:
    """Doubles numbers; every batch waits until `gate` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def send(self, items: list[int]) -> list[int | BaseException]:
        self.batches.append(items)
        await self.gate.wait()
        return [ValueError(n) if n < 0 else 2 * n for n in items]


async def _turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_submitted_in_one_turn_travels_together() -> None:
    counter = Counter()
    batcher = Batcher(counter.send)
    assert await asyncio.gather(*(batcher.submit(n) for n in range(5))) == [0, 2, 4, 6, 8]
    assert counter.batches == [[0, 1, 2, 3, 4]]


async def test_while_one_batch_is_away_the_next_gathers_up_to_its_bound() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send, max_items=3)
    first = asyncio.create_task(batcher.submit(1))
    await _turn()
    rest = [asyncio.create_task(batcher.submit(n)) for n in range(2, 7)]
    await _turn()
    assert counter.batches == [[1]]
    assert batcher.waiting == 5
    counter.gate.set()
    assert await asyncio.gather(first, *rest) == [2, 4, 6, 8, 10, 12]
    assert counter.batches == [[1], [2, 3, 4], [5, 6]]
    assert batcher.waiting == 0


@pytest.mark.parametrize(("crowd", "together"), [(CROWD, True), (CROWD - 1, False)])
async def test_a_crowd_waits_for_what_comes_in_the_next_turns(crowd: int, together: bool) -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send, turns=8)
    first = asyncio.create_task(batcher.submit(0))
    await _turn()
    gathered = [asyncio.create_task(batcher.submit(n)) for n in range(1, crowd + 1)]
    await _turn()
    counter.gate.set()
    await first
    late = asyncio.create_task(batcher.submit(9))
    await asyncio.gather(*gathered, late)
    assert counter.batches[0] == [0]
    assert (9 in counter.batches[1]) is together
    assert [n for batch in counter.batches for n in batch] == [0, *range(1, crowd + 1), 9]


async def test_an_error_in_ones_place_is_his_alone() -> None:
    batcher = Batcher(Counter().send)
    answers = await asyncio.gather(*(batcher.submit(n) for n in (1, -1, 2)), return_exceptions=True)
    assert answers[0] == 2
    assert isinstance(answers[1], ValueError)
    assert answers[2] == 4


async def test_an_error_of_the_sending_goes_to_everybody_and_the_next_batch_is_sent() -> None:
    failures = [OSError("away")]

    async def send(items: list[int]) -> list[int]:
        if failures:
            raise failures.pop()
        return items

    batcher = Batcher(send)
    answers = await asyncio.gather(*(batcher.submit(n) for n in (1, 2)), return_exceptions=True)
    assert [type(a) for a in answers] == [OSError, OSError]
    assert await batcher.submit(3) == 3


async def test_a_wrong_number_of_results_is_nobodys_result() -> None:
    async def send(items: list[int]) -> list[int]:
        return items[1:]

    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        await Batcher(send).submit(1)


async def test_an_item_that_timed_out_while_it_waited_is_never_sent() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send)
    away = asyncio.create_task(batcher.submit(1))
    await _turn()
    with pytest.raises(TimeoutError):
        await batcher.submit(2, timeout_s=0.01)
    assert batcher.waiting == 0
    counter.gate.set()
    assert await away == 2
    assert await batcher.submit(3) == 6
    assert counter.batches == [[1], [3]]


async def test_each_item_has_a_time_of_its_own() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send)
    loop = asyncio.get_running_loop()
    began = loop.time()

    async def ended(timeout_s: float | None) -> tuple[str, float]:
        try:
            await batcher.submit(1, timeout_s=timeout_s)
        except TimeoutError:
            return "timeout", loop.time() - began
        return "answer", loop.time() - began

    waits = [0.15, 0.05, 30.0, None, 0.1]  # a shorter one after a longer, and those that get their answer
    tasks = [asyncio.create_task(ended(seconds)) for seconds in waits]
    await asyncio.wait([tasks[0], tasks[1], tasks[4]])
    counter.gate.set()
    results = await asyncio.gather(*tasks)

    assert [how for how, _ in results] == ["timeout", "timeout", "answer", "answer", "timeout"]
    assert results[1][1] < results[4][1] < results[0][1]
    assert all(results[i][1] >= (waits[i] or 0) - 0.005 for i in (0, 1, 4))
    assert not batcher._waits._entries


async def test_a_caller_who_leaves_while_away_does_not_disturb_the_others() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send)
    leaver, stayer = asyncio.create_task(batcher.submit(1)), asyncio.create_task(batcher.submit(2))
    await _turn()
    leaver.cancel()
    await _turn()
    counter.gate.set()
    assert await stayer == 4
    assert leaver.cancelled()
    assert batcher.waiting == 0


async def test_too_many_waiting_are_refused_at_once_and_callers_who_left_do_not_count() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send, max_waiting=2)
    tasks = [asyncio.create_task(batcher.submit(0))]
    await _turn()
    tasks += [asyncio.create_task(batcher.submit(n)) for n in (1, 2)]
    await _turn()
    with pytest.raises(BatcherFullError):
        await batcher.submit(3)
    for _ in range(50):  # a stream of callers who give up must not grow the queue
        tasks[1].cancel()
        await _turn()
        tasks[1] = asyncio.create_task(batcher.submit(9))
        await _turn()
    assert len(batcher._queue) <= 4
    counter.gate.set()
    assert await asyncio.gather(*tasks) == [0, 18, 4]


async def test_closing_sends_what_waits_and_takes_nothing_more() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send)
    tasks = [asyncio.create_task(batcher.submit(1))]
    await _turn()
    tasks.append(asyncio.create_task(batcher.submit(2)))
    await _turn()
    closing = asyncio.create_task(batcher.close())
    await _turn()
    with pytest.raises(BatcherClosedError):
        await batcher.submit(3)
    counter.gate.set()
    await closing
    assert await asyncio.gather(*tasks) == [2, 4]


async def test_a_cancelled_sending_leaves_nobody_waiting() -> None:
    counter = Counter()
    counter.gate.clear()
    batcher = Batcher(counter.send)
    tasks = [asyncio.create_task(batcher.submit(1))]
    await _turn()
    tasks.append(asyncio.create_task(batcher.submit(2)))
    await _turn()
    assert batcher._runner is not None
    batcher._runner.cancel()
    done, _ = await asyncio.wait(tasks, timeout=1)
    assert len(done) == 2
    assert all(task.cancelled() for task in tasks)
