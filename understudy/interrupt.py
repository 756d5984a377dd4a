"""How work that blocks a thread learns that it shall stop: a cancelled run, a service that ends.

    with interruptible(stop):          # the loop, around a handler's step
        ...
        check()                        # long calls, between two pieces of their work: raises `Interrupted`

Interrupts nothing by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Interrupted(BaseException):
    """This work is not wanted any more. Not an Exception, so that nobody takes it for a failure and goes on."""


_here = threading.local()


@contextmanager
def interruptible(stop: threading.Event) -> Iterator[None]:
    """Inside, in this thread, `check` raises once `stop` is set."""
    before = getattr(_here, "stop", None)
    _here.stop = stop
    try:
        yield
    finally:
        _here.stop = before


def check() -> None:
    """Raise `Interrupted` when this thread's work shall stop; nothing where nobody can ask for that."""
    stop: threading.Event | None = getattr(_here, "stop", None)
    if stop is not None and stop.is_set():
        raise Interrupted


@contextmanager
def held(lock: threading.Lock) -> Iterator[None]:
    """Hold the lock; an interruption is heard while waiting for it."""
    while not lock.acquire(timeout=0.2):
        check()
    try:
        yield
    finally:
        lock.release()


def awaited(work: Callable[[], T]) -> T:
    """What `work` returns, which nothing interrupts: it is made in a thread of its own, and left to itself when nobody waits
    for it any more."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(work())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, name="awaited", daemon=True).start()
    while not wait([result], timeout=0.2).done:
        check()
    return result.result()
