"""A session is somebody's key for twelve hours: nobody else can make one, it ends with the key, and other sites cannot use it."""

from __future__ import annotations

import time
from http.cookies import SimpleCookie

import pytest

from services.inference.sessions import LASTS, Sessions
from understudy.belt.apikeys import mint
from understudy.belt.bus import Record
from understudy.belt.contracts import KeyEnded, Message
from understudy.belt.folds.keys import Key, Keys

TOKEN = "a-token-between-services"


def read(keys: Keys, *messages: Message) -> None:
    for message in messages:
        keys.read(message, Record(topic="keys", partition=0, offset=0, timestamp=time.time(), value=b""))


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def key(keys: Keys) -> Key:
    _, made = mint("anna", ("read",))
    read(keys, made)
    found = keys.get(made.key_id)
    assert found
    return found


def sent_back(set_cookie: str) -> dict[bytes, bytes]:
    cookie = SimpleCookie(set_cookie)
    return {b"cookie": "; ".join(f"{name}={morsel.value}" for name, morsel in cookie.items()).encode()}


def test_a_session_is_its_key(keys: Keys, key: Key) -> None:
    sessions = Sessions(TOKEN, keys)
    headers = sent_back(sessions.begin(key, secure=False))
    assert sessions.caller(headers) == key
    assert sessions.caller({b"cookie": b"theme=dark; " + headers[b"cookie"] + b"; a=b"}) == key
    assert sessions.caller({}) is None


def test_no_script_reads_the_cookie_and_no_other_site_sends_it_with_a_form(keys: Keys, key: Key) -> None:
    sessions = Sessions(TOKEN, keys)
    plain, over_tls = sessions.begin(key, secure=False), sessions.begin(key, secure=True)
    for said in ("; HttpOnly", "; SameSite=Lax", "; Path=/;", f"; Max-Age={LASTS};"):
        assert said in plain
    assert "Secure" not in plain
    assert over_tls.endswith("; Secure")


def test_it_outlives_neither_its_key_nor_twelve_hours(keys: Keys, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = Sessions(TOKEN, keys)
    headers = sent_back(sessions.begin(key, secure=False))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + LASTS - 5)
    assert sessions.caller(headers)
    monkeypatch.setattr(time, "time", lambda: now + LASTS + 1)
    assert sessions.caller(headers) is None
    monkeypatch.undo()
    read(keys, KeyEnded(key_id=key.id, at=time.time()))
    assert sessions.caller(headers) is None
    assert not sessions.form_token(headers)


@pytest.mark.parametrize("forged", ["", ".", "...", "x", "aaaaaaaa.9999999999.x." + "0" * 64, "é.1.2.3", "a.b.c.d.e"])
def test_what_we_did_not_sign_is_no_session(keys: Keys, key: Key, forged: str) -> None:
    sessions = Sessions(TOKEN, keys)
    assert sessions.caller({b"cookie": f"understudy-session={forged}".encode()}) is None


def test_a_changed_session_or_one_of_another_installation_is_none(keys: Keys, key: Key) -> None:
    sessions = Sessions(TOKEN, keys)
    headers = sent_back(sessions.begin(key, secure=False))
    _, other = mint("eve", ("admin",))
    read(keys, other)
    assert sessions.caller({b"cookie": headers[b"cookie"].replace(key.id.encode(), other.key_id.encode())}) is None
    assert Sessions("another-installation", keys).caller(headers) is None


def test_a_cookie_that_a_neighbour_of_the_domain_set_does_not_hide_ours(keys: Keys, key: Key) -> None:
    sessions = Sessions(TOKEN, keys)
    headers = sent_back(sessions.begin(key, secure=False))
    assert sessions.caller({b"cookie": b"understudy-session=tossed; " + headers[b"cookie"]}) == key


def test_only_the_sessions_own_token_proves_that_a_page_of_ours_asks(keys: Keys, key: Key) -> None:
    sessions = Sessions(TOKEN, keys)
    one, other = (sent_back(sessions.begin(key, secure=False)) for _ in range(2))
    token = sessions.form_token(one)
    assert sessions.csrf({**one, b"x-csrf-token": token.encode()})
    assert sessions.proves(one, token)
    assert not sessions.csrf(one)
    assert not sessions.csrf({**other, b"x-csrf-token": token.encode()})
    assert not sessions.csrf({b"x-csrf-token": b""})
    assert not sessions.csrf({**one, b"x-csrf-token": b"\xff"})
    signature = one[b"cookie"].rpartition(b".")[2]
    assert not sessions.csrf({**one, b"x-csrf-token": signature})
