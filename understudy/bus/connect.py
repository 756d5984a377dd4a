"""Chooses the bus by the settings: the only place that knows both adapters."""

from __future__ import annotations

from understudy.bus import Bus
from understudy.bus.embedded import EmbeddedBus
from understudy.errors import Fatal
from understudy.settings import Settings


def connect(settings: Settings) -> Bus:
    """A connection to the bus that `settings.bus` names."""
    if settings.bus:
        raise Fatal(f"UNDERSTUDY_BUS={settings.bus}: only the embedded bus is built in", "Unset UNDERSTUDY_BUS.")
    return EmbeddedBus(settings.data.resolve() / "bus.sqlite")
