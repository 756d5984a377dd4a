"""The internal token, by which the services of one installation know each other.

UNDERSTUDY_INTERNAL_TOKEN, else a file in the data folder that they share, made by whoever comes first. Not for users: those
have keys (`belt/apikeys.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import tempfile
from pathlib import Path

from understudy.errors import Fatal, disk_full
from understudy.settings import Settings

HEADER, OWNER, KEY_ID = b"x-understudy-token", b"x-understudy-owner", b"x-understudy-key"
"""How the gateway tells the other services that it is the one who asks, and on whose behalf: a key's name and id, or nothing."""
FILE = "internal-token"
_TOKEN = re.compile("[!-~]{16,}")


def internal_token(settings: Settings) -> str:
    """The token of this installation. Raises `Fatal` when there is none and none can be written, or when it cannot be one."""
    if settings.internal_token:
        where, token = "UNDERSTUDY_INTERNAL_TOKEN", settings.internal_token.get_secret_value()
    else:
        path = settings.data / FILE
        where, token = str(path), _kept(path)
    if not _TOKEN.fullmatch(token):  # an empty one would let in everybody
        raise Fatal(
            f"{where} is no token",
            "It has 16 or more ASCII characters, no blanks. A file that is removed is made anew.",
        )
    return token


def _kept(path: Path) -> str:
    """What is in the file, which is made where there is none."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f"{FILE}.")  # for nobody else's eyes
            try:
                with os.fdopen(descriptor, "w") as file:
                    file.write(secrets.token_urlsafe(32))
                    file.flush()
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(draft, path)  # whole, or not there
            finally:
                os.unlink(draft)  # noqa: PTH108
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError as error:
        problem = Fatal(f"Cannot read or write {path}: {error.strerror}", "Or set UNDERSTUDY_INTERNAL_TOKEN.")
        raise disk_full(error, path.parent) or problem from error
