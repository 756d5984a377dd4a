"""Header numbers: as they are written, and whatever is written, finite and within bounds."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from understudy.llm.headers import DAY, MOST, duration, left, limit, reset, retry_after


def test_seconds_to_wait_as_they_are_written() -> None:
    soon, past = (formatdate(time.time() + seconds, usegmt=True) for seconds in (30, -30))
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "2"}) == 2
    assert 25 < (retry_after({"retry-after": soon}) or 0) < 31
    assert retry_after({"retry-after": past}) == 0
    assert [retry_after({"retry-after": text}) for text in ("", "soon")] == [None, None]


def test_durations_as_they_are_written() -> None:
    texts = ("1s", "6m0s", "120ms", "1h2m3.5s", "12", "1.5", "", "soon")
    assert [duration(text) for text in texts] == [1, 360, 0.12, 3723.5, 12, 1.5, None, None]


@pytest.mark.parametrize(
    "text",
    [
        "9" * 400,
        "9" * 400 + "h",
        "1e400",
        "-1e400",
        "nan",
        "-5",
        "1760000000",
        "Mon, 01 Jan 99999999999 00:00:00 GMT",
        "Mon, 01 Jan 0000 00:00:00 GMT",
        "Fri, 31 Dec 9999 23:59:59 GMT",
        "Fri, 31 Dec 9999 23:59:59 -9999",
    ],
)
def test_no_number_is_out_of_bounds(text: str) -> None:
    for name in ("retry-after", "retry-after-ms"):
        assert 0 <= (retry_after({name: text}) or 0) <= DAY
    assert reset({"x-ratelimit-reset-tokens": text}, "tokens") is None
    for read, header in ((limit, "limit"), (left, "remaining")):
        assert 0 <= (read({f"x-ratelimit-{header}-tokens": text}, "tokens") or 0) <= MOST
