"""Requests in flight: never more than allowed, fewer after a push-back, more again later, and nobody left behind."""

from __future__ import annotations

import asyncio
import time

from components.sdg.llm.throttle import Throttle
from tests.waiting import LIMIT_SECONDS


def test_never_more_than_allowed_and_everybody_gets_a_turn() -> None:
    throttle, inside, most, order = Throttle(4), 0, 0, []

    async def work(number: int) -> None:
        nonlocal inside, most
        async with throttle:
            order.append(number)
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0.001)
            inside -= 1

    async def all_of_them() -> None:
        await asyncio.gather(*(work(number) for number in range(50)))

    asyncio.run(all_of_them())
    assert most == 4
    assert order == list(range(50))


def test_one_burst_of_refusals_shrinks_once_and_successes_grow_it_again() -> None:
    throttle = Throttle(64)
    for _ in range(20):
        throttle.record_push_back(0.0)
    assert throttle.limit == 48
    for _ in range(25 * 100):
        throttle.record_success()
    assert throttle.limit == 64


def test_nothing_is_sent_while_the_endpoint_asks_to_wait() -> None:
    async def enter() -> float:
        throttle = Throttle(2)
        throttle.record_push_back(0.2)
        started = time.monotonic()
        async with throttle:
            return time.monotonic() - started

    assert asyncio.run(enter()) >= 0.2


def test_who_gives_up_waiting_takes_no_turn() -> None:
    async def work() -> list[str]:
        throttle, entered, leave = Throttle(1), [], asyncio.Event()

        async def enter(name: str, until: asyncio.Event | None = None) -> None:
            async with throttle:
                entered.append(name)
                if until is not None:
                    await until.wait()

        first = asyncio.create_task(enter("first", leave))
        waiting = asyncio.create_task(enter("waiting"))
        await _let_others_run()
        waiting.cancel()
        last = asyncio.create_task(enter("last"))
        await _let_others_run()
        leave.set()
        await asyncio.gather(first, waiting, last, return_exceptions=True)
        # A turn that was given and cancelled at once must come back, too.
        cancelled = asyncio.create_task(enter("cancelled", asyncio.Event()))
        await _let_others_run()
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        await asyncio.wait_for(enter("after"), LIMIT_SECONDS)
        return entered

    assert asyncio.run(work()) == ["first", "last", "cancelled", "after"]


async def _let_others_run() -> None:
    for _ in range(10):
        await asyncio.sleep(0)
