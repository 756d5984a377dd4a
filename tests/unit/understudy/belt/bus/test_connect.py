"""What the environment says about Kafka's TLS and SASL reaches its client, and mistakes are named."""

from __future__ import annotations

import pytest

from understudy.belt.bus.connect import security
from understudy.errors import Fatal


def test_options_are_read_and_nothing_else() -> None:
    environment = {
        "UNDERSTUDY_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "UNDERSTUDY_KAFKA_SSL_CHECK_HOSTNAME": "false",
        "UNDERSTUDY_KAFKA_SASL_PLAIN_PASSWORD": "0123",
        "UNDERSTUDY_KAFKA_PORT": "tcp://10.0.0.1:9092",  # Kubernetes, about a service called understudy-kafka
        "UNDERSTUDY_BUS": "kafka:9092",
    }
    assert security(environment) == {
        "security_protocol": "SASL_SSL",
        "ssl_check_hostname": False,
        "sasl_plain_password": "0123",
    }


def test_a_mistyped_option_is_named() -> None:
    with pytest.raises(Fatal, match="UNDERSTUDY_KAFKA_SASL_MECHANISMS is not known"):
        security({"UNDERSTUDY_KAFKA_SASL_MECHANISMS": "PLAIN"})
