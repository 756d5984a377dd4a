"""Who can reach the gateway is read off what the operator says, and what is unclear counts as everybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from understudy.service.published import beyond_loopback
from understudy.settings import Settings


@pytest.mark.parametrize("publish", ["127.0.0.1:8000", "127.8.9.10:80", "[::1]:8000", "127.0.0.1:8000-8010"])
def test_loopback_is_this_machine(publish: str) -> None:
    assert not beyond_loopback(Settings(publish=publish, host="0.0.0.0"))


@pytest.mark.parametrize(
    "publish",
    [
        "8000",
        "0.0.0.0:8000",
        "[::]:8000",
        ":8000",
        "192.168.0.7:80",
        "box:8000",
        "127.0.0.1",
        "127.0.0.1.nip.io:80",
        "2130706433:8000",
        "0127.0.0.1:80",
        "127.1:80",
    ],
)
def test_everything_else_is_everybody(publish: str) -> None:
    assert beyond_loopback(Settings(publish=publish))


@pytest.mark.parametrize(
    ("host", "beyond"), [("127.0.0.1", False), ("localhost", False), ("::1", False), ("0.0.0.0", True), ("::", True)]
)
def test_without_it_what_is_listened_on_counts(host: str, beyond: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNDERSTUDY_PUBLISH", raising=False)
    assert beyond_loopback(Settings(host=host)) is beyond


def test_a_variable_that_is_empty_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a parent can take one away from a child, and a line of an .env file may stay empty."""
    for name in ("PUBLISH", "TLS_CERT", "TLS_KEY", "INTERNAL_TOKEN", "HOST", "DATA"):
        monkeypatch.setenv(f"UNDERSTUDY_{name}", "")
    assert Settings() == Settings(data=Path(".understudy"), tls_cert=None, internal_token=None, host="127.0.0.1")


def test_a_secret_that_is_refused_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_INTERNAL_TOKEN", "too-short")
    with pytest.raises(ValueError, match="internal_token") as refused:
        Settings()
    assert "too-short" not in str(refused.value)
