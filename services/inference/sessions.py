"""Sessions of people who look at pages: a signed cookie that stands for a key. Nothing is kept here.

The cookie is `<id of the key>.<when>.<random>.<signature>`, signed under the internal token. It lasts as long as the key, twelve
hours at most. What changes something must prove besides that it comes from a page of ours: with a token that follows from
the session and that no other site can read. Draws no page and routes nothing (`login.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Iterator, Mapping

from understudy.belt.folds.keys import Key, Keys

COOKIE = b"understudy-session"
CSRF_HEADER = b"x-csrf-token"
LASTS = 12 * 3600
"""Seconds."""
Headers = Mapping[bytes, bytes]
"""Names in lower case, as ASGI has them."""


class Sessions:
    """`token` is the installation's internal one: who changes it ends every session."""

    def __init__(self, token: str, keys: Keys) -> None:
        self._token, self._keys = token.encode(), keys

    def begin(self, key: Key, *, secure: bool) -> str:
        """The `Set-Cookie` that logs somebody in; `secure`: only ever sent over TLS."""
        said = f"{key.id}.{int(time.time())}.{secrets.token_urlsafe(16)}"
        return set_cookie(COOKIE, f"{said}.{self.sign('session', said)}", LASTS, secure=secure)

    @staticmethod
    def end(*, secure: bool) -> str:
        """The `Set-Cookie` that logs somebody out."""
        return set_cookie(COOKIE, "", 0, secure=secure)

    def caller(self, headers: Headers) -> Key | None:
        """The key behind the session of this request; None without one, and when session or key have ended."""
        found = self._session(headers)
        return found[1] if found else None

    def csrf(self, headers: Headers) -> bool:
        """Whether the request carries the session's own token, as a page of ours would."""
        return self.proves(headers, headers.get(CSRF_HEADER, b"").decode("latin-1"))

    def proves(self, headers: Headers, token: str) -> bool:
        """Whether `token`, which came in a form, is that of the session."""
        expected = self.form_token(headers)
        return bool(expected) and hmac.compare_digest(expected.encode(), token.encode(errors="replace"))

    def form_token(self, headers: Headers) -> str:
        """What a form for this session must send back; empty without one."""
        found = self._session(headers)
        return self.sign("form", found[0]) if found else ""

    def sign(self, purpose: str, text: str) -> str:
        """Which of our texts this is; the signature for one purpose is none for another."""
        return hmac.new(self._token, f"understudy {purpose}\n{text}".encode(), hashlib.sha256).hexdigest()

    def _session(self, headers: Headers) -> tuple[str, Key] | None:
        """The whole cookie and its key."""
        for value in cookies(headers, COOKIE):  # another site of the same domain may have set one of that name as well
            said, _, signature = value.rpartition(".")
            if not hmac.compare_digest(self.sign("session", said).encode(), signature.encode()):
                continue
            key_id, since, _ = said.split(".")
            now = time.time()
            key = self._keys.get(key_id)
            if key and key.lives(now) and now - int(since) < LASTS:
                return value, key
        return None


def cookies(headers: Headers, name: bytes) -> Iterator[str]:
    """Values of every cookie of that name."""
    for part in headers.get(b"cookie", b"").split(b";"):
        key, _, value = part.strip().partition(b"=")
        if key == name:
            yield value.decode("latin-1")


def set_cookie(name: bytes, value: str, seconds: int, *, secure: bool, path: str = "/", same_site: str = "Lax") -> str:
    """A `Set-Cookie` that no script can read."""
    said = f"{name.decode()}={value}; Path={path}; Max-Age={seconds}; HttpOnly; SameSite={same_site}"
    return f"{said}; Secure" if secure else said
