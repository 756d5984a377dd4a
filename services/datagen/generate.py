"""The llm generator: a language model writes the instructions, within a budget, surviving crashes.

An answer that does not pass the checks is sent back with the reason, a bounded number of times, then the row is rejected.
When the budget does not cover the next request in the worst case, the remaining rows are rejected with that reason; rows
are asked for in the order given, so put first what matters most. Does not know splits, prompts (`instructions.py`), which
providers there are (`llm/providers.py`), or how many are asked and kept (`llm/ask.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import Counter

from services.datagen import instructions
from services.datagen.budget import Budget
from services.datagen.filters import Candidate
from services.datagen.templates import chance
from understudy import recipe
from understudy.belt.contracts import Progress
from understudy.llm.answers import Completion
from understudy.llm.ask import Enough, Log, Tally, ask
from understudy.llm.chat import HELLO, ChatClient, Refused, Unanswered
from understudy.llm.providers import Provider
from understudy.records import Turn, resume_jsonl
from understudy.terms import Frozen

SPEND = Counter("understudy_datagen_spend_usd", "What the language model cost, by the recipes' prices, in US dollars")
MOST_REFUSED_AT_FIRST = 5
"""Rows that may be refused before the first answer: more of them tell a wrong model, address or request from rows that are disliked."""
MOST_REFUSED = 80
"""Of the last 100 rows, later. An endpoint that dislikes even half of the texts hardly ever comes to it by chance (1 in 10^9), and one
that has withdrawn the model costs no more rows."""
UNDER_WAY = " under way"
"""After the id of a row in the line that says what it may have cost at most by then, until it has a line of its own."""
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


@dataclass(frozen=True)
class Row:
    """One row to write an instruction for."""

    id: str
    """Of the example."""
    candidate: Candidate


Report = Callable[[int, int, dict[str, float]], Progress]
"""(rows done, rows in all, figures) -> what to tell."""


@dataclass
class Writer:
    """Writes the instructions of one dataset."""

    generator: recipe.Generator
    provider: Provider
    labels: Sequence[str]
    seed: int
    work: Path
    """The work file."""
    tries: int = 3

    def write(self, rows: Sequence[Row], report: Report) -> Generator[Progress, None, list[Written]]:
        """One `Written` per row, in this order; takes up where an earlier process stopped.

        Raises `Transient` when the endpoint does not answer any more, `Invalid` when it refuses everything.
        """
        with Log(self.work, resume_jsonl(self.work, Written)) as log:
            if STOPPED not in log.lines:
                job = _Job(self, Budget(self.generator.budget_usd, _spent(log)), log)
                asking = ask(log, rows, job.answer, job.refused, self._connect, self.generator.concurrency)
                with closing(asking) as ticks:
                    for tick in ticks:
                        figures = {"rows_per_second": tick.rows_per_second, "eta_seconds": tick.eta_seconds}
                        yield report(tick.done, tick.total, figures | {"cost_usd": job.budget.spent})
                if len(log.lines.keys() & {row.id for row in rows}) < len(rows):
                    log.append(Written(id=STOPPED))
        stopped = f"the budget of ${self.generator.budget_usd or 0:g} is spent"
        return [log.lines.get(row.id) or Written(id=row.id, reason=stopped) for row in rows]

    def _connect(self, concurrency: int) -> ChatClient:
        return ChatClient(self.provider.url, self.provider.key, concurrency=concurrency)


@dataclass
class _Talk:
    """How far the model and we have come with a row that has no line yet."""

    messages: list[Turn]
    usd: float
    """What it has cost, here and in earlier processes."""
    reserved: float = 0.0
    """Worst price of the request under way."""
    turns: int = 0
    problem: str = ""
    """With the last answer."""


@dataclass
class _Job:
    """One call of `write`."""

    writer: Writer
    budget: Budget
    log: Log[Written]
    talks: dict[str, _Talk] = field(default_factory=dict)
    """By row; one that was not answered goes on where it was."""

    async def answer(self, chat: ChatClient, row: Row) -> Written:
        """Ask until the answer is usable, the tries are used up or the budget is spent."""
        asked, labels, candidate = self.writer, self.writer.labels, row.candidate
        if row.id not in self.talks:
            before = self.log.lines.get(row.id + UNDER_WAY)  # of an earlier process, which may have been killed
            messages = instructions.ask(candidate, labels, row.id, asked.seed)
            self.talks[row.id] = _Talk(messages, before.usd if before else 0.0)
        talk = self.talks[row.id]
        while talk.turns < asked.tries:
            answer = await self._complete(chat, row, talk)
            talk.turns += 1
            try:
                return self._line(row, instruction=instructions.read(answer.text, candidate, labels))
            except instructions.Unusable as problem:
                talk.problem = str(problem)
                talk.messages = [*talk.messages[:2], *instructions.again(answer.text, talk.problem)]
        return self._line(row, reason=f"no usable instruction after {asked.tries} tries: {talk.problem}")

    def refused(self, row: Row, error: Refused, tally: Tally) -> Written:
        """The line of a row that the endpoint refused; raises when it refuses everything."""
        at_first = not tally.answered and not any(line.instruction for line in self.log.lines.values())
        if (at_first and tally.refused >= MOST_REFUSED_AT_FIRST) or tally.recent.count(True) > MOST_REFUSED:
            raise error
        return self._line(row, reason=str(error))

    async def _complete(self, chat: ChatClient, row: Row, talk: _Talk) -> Completion:
        schema = instructions.schema(self.writer.labels)
        worst = self._price(_tokens_at_most(talk.messages) + len(str(schema)), instructions.MAX_ANSWER_TOKENS)

        async def pay_again() -> None:
            self._pay(talk, worst)
            await self._reserve(row, talk, worst)

        await self._reserve(row, talk, worst)
        try:
            answer = await chat.complete(
                self.writer.generator.model or "",
                talk.messages,
                max_tokens=instructions.MAX_ANSWER_TOKENS,
                temperature=0.7,
                seed=(chance(row.id, self.writer.seed) & 0x7FFFFFFF) + talk.turns,
                extra=schema,
                lost=pay_again,
            )
        except Refused as error:
            self._pay(talk, self._price(*error.usage))
            raise
        except Unanswered:
            self._pay(talk, self._price(_tokens_at_most(HELLO), 1))  # of seeing whether the endpoint lives
            raise
        # an endpoint that does not count tokens is taken at the worst
        self._pay(talk, self._price(answer.prompt_tokens, answer.completion_tokens) if answer.prompt_tokens else worst)
        return answer

    async def _reserve(self, row: Row, talk: _Talk, worst: float) -> None:
        """Set the worst price of a request aside, here and for whoever goes on if this process is killed."""
        if not await self.budget.reserve(worst):
            raise Enough
        talk.reserved = worst
        self.log.append(Written(id=row.id + UNDER_WAY, usd=talk.usd + worst))

    def _pay(self, talk: _Talk, usd: float) -> None:
        self.budget.settle(talk.reserved, usd)
        talk.usd += usd
        SPEND.inc(usd)

    def _line(self, row: Row, **became: str) -> Written:
        return Written(id=row.id, usd=self.talks.pop(row.id).usd, **became)

    def _price(self, prompt: int, completion: int) -> float:
        per_prompt, per_completion = self.writer.generator.usd_per_million_tokens
        return (prompt * per_prompt + completion * per_completion) / 1e6


def _spent(log: Log[Written]) -> float:
    """What all rows cost; those under way at most."""
    over = {row + UNDER_WAY for row in log.lines}
    return sum(line.usd for line in log.lines.values() if line.id not in over)


def _tokens_at_most(messages: Sequence[Turn]) -> int:
    """No tokenizer makes more tokens than bytes; 16 for what a chat template adds to each turn."""
    return sum(len(turn.content.encode()) + 16 for turn in messages)
