"""The llm generator: a language model writes the instructions, within a budget, surviving crashes.

Every finished row is appended to a work file, so a killed process, or a run that was cancelled and is taken up again,
pays again for at most the rows that were under way (`concurrency` of them). An answer that does not pass the checks is
sent back with the reason, a bounded number of times, then the row is rejected. When the budget does not cover the next
request in the worst case, the remaining rows are rejected with that reason; rows are asked for in the order given, so put
first what matters most. Closed in the middle, all requests end within `LAST_SECONDS`. Does not know splits, prompts
(`prompts.py`) or HTTP (`llm/chat.py`).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter

from services.datagen import prompts
from services.datagen.budget import Budget
from services.datagen.filters import Candidate
from services.datagen.templates import chance
from understudy import recipe
from understudy.belt.contracts import Progress
from understudy.errors import Invalid, Transient
from understudy.records import Turn, resume_jsonl
from understudy.terms import Frozen

if TYPE_CHECKING:
    from understudy.llm.chat import ChatClient, Completion

SPEND = Counter("understudy_datagen_spend_usd", "What the language model cost, by the recipes' prices, in US dollars")
MAX_REFUSED = 5
"""Refusals without a success between them that tell a wrong key or model from a row the endpoint dislikes."""
PULSE = 0.5
"""Seconds between two words of progress, and between two flushes of the work file to the disk itself."""
LAST_SECONDS = 1.0
"""In which requests that are not wanted any more must have closed their connections."""
STOPPED = "budget"
"""Id of the line that says that the budget ended here, so that a resumed job ends at the same row."""


class Written(Frozen):
    """What became of one row: a line of the work file."""

    id: str
    instruction: str | None = None
    reason: str | None = None
    """Why there is no instruction."""
    usd: float = 0.0
    """What its requests cost, by the recipe's prices."""


Report = Callable[[int, int, dict[str, float]], Progress]
"""(rows done, rows in all, figures) -> what to tell."""


@dataclass
class Writer:
    """Writes the instructions of one dataset."""

    generator: recipe.Generator
    labels: Sequence[str]
    seed: int
    work: Path
    """The work file."""
    tries: int = 3
    _written: dict[str, Written] = field(default_factory=dict)

    def write(self, rows: Sequence[tuple[str, Candidate]], report: Report) -> Generator[Progress, None, list[Written]]:
        """One `Written` per (example id, candidate), in this order; takes up where an earlier process stopped.

        Raises `Transient` when the endpoint does not answer any more, `Invalid` when it refuses everything.
        """
        with _log(self.work) as (log, before):
            self._written = {line.id: line for line in before}
            if STOPPED not in self._written:
                yield from self._ask_all(rows, report, log)
        stopped = f"the budget of ${self.generator.budget_usd or 0:g} is spent"
        return [self._written.get(example) or Written(id=example, reason=stopped) for example, _ in rows]

    def _ask_all(self, rows: Sequence[tuple[str, Candidate]], report: Report, log: int) -> Iterator[Progress]:
        left = deque(row for row in rows if row[0] not in self._written)
        started, before = time.monotonic(), len(self._written)
        budget = Budget(self.generator.budget_usd, sum(line.usd for line in self._written.values()))
        with _event_loop() as loop:  # its end cancels what is under way
            job = loop.create_task(self._run(left, budget, log))
            while not job.done():
                loop.run_until_complete(asyncio.wait({job}, timeout=PULSE))
                os.fsync(log)
                done = len(self._written) - (STOPPED in self._written)
                rate = (done - before) / (time.monotonic() - started)
                eta = (len(rows) - done) / rate if rate else 0.0
                yield report(done, len(rows), {"rows_per_second": rate, "cost_usd": budget.spent, "eta_seconds": eta})
            job.result()

    async def _run(self, queue: deque[tuple[str, Candidate]], budget: Budget, log: int) -> None:
        from understudy.llm.chat import ChatClient

        refused = silent = 0

        async def worker(chat: ChatClient) -> None:
            nonlocal refused, silent
            while queue:
                example, candidate = queue.popleft()
                try:
                    line = await self._row(chat, example, candidate, budget)
                except Transient:
                    queue.append((example, candidate))
                    silent += 1
                    if silent >= 2 * width:  # nobody was answered for two rounds
                        raise
                    continue
                except Invalid as error:
                    refused += 1
                    if refused >= MAX_REFUSED:
                        raise
                    line = Written(id=example, reason=str(error))
                else:
                    refused = silent = 0
                if line.reason == STOPPED:
                    queue.clear()
                    line = Written(id=STOPPED, usd=line.usd)
                self._keep(line, log)

        width = min(self.generator.concurrency, len(queue))
        async with ChatClient(self.generator.base_url, concurrency=width) as chat:
            workers = [asyncio.create_task(worker(chat)) for _ in range(width)]
            try:
                await asyncio.gather(*workers)
            finally:
                for task in workers:
                    task.cancel()

    async def _row(self, chat: ChatClient, example: str, candidate: Candidate, budget: Budget) -> Written:
        """Ask until the answer is usable, the tries are used up or the budget is spent."""
        model, schema = self.generator.model or "", prompts.schema(self.labels)
        messages, usd, reason = prompts.ask(candidate, self.labels, example, self.seed), 0.0, ""
        seed = chance(example, self.seed) & 0x7FFFFFFF
        for turn in range(self.tries):
            worst = self._price(_tokens_at_most(messages) + len(str(schema)), prompts.MAX_ANSWER_TOKENS)
            if not await budget.reserve(worst):
                return Written(id=example, reason=STOPPED, usd=usd)
            cost = 0.0
            try:
                answer = await chat.complete(
                    model,
                    messages,
                    max_tokens=prompts.MAX_ANSWER_TOKENS,
                    temperature=0.7,
                    seed=seed + turn,
                    extra=schema,
                )
                cost = self._cost(answer, worst)
            finally:
                budget.settle(worst, cost)
            usd += cost
            try:
                return Written(id=example, instruction=prompts.read(answer.text, candidate, self.labels), usd=usd)
            except prompts.Unusable as problem:
                reason = str(problem)
                messages = [*messages[:2], *prompts.again(answer.text, reason)]
        return Written(id=example, reason=f"no usable instruction after {self.tries} tries: {reason}", usd=usd)

    def _keep(self, line: Written, log: int) -> None:
        os.write(log, line.model_dump_json(exclude_none=True).encode() + b"\n")
        self._written[line.id] = line
        SPEND.inc(line.usd)

    def _price(self, prompt: int, completion: int) -> float:
        per_prompt, per_completion = self.generator.usd_per_million_tokens
        return (prompt * per_prompt + completion * per_completion) / 1e6

    def _cost(self, answer: Completion, worst: float) -> float:
        """By the tokens the endpoint counted; one that does not count is taken at the worst."""
        return self._price(answer.prompt_tokens, answer.completion_tokens) if answer.prompt_tokens else worst


def _tokens_at_most(messages: Sequence[Turn]) -> int:
    """No tokenizer makes more tokens than bytes; 16 for what a chat template adds to each turn."""
    return sum(len(turn.content.encode()) + 16 for turn in messages)


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


@contextmanager
def _log(path: Path) -> Iterator[tuple[int, list[Written]]]:
    """The work file, open for appending, and its lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = resume_jsonl(path, Written)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        yield file, lines
        os.fsync(file)
    finally:
        os.close(file)
