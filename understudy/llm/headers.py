"""What the headers of a response say about waiting and about rates. Every number that leaves here is finite and within its bounds.

Does not remember (`limits.py`) or wait (`chat.py`).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

DAY = 86_400.0
"""Seconds; nobody is asked to wait longer, and no limit is of a longer time."""
MOST = 1e12
"""Of requests or tokens: more than anybody allows or has left."""
_UNITS = {"d": DAY, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, at most a day, by `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110 10.2.3); None when neither is there."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name, "")
        value = _number(text)
        if value is None:
            try:
                value = (parsedate_to_datetime(text).timestamp() - time.time()) * unit
            except (ValueError, TypeError, OverflowError):
                continue
        return min(DAY, max(0.0, value / unit))
    return None


def left(headers: Mapping[str, str], name: str) -> float | None:
    """How many `name` ("requests", "tokens") are left."""
    return _bounded(_number(headers.get(f"x-ratelimit-remaining-{name}", "")), MOST)


def limit(headers: Mapping[str, str], name: str) -> float | None:
    """How many are allowed in whatever time."""
    return _bounded(_number(headers.get(f"x-ratelimit-limit-{name}", "")), MOST)


def reset(headers: Mapping[str, str], name: str) -> float | None:
    """Seconds until all that is allowed is left again; None also of a date, which some send."""
    return _bounded(duration(headers.get(f"x-ratelimit-reset-{name}", "")), DAY)


def duration(text: str) -> float | None:
    """Seconds of `6m0s`, `120ms`, `1h2m3.5s` or `12`; None of anything else."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|[dhms]))+", text):
        return None
    return sum(float(number) * _UNITS[unit] for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|[dhms])", text))


def _number(text: str) -> float | None:
    """It may be infinite."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value == value else None


def _bounded(value: float | None, most: float) -> float | None:
    return value if value is not None and 0 <= value <= most else None
