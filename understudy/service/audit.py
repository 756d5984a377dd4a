"""The audit trail: one line in a service's log for each thing that an administrator would ask about later.

    with audited(request, "key.revoke", key_id):
        ...

    2026-08-01 10:00:00,000 INFO inference audit: key.revoke on=abcd2345 who=anna key=wxyz6723 outcome=done

Says who (the name and the id of the key), what, on whom and how it ended; never a secret, a prompt or a body. Decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from understudy.errors import UnderstudyError
from understudy.service.web import key_id_of, owner_of

log = logging.getLogger("audit")
OURSELVES = "-"
"""In place of a name and an id: no key was asked for, or the platform itself did it."""


@contextmanager
def audited(request: Request, what: str, on: str) -> Iterator[None]:
    """A line when what is inside has ended, well or not."""
    outcome = "failed"
    try:
        yield
        outcome = "done"
    except UnderstudyError as error:
        outcome = type(error).__name__.lower()
        raise
    finally:
        note(what, on, outcome, who=owner_of(request), key=key_id_of(request))


def note(what: str, on: str, outcome: str, *, who: str = "", key: str = "") -> None:
    """The line itself."""
    log.info(what, extra={"on": on[:200], "who": who or OURSELVES, "key": key or OURSELVES, "outcome": outcome})
