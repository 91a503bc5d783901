"""Batches fill themselves, the queue is bounded, and no failure stops the next batch."""

import asyncio
import threading
import time

import pytest

from lenvm_rl.serving.batching import Batcher, QueueFull


def test_whoever_comes_during_a_batch_is_in_the_next_one():
    sizes, go = [], threading.Event()

    def work(items):
        sizes.append(len(items))
        go.wait(5)
        return [2 * item for item in items]

    async def run():
        batcher = Batcher(work, largest=4, room=100)
        first = asyncio.create_task(batcher([0]))
        while not sizes:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher([n])) for n in range(1, 8)]
        await asyncio.sleep(0.01)
        go.set()
        found = [await task for task in [first, *rest]]
        await batcher.close()
        return found

    assert asyncio.run(run()) == [[2 * n] for n in range(8)]
    assert sizes == [1, 4, 3]


def test_a_full_queue_refuses_and_says_when_to_come_again():
    async def run():
        batcher = Batcher(lambda items: time.sleep(0.05) or items, largest=2, room=10)
        asked = await asyncio.gather(*(batcher([n]) for n in range(1000)), return_exceptions=True)
        await batcher.close()
        return asked

    asked = asyncio.run(run())
    full = [one for one in asked if isinstance(one, QueueFull)]
    answered = [one for one in asked if isinstance(one, list)]
    assert answered == [[n] for n in range(10)] and len(full) == 990
    assert all(1 <= one.retry_after <= 60 for one in full)
    assert "10 prompts are waiting" in str(full[0])


def test_what_would_wait_too_long_is_refused_before_the_queue_is_full():
    async def run():
        batcher = Batcher(
            lambda items: time.sleep(0.02) or items, largest=1, room=1000, patience=0.1
        )
        for n in range(50):  # it learns how long one takes
            await batcher([n])
        asked = await asyncio.gather(*(batcher([n]) for n in range(100)), return_exceptions=True)
        await batcher.close()
        return sum(isinstance(one, QueueFull) for one in asked)

    assert 90 <= asyncio.run(run()) < 100


def test_one_that_fails_costs_itself_and_a_failed_batch_costs_that_batch():
    def work(items):
        if "bomb" in items:
            raise RuntimeError("boom")
        return [ValueError(item) if item == "bad" else item for item in items]

    async def run():
        batcher = Batcher(work, largest=8, room=8)
        mixed = await batcher(["good", "bad", "good"])
        bombed = await batcher(["good", "bomb"])
        after = await batcher(["good"])
        await batcher.close()
        return mixed, bombed, after

    mixed, bombed, after = asyncio.run(run())
    assert mixed[0] == mixed[2] == "good" and isinstance(mixed[1], ValueError)
    assert [str(error) for error in bombed] == ["boom", "boom"]
    assert after == ["good"]


def test_who_has_gone_is_left_out():
    seen, go = [], threading.Event()

    def work(items):
        seen.extend(items)
        go.wait(5)
        return items

    async def run():
        batcher = Batcher(work, largest=1, room=8)
        first = asyncio.create_task(batcher(["first"]))
        while not seen:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(batcher(["gone"]))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        last = asyncio.create_task(batcher(["last"]))
        go.set()
        await first
        await last
        await batcher.close()

    asyncio.run(run())
    assert seen == ["first", "last"]
