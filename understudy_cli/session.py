"""Finds the server a command talks to: the one named, the stack that is up on the data folder, or one of our own for a while.

Does not supervise (`stack.py`) and knows no HTTP (`client.py`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import typer
from rich.console import Console

from understudy.embedded.stack import Stack
from understudy.embedded.stackfile import running
from understudy.errors import Fatal, Transient
from understudy.service.token import FILE, internal_token
from understudy.settings import Settings
from understudy_cli.client import Gateway, Source
from understudy_cli.extras import need_services
from understudy_cli.folder import Folder


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: end in order, as after Ctrl-C."""


@dataclass(frozen=True)
class Session:
    """A server that answers now."""

    url: str
    key: str | None
    """What lets us in."""
    check: Callable[[], None]
    """Raises when there is no point in waiting for an answer any more."""
    stack: Stack | None
    """Ours, which ends with the session; None when somebody else's."""


@contextmanager
def session(server: str | None, data: Path, err: Console, key: str | None = None) -> Iterator[Session]:
    """A server for the duration of one command."""
    if server:
        yield Session(server, key, lambda: None, None)
    elif url := _wait_for(data):
        yield Session(url, _insider(data) or key, lambda: _still_up(data), None)
    else:
        with started(data, 0, err) as stack:
            yield Session(stack.url, _insider(data) or key, stack.check, stack)


@contextmanager
def started(data: Path, port: int, err: Console, base: str | None = None, host: str = "127.0.0.1") -> Iterator[Stack]:
    """A stack of our own, ready, stopped at the end."""

    def say(line: str) -> None:
        err.print(line)

    need_services()
    stack = Stack(data, port, base, host, say=say)
    stack.start()
    try:
        with err.status("starting the services …") as status:
            ready: set[str] = set()

            def changed(waiting: dict[str, str | None]) -> None:
                status.update(
                    "starting: " + ", ".join(f"{name} {'✓' if why is None else '…'}" for name, why in waiting.items())
                )
                new = {name for name, why in waiting.items() if why is None} - ready
                ready.update(new)
                if new and not err.is_terminal:
                    say(f"ready: {', '.join(sorted(new))}")

            stack.wait_ready(changed)
        yield stack
    finally:
        if err.is_terminal:
            say("stopping the services …")
        stack.stop()


@contextmanager
def lookup(server: str | None, data: Path, key: str | None = None) -> Iterator[Source]:
    """Where runs and models are: a server, or the data folder when nothing is up. On a bus of others, their endpoint."""
    settings = Settings()
    url = server or running(data) or (settings.gateway if settings.bus else None)
    if url:
        with Gateway(url, key if server else _insider(data) or key) as gateway:
            yield gateway
    else:
        yield Folder(data)


@contextmanager
def interruptible(note: str = "", code: int = 130) -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP unwind everything inside, then say `note` and exit with `code` (143 after SIGTERM)."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: terminate}  # a script's `&` ignores SIGINT
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        handlers[signal.SIGHUP] = terminate
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    except KeyboardInterrupt as end:
        if note:
            print(f"\n{note}", file=sys.stderr)
        raise typer.Exit(143 if isinstance(end, Terminated) and code else code) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def data_folder(data: Path | None) -> Path:
    """--data, else UNDERSTUDY_DATA, else .understudy here; absolute."""
    return (data or Settings().data).expanduser().absolute()


def _insider(data: Path) -> str | None:
    """What lets in whoever has the machine, without a key; None where it is not theirs to read."""
    settings = Settings(data=data)
    readable = settings.internal_token or os.access(data / FILE, os.R_OK)
    return internal_token(settings) if readable else None


def _wait_for(data: Path, patience: float = 120) -> str | None:
    """The URL of the stack on `data`, waiting while it starts or stops; None when there is none."""
    deadline = time.monotonic() + patience
    while (url := running(data)) == "":
        if time.monotonic() > deadline:
            raise Fatal(
                f"A stack holds {data} but is not ready after {patience:.0f} s", f"See the logs in {data / 'logs'}."
            )
        time.sleep(0.3)
    return url


def _still_up(data: Path) -> None:
    if not running(data):
        raise Transient(f"The stack on {data} was stopped", "The same command goes on where it stood.")
