"""Who may come in: every request is looked at here before anything else happens to it.

    caller = admission.admit(scope)          # or raises `Refused`, with the answer
    with admission.counted(caller): ...

Whoever shows the installation's token is one of its services; whoever shows an API key may do what its scopes say; a page
session may look. Nobody at all may do everything where keys are optional, which they are only while the gateway is reachable
from this machine alone: then `Host` must be one of its names, so that no web page reads answers through a name of its own.
No page of another site changes anything: `Origin` must be ours, and a body says that it is JSON, which no form can. Decides
by `service/doors.py`; routes nothing, and remembers only what keys have under way, and which were shown lately.
"""

from __future__ import annotations

import hmac
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from urllib.parse import quote

from fastapi.responses import JSONResponse, RedirectResponse, Response

from services.inference.sessions import Sessions
from understudy.belt.apikeys import PREFIX
from understudy.belt.folds.keys import Key, Keys
from understudy.service.doors import INTERNAL, Door, door
from understudy.service.published import is_loopback
from understudy.service.web import Scope, error_response

SAFE = ("GET", "HEAD", "OPTIONS")
OTHER_BODIES: Mapping[str, tuple[bytes, ...]] = {
    "/v1/files": (b"multipart/form-data",),
    "/login": (b"application/x-www-form-urlencoded",),
    "/logout": (b"application/x-www-form-urlencoded",),
}
"""Paths whose bodies are no JSON."""
LONGEST_KNOWN = 200
"""Bytes: keys are much shorter, but anybody may put blanks around one."""
MOST_KNOWN = 1000
NO_KEY = (
    "This gateway asks for an API key: send `Authorization: Bearer sk-understudy-...`."
    " Whoever runs it makes one with `understudy keys create`."
)


class Refused(Exception):
    """The request is answered by us."""

    def __init__(self, response: Response) -> None:
        self.response = response


@dataclass(frozen=True)
class Caller:
    """Who asks. Without a key: one of our services, or nobody in particular."""

    key: Key | None = None
    insider: bool = False

    @property
    def name(self) -> str:
        """As the owner of what is asked for."""
        return self.key.name if self.key else ""


INSIDER, NOBODY = Caller(insider=True), Caller()


@dataclass
class _Allowance:
    """What a key has left."""

    left: float
    at: float
    under_way: int = 0


