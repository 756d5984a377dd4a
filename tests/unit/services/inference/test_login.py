"""Logging in and out by a page: a key becomes a cookie, nobody is led elsewhere, and no other site's form does anything."""

from __future__ import annotations

import re
import time
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.inference import login
from services.inference.login import local, router
from services.inference.sessions import Sessions
from understudy.belt.apikeys import mint
from understudy.belt.bus import Record
from understudy.belt.contracts import KeyEnded, Message, encode
from understudy.belt.folds.keys import Keys
from understudy.service.web import add_errors
from understudy.terms import Scope


class World:
    """The pages, and a browser that keeps cookies and goes where it is sent only when told."""

    def __init__(self) -> None:
        self.keys = Keys()
        self.sessions = Sessions("a-token-between-services", self.keys)
        self.app = FastAPI()
        add_errors(self.app)
        self.app.include_router(router(self.keys, self.sessions))
        self.browser = self.another()

    def another(self, url: str = "http://testserver") -> TestClient:
        return TestClient(self.app, base_url=url, follow_redirects=False)

    def read(self, message: Message) -> None:
        self.keys.read(message, Record("keys", 0, 0, time.time(), encode(message)))

    def key(self, *scopes: Scope) -> str:
        text, made = mint("anna", scopes)
        self.read(made)
        return text

    def form(self, path: str = "/login") -> str:
        return field(self.browser.get(path), "form")

    def log_in(self, key: str, next: str = "") -> Any:
        return self.browser.post("/login", data={"key": key, "form": self.form(), "next": next})

    def known(self) -> bool:
        return "Log out" in self.browser.get("/login").text


@pytest.fixture
def world() -> World:
    return World()


def field(page: Any, name: str) -> str:
    found = re.search(f'name="{name}" value="([^"]*)"', page.text)
    assert found, page.text
    return unescape(found[1])


