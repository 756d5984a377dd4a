"""Chooses the bus by the settings: the only place that knows both adapters."""

from __future__ import annotations

import os
from collections.abc import Mapping

from understudy.belt.bus import Bus
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.errors import Fatal
from understudy.settings import Settings

PREFIX = "UNDERSTUDY_KAFKA_"
SECURITY = {
    "security_protocol",
    "ssl_cafile",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_crlfile",
    "ssl_ciphers",
    "ssl_check_hostname",
    "sasl_mechanism",
    "sasl_plain_username",
    "sasl_plain_password",
    "sasl_kerberos_name",
    "sasl_kerberos_service_name",
    "sasl_kerberos_domain_name",
}
"""kafka-python's options that are read from the environment, e.g. UNDERSTUDY_KAFKA_SASL_MECHANISM."""


def connect(settings: Settings) -> Bus:
    """A connection to the bus that `settings.bus` names."""
    if not settings.bus:
        return EmbeddedBus(settings.data.resolve() / "bus.sqlite")
    from understudy.belt.bus.kafka import KafkaBus  # only who uses it pays for its import

    return KafkaBus(settings.bus, security(os.environ), settings.bus_prefix)


def security(environment: Mapping[str, str]) -> dict[str, str | bool]:
    """kafka-python's options for TLS and SASL; raises `Fatal` for one that there is not."""
    options: dict[str, str | bool] = {}
    for variable, value in environment.items():
        option = variable.removeprefix(PREFIX).lower()
        # Kubernetes puts variables about a service called understudy-kafka beside ours.
        if variable.startswith(PREFIX) and option.startswith(("security_", "ssl_", "sasl_")):
            if option not in SECURITY:
                known = ", ".join(PREFIX + each.upper() for each in sorted(SECURITY))
                raise Fatal(f"{variable} is not known", f"There are {known}.")
            options[option] = value.lower() not in ("0", "false", "no") if option == "ssl_check_hostname" else value
    return options
