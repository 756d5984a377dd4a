"""Whether others than this machine can reach the gateway. Publishes nothing, and asks no network: it reads what the operator says.

What is not surely loopback counts as beyond it.
"""

from __future__ import annotations

import ipaddress

from understudy.settings import Settings


def beyond_loopback(settings: Settings) -> bool:
    """Whether others come in: by where the gateway is published, else by what it listens on."""
    return not is_loopback(settings.publish.rpartition(":")[0] if settings.publish else settings.host)


def strangers_come(settings: Settings) -> bool:
    """Whether whoever asks may be somebody else than who runs this: then nobody comes in without a key. A proxy on this machine that
    publishes a gateway on loopback is not to be seen from here, so UNDERSTUDY_KEYS can say so."""
    return settings.keys == "required" or beyond_loopback(settings)


def is_loopback(host: str) -> bool:
    """Whether `host`, an address or a name, is this machine as only itself reaches it."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
