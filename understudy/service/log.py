"""Logs: one line per event on stderr, time, level, service, message, then the extra fields as key=value."""

from __future__ import annotations

import logging
import sys

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extra = " ".join(f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD)
        return f"{line} {extra}" if extra else line


def configure(service: str, level: str) -> None:
    """Set up the root logger of this process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(f"%(asctime)s %(levelname)s {service} %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpx2", "httpcore", "openai", "asyncio"):
        logging.getLogger(noisy).setLevel("WARNING")
    # kafka-python says each failed attempt to connect three times, at every level up to ERROR.
    for noisy in (
        "kafka.net.transport",
        "kafka.net.connection",
        "kafka.net.selector",
        "kafka.consumer",
        "kafka.producer",
    ):
        logging.getLogger(noisy).setLevel("CRITICAL")
    logging.getLogger("kafka").setLevel("WARNING")
