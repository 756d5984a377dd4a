"""The budget: what is spent and reserved together never passes the limit."""

from __future__ import annotations

import asyncio

from services.datagen.budget import Budget


async def test_without_a_limit_everything_fits() -> None:
    assert await Budget(None).reserve(1e9)


async def test_a_reservation_waits_for_room_and_gets_it() -> None:
    budget = Budget(1.0)
    assert await budget.reserve(0.8)
    waiting = asyncio.create_task(budget.reserve(0.8))
    await asyncio.sleep(0)
    assert not waiting.done()
    budget.settle(0.8, 0.1)
    assert await waiting
    assert budget.spent == 0.1


async def test_what_can_never_fit_is_refused_at_once() -> None:
    budget = Budget(1.0, spent=0.5)
    assert await budget.reserve(0.3)
    assert not await budget.reserve(0.6)
    budget.settle(0.3, 0.3)
    assert not await budget.reserve(0.3)


async def test_many_at_once_never_pass_the_limit() -> None:
    budget, most, granted = Budget(1.0), 0.0, 0

    async def one() -> None:
        nonlocal most, granted
        if await budget.reserve(0.1):
            granted += 1
            most = max(most, budget.spent + 0.1 * len(budget._reserved))
            await asyncio.sleep(0.001)
            budget.settle(0.1, 0.04)

    await asyncio.gather(*(one() for _ in range(50)))
    assert most <= 1.0 + 1e-9
    assert 0.9 < budget.spent <= 1.0
    assert granted >= 22