def test_a_key_opens_a_session_and_leads_on(world: World) -> None:
    page = world.browser.get("/login?next=/v1/reports/r-1%3Fbaseline%3Dx")
    assert field(page, "next") == "/v1/reports/r-1?baseline=x"
    answer = world.browser.post(
        "/login", data={"key": f" {world.key('read')}\n", "form": field(page, "form"), "next": field(page, "next")}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/v1/reports/r-1?baseline=x")
    assert answer.headers["cache-control"] == "no-store"
    assert world.known()
    assert "anna" in world.browser.get("/login").text


def test_the_secret_is_in_no_page_cookie_or_log(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    key = world.key("read")
    secret = key[-20:]
    wrong = world.log_in(key[:-1])
    right = world.log_in(key)
    for answer in (wrong, right):
        assert secret[:-1] not in answer.text + str(answer.headers)
    said = [record for record in caplog.records if record.name == "audit"]
    assert [(r.getMessage(), r.outcome, r.who) for r in said] == [("login", "refused", "-"), ("login", "done", "anna")]  # type: ignore[attr-defined]
    assert secret[:-1] not in "\n".join(str(vars(record)) for record in said)


def test_wrong_ended_and_narrow_keys_are_refused_in_words(world: World) -> None:
    ended = world.key("read")
    world.read(KeyEnded(key_id=ended.split("-")[2], at=time.time()))
    for key in ("", "sk-proj-of-another", ended):
        answer = world.log_in(key, "/v1/reports/r-1")
        assert answer.status_code == 401
        assert "lets nobody in" in answer.text
        assert field(answer, "next") == "/v1/reports/r-1", "where to go is not forgotten"
    answer = world.log_in(world.key("inference"))
    assert answer.status_code == 403
    assert "lacks the scope read" in answer.text
    assert not world.known()


@pytest.mark.parametrize(
    "elsewhere",
    [
        "//evil.example",
        "///evil.example",
        "\\\\evil.example",
        "/\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "\t//evil.example",
        "https://evil.example",
        "javascript:alert(1)",
        "evil.example",
        "/é",
        "/ /evil.example",
        "/" + "a" * 3000,
        "/",
        "",
    ],
)
def test_nobody_is_led_elsewhere(world: World, elsewhere: str) -> None:
    assert local(elsewhere) == ""
    answer = world.log_in(world.key("read"), elsewhere)
    assert answer.headers["location"] == "/login"
    assert "Go on" not in world.browser.get("/login", params={"next": elsewhere}).text


def test_what_is_asked_for_is_text_on_the_page(world: World) -> None:
    strange = '/"><script>alert(1)</script>'
    page = world.browser.get("/login", params={"next": strange})
    assert "<script" not in page.text
    assert field(page, "next") == strange
    world.log_in(world.key("read"))
    assert "<script" not in world.browser.get("/login", params={"next": strange}).text


def test_a_form_of_another_site_logs_nobody_in(world: World) -> None:
    """It has no cookie of ours, or one whose signature it cannot know; a form of somebody else's browser is none either."""
    key, stranger = world.key("read"), world.another()
    theirs = field(stranger.get("/login"), "form")
    assert world.another().post("/login", data={"key": key, "form": theirs}).status_code == 400
    world.form()
    for form in ("", theirs, "0" * 64, "é"):
        answer = world.browser.post("/login", data={"key": key, "form": form})
        assert answer.status_code == 400
        assert "understudy-session" not in answer.headers.get("set-cookie", "")
    assert not world.known()


def test_two_tabs_may_have_the_form_open(world: World) -> None:
    first, _ = world.form(), world.form()
    assert world.browser.post("/login", data={"key": world.key("read"), "form": first}).status_code == 303


def test_only_so_many_wrong_keys_are_looked_at_in_a_minute(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(login, "MOST_WRONG", 3)
    world = World()
    for _ in range(3):
        assert world.log_in("sk-understudy-guess").status_code == 401
    closed = world.log_in("sk-understudy-guess")
    assert closed.status_code == 429
    assert world.log_in(world.key("read")).status_code == 303, "who has a key is not kept out by those who guess"
    assert closed.headers["retry-after"]
    now, world = time.monotonic(), World()
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert world.log_in("sk-understudy-guess").status_code == 401


def test_logging_out_ends_the_session_and_only_by_our_button(world: World) -> None:
    world.log_in(world.key("read"))
    assert world.browser.post("/logout", data={"form": "0" * 64}).status_code == 403
    assert world.known()
    answer = world.browser.post("/logout", data={"form": world.form()})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert not world.known()
    assert world.browser.post("/logout").status_code == 303, "who is out already is no problem"


def test_cookies_keep_to_tls_where_the_browser_speaks_it(world: World) -> None:
    key = world.key("read")
    assert "Secure" not in world.log_in(key).headers["set-cookie"]
    direct = world.another("https://testserver")
    form = field(direct.get("/login"), "form")
    assert direct.post("/login", data={"key": key, "form": form}).headers["set-cookie"].endswith("; Secure")
    behind = world.another()
    said = {"key": key, "form": field(behind.get("/login"), "form")}
    answer = behind.post("/login", data=said, headers={"origin": "https://testserver"})
    assert answer.headers["set-cookie"].endswith("; Secure"), "something else before us speaks TLS"


def test_the_pages_run_and_load_nothing_and_are_kept_nowhere(world: World) -> None:
    before = world.browser.get("/login")
    world.log_in(world.key("read"))
    for page in (before, world.browser.get("/login?next=/v1/reports/r-1")):
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        for said in ("form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"):
            assert said in policy
        assert page.headers["cache-control"] == "no-store"
        assert page.headers["referrer-policy"] == "same-origin"
        seen: list[str] = []
        parser = HTMLParser()
        parser.handle_starttag = lambda tag, attrs, seen=seen: seen.extend([tag, *(name for name, _ in attrs)])  # type: ignore
        parser.feed(page.text)
        assert not {"script", "img", "link", "src", "style="} & set(seen)
        assert "$" not in page.text, "every place is filled"


def test_a_body_that_is_no_form_of_ours_is_refused(world: World) -> None:
    world.form()
    for body in (b"x" * 100_000, b"\xff\xfe%ff%00", b"&".join(b"a=1" for _ in range(100))):
        answer = world.browser.post(
            "/login", content=body, headers={"content-type": "application/x-www-form-urlencoded"}
        )
        assert answer.status_code == 400