class Admission:
    """For one listener; for one event loop. `token`: what our services show, where they come in. `inside`: it has the internal doors;
    `alone`: and is there for nobody else, so that these may be asked by any name, as probes do."""

    def __init__(
        self,
        keys: Keys,
        sessions: Sessions,
        token: str | None,
        *,
        required: bool,
        hosts: frozenset[str] = frozenset(),
        origins: frozenset[str] = frozenset(),
        inside: bool = False,
        alone: bool = False,
    ) -> None:
        self._keys, self._sessions = keys, sessions
        self._bearer = b"Bearer " + token.encode() if token else b""
        self._required, self._hosts, self._origins = required, hosts, origins
        self._inside, self._alone = inside, alone
        self._known: dict[bytes, Caller] = {}
        """What callers showed lately; they are looked up again each time."""
        self._allowances: defaultdict[str, _Allowance] = defaultdict(lambda: _Allowance(-1.0, time.monotonic()))

    def admit(self, scope: Scope) -> Caller:
        """Who asks, if they may. Raises `Refused`."""
        path, method = scope["path"], scope["method"]
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if path in INTERNAL:
            if not self._inside:
                raise Refused(_error(404, f"There is nothing at {path[:200]}"))
            if not self._alone:
                self._check_page(headers)
            return INSIDER
        twice = len(headers) != len(scope["headers"]) and sum(name == b"host" for name, _ in scope["headers"]) > 1
        if twice or (b"host" not in headers and scope["http_version"] != "1.0"):
            raise Refused(_error(400, "A request names its host, once"))
        caller, known = self._caller(headers)
        if not known:
            self._check_page(headers)
        if not caller.insider and self._required and caller.key is None:
            found = door(path)
            if found is None or not found.anybody:
                raise Refused(self._ask_for_key(scope, headers))
        found = door(path)
        if found is None:
            raise Refused(_error(404, f"There is nothing at {path[:200]}"))
        if method not in SAFE:
            self._check_body(found, headers)
        if caller.key and not found.anybody:
            self._check_scope(caller.key, found, method)
            if not known and method not in SAFE and not self._sessions.csrf(headers):
                raise Refused(
                    _error(403, "A page session may only look, unless the page says by its token that it is ours")
                )
        return caller

    def counted(self, caller: Caller) -> AbstractContextManager[None]:
        """While a request is under way. Raises `Refused` when its key has too many, or had too many within the last minute."""
        key = caller.key
        bounded = key and (key.made.at_once is not None or key.made.requests_per_minute)
        return self._counted(key) if key and bounded else nullcontext()

    @contextmanager
    def _counted(self, key: Key) -> Iterator[None]:
        made, allowance, now = key.made, self._allowances[key.id], time.monotonic()
        if made.at_once is not None and allowance.under_way >= made.at_once:
            raise Refused(_too_many(f"Your key allows {made.at_once} requests at once", 1))
        if rate := made.requests_per_minute:
            gained = (now - allowance.at) * rate / 60
            left = float(rate) if allowance.left < 0 else min(float(rate), allowance.left + gained)
            allowance.at, allowance.left = now, left
            if left < 1:
                raise Refused(_too_many(f"Your key allows {rate} requests a minute", (1 - left) * 60 / rate))
            allowance.left -= 1
        allowance.under_way += 1
        try:
            yield
        finally:
            allowance.under_way -= 1

    def _caller(self, headers: Mapping[bytes, bytes]) -> tuple[Caller, bool]:
        """Who asks, and whether they showed it by themselves: no web page can have a browser do that."""
        said = headers.get(b"authorization", b"")
        known = self._known.get(said)
        if known and known.key and self._keys.get(known.key.id) is known.key and known.key.lives(time.time()):
            return known, True  # a digest costs as much as all the rest
        if self._bearer and hmac.compare_digest(said, self._bearer):
            return INSIDER, True
        scheme, _, text = said.decode("latin-1").partition(" ")
        if (text := text.strip()).startswith(PREFIX) and scheme.lower() == "bearer":
            if key := self._keys.find(text):
                if len(self._known) >= MOST_KNOWN:
                    self._known.clear()
                caller = Caller(key)
                if len(said) <= LONGEST_KNOWN:
                    self._known[said] = caller
                return caller, True
            raise Refused(_unauthorised("This API key lets nobody in: it was never given out, or has ended"))
        if b"cookie" in headers and (key := self._sessions.caller(headers)):
            return Caller(key), False
        return NOBODY, False

    def _check_page(self, headers: Mapping[bytes, bytes]) -> None:
        """That no page of another site asks by somebody's browser."""
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if not self._required and not self._is_ours(_name(host)):
            message = f"This gateway is not known as `{host[:100]}`: UNDERSTUDY_HOSTS says by which names it is asked without a key"
            raise Refused(_error(403, message))
        origin = headers.get(b"origin")
        if origin is not None:
            said = origin.decode("latin-1").lower()
            if said.partition("://")[2] != host and said not in self._origins:
                message = f"A page of `{said[:100]}` may not ask here: UNDERSTUDY_CORS says which may"
                raise Refused(_error(403, message))

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts

    def _check_scope(self, key: Key, found: Door, method: str) -> None:
        needed = found.needs(method)
        if needed is not None and not key.may(needed):
            has = ", ".join(key.made.scopes)
            message = (
                f"Your key `{key.name}` lacks the scope `{needed}`, which {method} {found.family} needs; it has {has}"
            )
            raise Refused(_error(403, message, "insufficient_scope"))

    def _check_body(self, found: Door, headers: Mapping[bytes, bytes]) -> None:
        if headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers:
            return
        said, other = headers.get(b"content-type", b""), OTHER_BODIES.get(found.family, ())
        if said == b"application/json" and not other:
            return
        kind = said.partition(b";")[0].strip().lower()
        if kind in other or (not other and (kind == b"application/json" or kind.endswith(b"+json"))):
            return
        wanted = (other or (b"application/json",))[0].decode()
        raise Refused(_error(415, f"Send the body as `content-type: {wanted}`"))

    def _ask_for_key(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Response:
        if scope["method"] in SAFE and b"text/html" in headers.get(b"accept", b""):
            query = scope["query_string"].decode("latin-1")
            there = scope["path"] + (f"?{query}" if query else "")
            return RedirectResponse(f"/login?next={quote(there, safe='')}", status_code=303)
        return _unauthorised(NO_KEY)


def _name(host: str) -> str:
    """A host without its port."""
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]


def _error(status: int, message: str, code: str | None = None) -> JSONResponse:
    return error_response(status, message, code=code)


def _unauthorised(message: str) -> JSONResponse:
    response = _error(401, message, "invalid_api_key")
    response.headers["www-authenticate"] = "Bearer"
    return response


def _too_many(message: str, seconds: float) -> JSONResponse:
    response = _error(429, f"{message}. Wait, and try again", "rate_limit_exceeded")
    response.headers["retry-after"] = str(max(1, round(seconds)))
    return response
