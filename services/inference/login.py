"""The pages by which somebody with a key logs in and out: then a browser may open what needs to be read, such as reports.

They run no script and load nothing. A form proves that it is ours: before a login by a cookie that it repeats signed, so that no
other site logs somebody in as somebody else; after it by the session's token. A secret of 256 bits is not guessed; that only
so many wrong ones in a minute leave a line keeps the noise down. Sessions themselves are `sessions.py`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import time
from collections import deque
from functools import cache
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import parse_qsl

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from services.inference.sessions import Headers, Sessions, cookies, set_cookie
from understudy.belt.folds.keys import Keys
from understudy.service.audit import note

WEB = Path(__file__).with_name("web")
COOKIE = b"understudy-login"
PATIENCE = 3600
"""Seconds that a form may lie open."""
MOST_WRONG = 60
"""Wrong keys in a minute, whoever tries them, that leave a line in the audit trail; a right one always comes in."""
LONGEST_FORM = 8 * 1024
"""Bytes."""
_OURS = re.compile(r"[A-Za-z0-9_-]{43}")
_LOCAL = re.compile(r"/(?!/)[!-\[\]-~]{1,2000}")
"""A path of ours: one slash first, no backslash (browsers take it for a slash), nothing that is not to be seen (they drop it)."""


def local(path: str) -> str:
    """`path`, where it leads nowhere but to this server; else nothing."""
    return path if _LOCAL.fullmatch(path) else ""


def router(keys: Keys, sessions: Sessions) -> APIRouter:
    """/login and /logout."""
    routes = APIRouter(include_in_schema=False)
    wrong: deque[float] = deque(maxlen=MOST_WRONG)
    """When the last wrong keys came."""

    @routes.get("/login")
    async def look(request: Request, next: str = "") -> Response:
        if key := sessions.caller(headers := _headers(request)):
            return _known(key.name, sessions.form_token(headers), local(next))
        return _form(sessions, request, local(next))

    @routes.post("/login")
    async def login(request: Request) -> Response:
        said, headers = await _fields(request), _headers(request)
        onward = local(said.get("next", ""))
        if not any(_proves(sessions, value, said) for value in cookies(headers, COOKIE)):
            return _form(
                sessions,
                request,
                onward,
                400,
                "This form was open for too long, or the browser keeps no cookies. Try again.",
            )
        key = keys.find(said.get("key", "").strip())
        if key is None and len(wrong) == MOST_WRONG and time.monotonic() - wrong[0] < 60:
            closed = _form(sessions, request, onward, 429, "Too many wrong keys were tried. Wait a minute, please.")
            closed.headers["retry-after"] = "60"
            return closed
        if key is None:
            wrong.append(time.monotonic())
            note("login", "-", "refused")
            message = "This key lets nobody in: it was never given out, or has ended."
            return _form(sessions, request, onward, 401, message)
        if not key.may("read"):
            note("login", key.id, "refused", who=key.name, key=key.id)
            return _form(sessions, request, onward, 403, f"The key {key.name} lacks the scope read, which pages need.")
        note("login", key.id, "done", who=key.name, key=key.id)
        answer = RedirectResponse(onward or "/login", status_code=303)
        answer.headers.append("set-cookie", sessions.begin(key, secure=_over_tls(request)))
        return _guarded(answer)

    @routes.post("/logout")
    async def logout(request: Request) -> Response:
        said, headers = await _fields(request), _headers(request)
        key = sessions.caller(headers)
        if key and not sessions.proves(headers, said.get("form", "")):
            return _known(key.name, sessions.form_token(headers), "", 403, "Please log out with the button here.")
        if key:
            note("logout", key.id, "done", who=key.name, key=key.id)
        answer = RedirectResponse("/login", status_code=303)
        answer.headers.append("set-cookie", sessions.end(secure=_over_tls(request)))
        return _guarded(answer)

    return routes


def _form(sessions: Sessions, request: Request, onward: str, status: int = 200, problem: str = "") -> Response:
    """The page that asks for a key; it keeps the cookie of a form that is open in another tab."""
    mine = next((value for value in cookies(_headers(request), COOKIE) if _OURS.fullmatch(value)), "")
    mine = mine or secrets.token_urlsafe(32)
    content = _part("login.html", form=sessions.sign("login", mine), next=onward)
    page = _page("Log in", content, status, problem)
    cookie = set_cookie(COOKIE, mine, PATIENCE, secure=_over_tls(request), path="/login", same_site="Strict")
    page.headers.append("set-cookie", cookie)
    return page


def _proves(sessions: Sessions, value: str, said: dict[str, str]) -> bool:
    return hmac.compare_digest(sessions.sign("login", value).encode(), said.get("form", "").encode(errors="replace"))


def _known(name: str, form: str, onward: str, status: int = 200, problem: str = "") -> Response:
    """The page of somebody who is logged in."""
    button = f'<a class="button" href="{escape(onward)}">Go on</a>' if onward else ""
    return _page("Logged in", _part("known.html", button, name=name, form=form), status, problem)


def _page(title: str, content: str, status: int, problem: str) -> Response:
    style, digest = _style()
    alert = f'<p class="problem" role="alert">{escape(problem)}</p>' if problem else ""
    text = Template((WEB / "page.html").read_text(encoding="utf-8"))
    html = text.substitute(title=title, style=style, problem=alert, content=content)
    return _guarded(HTMLResponse(html, status), f"style-src 'sha256-{digest}'; ")


def _part(file: str, markup: str = "", /, **values: str) -> str:
    """A part of a page, with `values` escaped and `markup` as it is."""
    escaped = {key: escape(value) for key, value in values.items()}
    return Template((WEB / file).read_text(encoding="utf-8")).substitute(escaped, markup=markup)


@cache
def _style() -> tuple[str, str]:
    """The style of the pages, and the digest by which a policy allows it and no other."""
    style = (WEB / "login.css").read_text(encoding="utf-8")
    return style, base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def _guarded(answer: Response, style: str = "") -> Response:
    """Nothing runs, loads, frames or keeps it. The referrer stays, for ourselves: a form without it has no `Origin`."""
    policy = f"default-src 'none'; {style}form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    answer.headers["content-security-policy"] = policy
    answer.headers["x-content-type-options"] = "nosniff"
    answer.headers["referrer-policy"] = "same-origin"
    answer.headers["cache-control"] = "no-store"
    return answer


async def _fields(request: Request) -> dict[str, str]:
    """What a form says; nothing when it is larger than ours can be."""
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > LONGEST_FORM:
            return {}
    try:
        return dict(parse_qsl(body.decode("latin-1"), keep_blank_values=True, max_num_fields=10, errors="replace"))
    except ValueError:
        return {}


def _headers(request: Request) -> Headers:
    return dict(request.scope["headers"])


def _over_tls(request: Request) -> bool:
    """Whether the browser speaks TLS, to us or to what stands before us: then the origin of its form says so."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
