"""Keeps a sum of money from being overspent by requests that run side by side.

    if await budget.reserve(worst): ...; budget.settle(worst, actual)

Does not know tokens or prices.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field


@dataclass
class Budget:
    """`spent` plus all reservations never passes `limit`."""

    limit: float | None
    """US dollars; None: no bound."""
    spent: float = 0.0
    _reserved: list[float] = field(default_factory=list)
    _settled: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def reserve(self, worst: float) -> bool:
        """Set aside `worst`, in order of asking.

        False when it does not fit, and would not even if all that is under way cost nothing.
        """
        async with self._turn:
            while self.limit is not None and self.spent + sum(self._reserved) + worst > self.limit:
                if not self._reserved or self.spent + worst > self.limit:
                    return False
                self._settled.clear()
                await self._settled.wait()
            self._reserved.append(worst)
            return True

    def settle(self, worst: float, actual: float) -> None:
        """Replace a reservation by what it cost."""
        self._reserved.remove(worst)
        self.spent += actual
        self._settled.set()
