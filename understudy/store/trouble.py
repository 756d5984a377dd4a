"""What an error of fsspec, s3fs or botocore means to us.

Does not import any of the three: a store in a folder needs neither s3fs nor botocore.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

from understudy.errors import Fatal, Transient, UnderstudyError, disk_full

LIBRARIES = ("aiobotocore", "aiohttp", "botocore")
"""Their errors come through s3fs untranslated."""
DAMAGED_ON_THE_WAY = ("BadDigest", "IncompleteBody", "RequestTimeout")
"""What S3 answers with status 400 though the same request may pass the next time."""
TOO_BUSY = (408, 409, 429)
NO_BUCKET = "NoSuchBucket"


def meaning(error: Exception, store: str, disk: str | Path) -> UnderstudyError | None:
    """The error to raise for one that came out of the store at the URL `store`, or out of writing to `disk`.

    None for an absent file, and for an error that says nothing about the store.
    """
    if full := disk_full(error, disk):
        return full
    if _code(error) == NO_BUCKET:
        return Fatal(
            f"The bucket of the artifact store {store} does not exist", "Create it, or correct UNDERSTUDY_ARTIFACTS."
        )
    if absent(error):
        return None
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, ImportError):
        return Fatal(f"The artifact store {store} needs s3fs: {reason}", "Install it: pip install 'understudy[s3]'.")
    if _refused(error):
        return Fatal(f"The artifact store {store} cannot be used: {reason.rstrip('.')}", _remedy(store))
    if isinstance(error, OSError) or _library(error):
        remedy = "Is it up, and does AWS_ENDPOINT_URL name it?" if store.startswith("s3:") else "Is its disk there?"
        return Transient(f"The artifact store {store} did not answer: {reason}", remedy)
    return None


def absent(error: Exception) -> bool:
    """Whether a file is not there; in a bucket that is missing no file is absent."""
    return isinstance(error, FileNotFoundError) and _code(error) != NO_BUCKET


def http_status(error: BaseException) -> int:
    """The HTTP status of S3's answer behind `error`; 0 when there was none."""
    return int(_answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refused(error: Exception) -> bool:
    """Whether asking again is of no use: no right, no credentials, a bucket or an endpoint that cannot be one."""
    if _code(error) in DAMAGED_ON_THE_WAY:
        return False
    if isinstance(error, PermissionError | ValueError):  # ValueError: botocore's word on a malformed endpoint
        return True
    if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EOPNOTSUPP):
        return True
    if _library(error) == "botocore":
        from botocore.exceptions import BotoCoreError, ConnectionError, HTTPClientError, IncompleteReadError

        return isinstance(error, BotoCoreError) and not isinstance(
            error, ConnectionError | HTTPClientError | IncompleteReadError
        )
    return 300 <= http_status(error) < 500 and http_status(error) not in TOO_BUSY


def _remedy(store: str) -> str:
    if not store.startswith("s3:"):
        return "Check who may write there, and that its file system knows hard links."
    return (
        "Check UNDERSTUDY_ARTIFACTS, the right to list, read, write and delete there, and what AWS's tools read: "
        "AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY."
    )


def _library(error: Exception) -> str:
    name = type(error).__module__.partition(".")[0]
    return name if name in LIBRARIES else ""


def _answer(error: BaseException) -> dict[str, Any]:
    return getattr(error.__cause__, "response", None) or {}


def _code(error: Exception) -> str:
    return str(_answer(error).get("Error", {}).get("Code", ""))
