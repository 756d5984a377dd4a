"""Asks many questions of one endpoint and keeps each answer: workers, a log, resume, ticks, cancel.

    with Log(path, resume_jsonl(path, Prediction)) as log:
        yield from ask(log, questions, answer, refused, connect, 16)

`answer(chat, question)` gives the line for a question, in as many requests as that takes. Each line is appended to the
log as soon as it is there, before anything else happens; a killed process, or one that was told to stop and begins again,
asks (and pays) again for at most the questions that were under way. When the caller closes the generator, requests end
within `LAST_SECONDS`.
Does not know HTTP (`chat.py`), money, or what a question is beyond its id.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

from understudy.errors import disk_full
from understudy.llm.chat import Away, Refused, Unanswered

if TYPE_CHECKING:
    from understudy.llm.chat import ChatClient

PULSE = 0.5
"""Seconds between two ticks, and between two flushes of the log to the disk itself."""
LAST_SECONDS = 1.0
"""In which requests that are not wanted any more must have closed their connections."""
ROUNDS = 3
"""Times that a question may stay without an answer, all its tries used up, when the endpoint answers others."""
SILENT_ROUNDS, SILENT_SECONDS = 2, 300.0
"""Times that every worker may fail to get an answer, with none between, before the endpoint counts as gone; or so long."""
RECENT = 100
KEY_REFUSED = (401, 402, 429)
"""Of HTTP: who asks is refused, not the question; 429 is refused only when a quota is used up."""


class Question(Protocol):
    """Anything with an id that is unique among the questions."""

    @property
    def id(self) -> str: ...


class Line(Protocol):
    """What a log holds, one for each question; a model of pydantic's."""

    @property
    def id(self) -> str: ...

    def model_dump_json(self, *, exclude_none: bool = ...) -> str: ...


Q = TypeVar("Q", bound=Question)
L = TypeVar("L", bound=Line)


class Enough(Exception):
    """Raised by `answer`: no further question shall be asked. Those under way are finished."""


@dataclass(frozen=True)
class Tick:
    """How far it is."""

    done: int
    total: int
    rows_per_second: float
    eta_seconds: float


@dataclass
class Tally:
    """What became of the questions of this call."""

    total: int
    """All questions, also those that an earlier call asked."""
    answered: int = 0
    refused: int = 0
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Of the last `RECENT` of them, in order: whether it was refused."""


class Log(Generic[L]):
    """An append-only JSONL file of lines: `with Log(path, resume_jsonl(path, Prediction)) as log`."""

    def __init__(self, path: Path, lines: Sequence[L]) -> None:
        """`lines` are those of an earlier process."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines: dict[str, L] = {line.id: line for line in lines}
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._size = os.fstat(self._file).st_size

    def append(self, line: L) -> None:
        """Write a line at once. Raises `Fatal` when the disk is full; the log is whole then, too."""
        content = line.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            if os.write(self._file, content) < len(content):
                os.ftruncate(self._file, self._size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what the next write would say
        except OSError as error:
            raise disk_full(error, self._path) or error from error
        self._size += len(content)
        self.lines[line.id] = line

    def flush(self) -> None:
        """See to it that power may go."""
        try:
            os.fsync(self._file)
        except OSError as error:
            raise disk_full(error, self._path) or error from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            os.close(self._file)


def ask(
    log: Log[L],
    questions: Sequence[Q],
    answer: Callable[[ChatClient, Q], Awaitable[L]],
    refused: Callable[[Q, Refused, Tally], L],
    connect: Callable[[int], ChatClient],
    concurrency: int,
) -> Generator[Tick, None, None]:
    """Ask the questions that `log` has no line of, in the order given; yields twice a second, and at the end.

    `refused` gives the line of a question that the endpoint refused, or raises when that says enough about all of them.
    A question without an answer goes to the end of the line; after `ROUNDS` in which others were answered it counts as refused.
    `connect` makes the client for so many requests at once. Raises what `answer` and `refused` raise, `Refused` when the
    endpoint does not take the key, and `Unanswered` when it has not answered anybody for `SILENT_ROUNDS` or `SILENT_SECONDS`.
    """
    todo = deque(question for question in questions if question.id not in log.lines)
    job = _Job(log, todo, answer, refused, Tally(len(questions)))
    before, began = len(questions) - len(todo), time.monotonic()
    with _event_loop() as loop:  # its end cancels what is under way
        task = loop.create_task(job.run(connect, min(concurrency, len(todo))))
        while not task.done():
            loop.run_until_complete(asyncio.wait({task}, timeout=PULSE))
            log.flush()
            done = job.tally.answered + job.tally.refused
            rate = done / max(1e-3, time.monotonic() - began)
            left = len(questions) - before - done
            yield Tick(before + done, len(questions), round(rate, 2), round(left / rate, 1) if rate else 0.0)
        task.result()


@dataclass
class _Job(Generic[Q, L]):
    """One call of `ask`: as many workers as requests may be under way take questions from `todo`."""

    log: Log[L]
    todo: deque[Q]
    answer: Callable[[ChatClient, Q], Awaitable[L]]
    refused: Callable[[Q, Refused, Tally], L]
    tally: Tally
    rounds: Counter[str] = field(default_factory=Counter)
    """Question -> times that it was not answered while others were."""
    heard: int = 0
    """Times that the endpoint answered or refused anybody."""
    heard_at: float = 0.0
    silent: int = 0
    """Questions in a row that nobody answered."""

    async def run(self, connect: Callable[[int], ChatClient], workers: int) -> None:
        if not workers:
            return
        self._hear()
        async with connect(workers) as chat:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(workers):
                        group.create_task(self._work(chat, SILENT_ROUNDS * workers))
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None

    async def _work(self, chat: ChatClient, patience: int) -> None:
        while self.todo:
            question, before = self.todo.popleft(), self.heard
            try:
                self._keep(await self.answer(chat, question))
            except Away:
                raise
            except Unanswered as error:
                if self.heard == before and await chat.lives():
                    self._hear()
                if self.heard > before:
                    self._put_back(question, error)
                else:
                    self.todo.append(question)
                    self.silent += 1
                    if self.silent >= patience or _now() - self.heard_at > SILENT_SECONDS:
                        raise
            except Refused as error:
                if error.status in KEY_REFUSED:
                    raise
                self._hear()
                self._refuse(question, error)
            except Enough:
                self.todo.clear()

    def _put_back(self, question: Q, error: Unanswered) -> None:
        """It is this question that is not answered, not the endpoint that is gone."""
        self.rounds[question.id] += 1
        if self.rounds[question.id] < ROUNDS:
            self.todo.append(question)
        else:
            self._refuse(question, Refused(f"not answered after {ROUNDS} tries, while others were: {error.what}", 0))

    def _keep(self, line: L) -> None:
        self._hear()
        self.log.append(line)
        self.tally.answered += 1
        self.tally.recent.append(False)

    def _refuse(self, question: Q, error: Refused) -> None:
        self.tally.refused += 1
        self.tally.recent.append(True)
        self.log.append(self.refused(question, error, self.tally))

    def _hear(self) -> None:
        self.heard, self.heard_at, self.silent = self.heard + 1, _now(), 0


def _now() -> float:
    return asyncio.get_running_loop().time()


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """One that may be run by one thread after another; what is left in it at the end is cancelled, within `LAST_SECONDS`.

    Not an `asyncio.Runner`, whose end waits for as long as a name that is being looked up needs.
    """
    loop = asyncio.new_event_loop()
    try:
        yield loop
    finally:
        if left := asyncio.all_tasks(loop):
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.wait(left, timeout=LAST_SECONDS))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
