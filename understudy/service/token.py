"""The internal token, by which the services of one installation know each other.

UNDERSTUDY_INTERNAL_TOKEN, else a file in the data folder that they share, made by whoever comes first. Not for users: those
have keys (`belt/apikeys.py`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile

from understudy.errors import Fatal, disk_full
from understudy.settings import Settings

HEADER, OWNER = b"x-understudy-token", b"x-understudy-owner"
"""How the gateway tells the other services that it is the one who asks, and on whose behalf (the name of a key, or nothing)."""
FILE = "internal-token"


def internal_token(settings: Settings) -> str:
    """The token of this installation. Raises `Fatal` when there is none and none can be written."""
    if settings.internal_token:
        return settings.internal_token.get_secret_value()
    path = settings.data / FILE
    try:
        settings.data.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            descriptor, draft = tempfile.mkstemp(dir=settings.data, prefix=f"{FILE}.")  # for nobody else's eyes
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # whole, or not there
            os.unlink(draft)  # noqa: PTH108
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        problem = Fatal(f"Cannot read or write {path}: {error.strerror}", "Or set UNDERSTUDY_INTERNAL_TOKEN.")
        raise disk_full(error, settings.data) or problem from error
