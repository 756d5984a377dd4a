"""Providers: a name finds an address and its key, and what an operator mistyped is said without repeating a secret."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from services.datagen.settings import DatagenSettings
from understudy.errors import Invalid
from understudy.llm.providers import Endpoint, Providers

LOCAL = {
    "local": {"base_url": "http://10.0.0.5:8000/v1", "key": "LOCAL_API_KEY"},
    "open": {"base_url": "https://x.example"},
}


def settings(monkeypatch: pytest.MonkeyPatch, value: str) -> DatagenSettings:
    monkeypatch.setenv("UNDERSTUDY_PROVIDERS", value)
    return DatagenSettings()


def test_a_setting_names_addresses_and_where_their_keys_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "LOCAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    providers = Providers(settings(monkeypatch, json.dumps(LOCAL)).providers)
    assert providers.get("openai") == ("https://api.openai.com/v1", None)
    assert providers.get("open") == ("https://x.example", None)
    with pytest.raises(Invalid, match="`local` has no key: LOCAL_API_KEY is not set"):
        providers.get("local")
    monkeypatch.setenv("LOCAL_API_KEY", "sk-1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-2")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    assert providers.get("local") == ("http://10.0.0.5:8000/v1", "sk-1")
    assert providers.get("openai") == ("http://127.0.0.1:9/v1", "sk-2")
    assert settings(monkeypatch, "").providers == {}


def test_an_address_of_the_environment_is_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://user:sk-secret@127.0.0.1/v1")
    with pytest.raises(Invalid, match="OPENAI_BASE_URL is no address") as caught:
        Providers().get("openai")
    assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        *("", "10.0.0.5/v1", "ftp://x/v1", "file:///etc/passwd", "http://", "http://x:0/v1", "http://x:y/v1"),
        *(
            "http://sk-secret@x/v1",
            "http://x/v1?a=sk-secret",
            "http://x/v1?",
            "http://x/v1#",
            "http://x/v1 ",
            "http://x\\y/v1",
        ),
    ],
)
def test_what_is_no_plain_address_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="is not of the form"):
        Endpoint(base_url=url)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "valid dictionary"),
        ('{"openai": {"base_url": "http://x/v1"}}', "is set by OPENAI_BASE_URL"),
        ('{"a b": {"base_url": "http://x/v1"}}', "a b"),
        ('{"a": {"base_url": "http://x/v1", "api_key": "sk-secret"}}', "api_key"),
        ('{"a": {"base_url": "http://x/v1", "key": "sk-secret"}}', "key"),
    ],
)
def test_what_is_mistyped_is_said_and_no_secret_is(monkeypatch: pytest.MonkeyPatch, value: str, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(monkeypatch, value)
    assert said in str(caught.value)
    assert "sk-secret" not in str(caught.value)
