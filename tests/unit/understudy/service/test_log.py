"""Logs: one line per event, and what is done with the log file of a child."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from understudy.service import log as module
from understudy.service.log import last_words, rotate


def test_a_line_has_its_service_and_the_extra_fields() -> None:
    """In a process of its own, because logging is configured for all of it; what httpx says at INFO is not shown."""
    script = (
        "import logging; from understudy.service.log import configure; configure('trainer', 'info');"
        "logging.getLogger('a').info('begun %d', 3, extra={'run': 'r-1', 'offset': 7});"
        "logging.getLogger('httpx').info('noise'); logging.getLogger('a').debug('detail')"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = said.stderr.splitlines()
    assert line.endswith(f"{logging.getLevelName(logging.INFO)} trainer a: begun 3 run=r-1 offset=7")
    assert said.stdout == ""


def test_what_a_stranger_named_cannot_pass_for_another_field_or_line() -> None:
    record = logging.LogRecord("audit", logging.INFO, "", 0, "run.delete", None, None)
    record.on = "r\n2026-01-01 INFO audit: run.delete on=x who=root"
    record.who = "anna b. outcome=done"
    record.key = ""
    line = module._Formatter("%(message)s").format(record)
    quoted = r'"r\n2026-01-01 INFO audit: run.delete on=x who=root"'
    assert line == f'run.delete on={quoted} who="anna b. outcome=done" key=""'


def test_a_long_log_is_put_aside_and_whoever_appends_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short one stays; of a long one the old part stays readable, and an open file goes on at the start of the new one."""
    monkeypatch.setattr(module, "MOST_BYTES", 10)
    log = tmp_path / "trainer.log"
    rotate(log)
    log.write_text("short")
    rotate(log)
    assert log.read_text() == "short"
    with log.open("a") as service:
        service.write(" no longer short\n")
        service.flush()
        rotate(log)
        assert (tmp_path / "trainer.log.1").read_text() == "short no longer short\n"
        service.write("new\n")
    assert log.read_text() == "new\n"


def test_last_words_are_the_last_lines_that_say_something(tmp_path: Path) -> None:
    """Lines without a letter or digit say nothing, telling ones go before others, a file that is missing or binary is no trouble."""
    log = tmp_path / "engine.log"
    assert last_words(log) == ""
    log.write_text("")
    assert last_words(log) == ""
    log.write_text("one\n\nRuntimeError: out of luck\n  at last \n\n")
    assert last_words(log) == "at last"
    assert last_words(log, lines=2) == "RuntimeError: out of luck | at last"
    assert last_words(log, telling=("Error",)) == "RuntimeError: out of luck"
    assert last_words(log, telling=("Warning",)) == "at last"
    log.write_text("Error: no room\n  ^~~~ ^^\n====\n| - |\n--------- *** ---\n")
    assert last_words(log, lines=2) == "Error: no room"
    log.write_text("Fehler: üäß\n\u2500\u2500\u2500\n")
    assert last_words(log, lines=2) == "Fehler: üäß"
    log.write_bytes(b"x" * 100_000 + b"\n\xff the end\n")
    assert last_words(log).endswith(" the end")


def test_last_words_are_bounded(tmp_path: Path) -> None:
    """The end of a line of any length: it goes into messages that must stay small."""
    log = tmp_path / "engine.log"
    log.write_text("a" * 5000 + "z")
    assert len(last_words(log)) == 1000
    assert last_words(log).endswith("z")
