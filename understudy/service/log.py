"""Logs: one line per event on stderr, time, level, service, message, then the extra fields as key=value.

Also what is done with the log file of a child: its last words, and keeping it from growing for ever.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

MOST_BYTES = 10 << 20
"""Of a log file before it is put aside."""
_PLAIN = re.compile(r"[!#-~]+")
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        extra = " ".join(f"{key}={_shown(value)}" for key, value in vars(record).items() if key not in _STANDARD)
        return f"{line} {extra}" if extra else line


def _shown(value: object) -> str:
    """In quotes where it would look like more than one value, or like another line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


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


def rotate(log: Path) -> None:
    """Put a long log aside, over the one put aside before. Whoever appends to it goes on writing in the emptied file."""
    if log.exists() and log.stat().st_size > MOST_BYTES:
        shutil.copyfile(log, log.with_suffix(".log.1"))
        with log.open("r+b") as file:
            file.truncate()


def last_words(log: Path, lines: int = 1, telling: Sequence[str] = (), since: int = 0) -> str:
    """The last lines of a log, from byte `since` on, that say something, those with one of the words `telling` in them if any.

    A line without a letter or a digit says nothing: it underlines, or frames, what others say.
    """
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - 16_384))
            lines_there = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines_there if any(map(str.isalnum, line))]
    chosen = [line for line in said if any(word in line for word in telling)] or said
    return " | ".join(chosen[-lines:])[-1000:]
