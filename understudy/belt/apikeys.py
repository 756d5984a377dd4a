"""API keys: how they look, and how they are made.

    text, made = mint("anna", ("inference",))     # text goes to anna, once; `made` onto the bus
    presented(text)                               # (its id, the digest of its secret), or None

A key is `sk-understudy-<id>-<secret>`. The id is public; of the secret only a digest is kept. Who has one is a fold over
the topic `keys` (`folds/keys.py`).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence

from understudy.belt.contracts import KeyMade
from understudy.errors import Invalid
from understudy.terms import SCOPES, Scope

PREFIX = "sk-understudy-"
"""What is no key of ours does not begin like this: other clients send a word of their own where none is needed."""
_KEY = re.compile(rf"{PREFIX}([a-z2-7]{{8}})-([A-Za-z0-9_-]{{43}})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


def mint(
    name: str,
    scopes: Sequence[Scope],
    *,
    expires: float | None = None,
    requests_per_minute: int | None = None,
    at_once: int | None = None,
    by: str = "",
) -> tuple[str, KeyMade]:
    """A new key, as its owner shall have it and as everybody else shall know it. Raises `Invalid` when a name cannot be one."""
    if not _NAME.fullmatch(name):
        raise Invalid(f"`{name[:100]}` cannot name a key", "Use up to 64 letters, digits, blanks and . _ @ + -")
    if not scopes:
        raise Invalid(f"The key `{name}` may do nothing", f"Give it a scope: {', '.join(SCOPES)}.")
    key_id, secret = "".join(secrets.choice(_ALPHABET) for _ in range(8)), secrets.token_urlsafe(32)
    made = KeyMade(
        key_id=key_id,
        name=name,
        secret_sha256=_digest(secret),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        expires=expires,
        requests_per_minute=requests_per_minute,
        at_once=at_once,
        by=by,
    )
    return f"{PREFIX}{key_id}-{secret}", made


def presented(text: str) -> tuple[str, str] | None:
    """Id and digest of the secret in what somebody presents; None when it cannot be one of our keys."""
    found = _KEY.fullmatch(text)
    return (found[1], _digest(found[2])) if found else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
