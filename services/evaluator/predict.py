"""Asks a model the questions of a panel through the endpoint, greedily, and remembers every answer as it comes.

Each finished row is appended to a file at once, so that a killed process goes on where it was. Does not read classes
out of answers or score them (`scoring.py`), and knows no panels, runs or messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from understudy.errors import Invalid, Transient, disk_full
from understudy.records import Example, Prediction, Turn, resume_jsonl

if TYPE_CHECKING:
    from understudy.llm.chat import ChatClient, Completion

TICK_SECONDS = 0.5
TEMPERATURE = 0.0
"""Greedy: the most likely token each time."""
REFUSED = "refused"
"""`finish_reason` of a question that the endpoint would not take, such as one longer than the model's context."""
MOST_REFUSED = 0.1
"""Share of refused questions above which a panel says nothing about the model."""
ASK_TOKEN_IDS = {"return_token_ids": True}
SCORE_REFERENCE = {"prompt_logprobs": 0, "add_generation_prompt": False, "continue_final_message": True}
"""Render the chat up to the last letter of the reference and give the log-probability of every token of it."""


@dataclass(frozen=True)
class Questions:
    """What to ask one model."""

    model: str
    examples: Sequence[Example]
    max_tokens: int
    seed: int
    references: bool
    """Also ask how likely the model finds the reference answers."""


@dataclass(frozen=True)
class Tick:
    """How far it is."""

    done: int
    total: int
    rows_per_second: float
    eta_seconds: float


@dataclass(frozen=True)
class Asker:
    """Asks one endpoint.

    for tick in asker.ask(questions, file): ...      # may be killed and called again
    predictions = answered(file, questions.examples)
    """

    base_url: str
    """Up to and with `/v1`."""
    concurrency: int
    tries: int = 8

    def ask(self, questions: Questions, path: Path) -> Iterator[Tick]:
        """Ask what `path` has no answer to yet; yields about twice a second.

        Raises `Transient` when the endpoint does not answer or does not know the model (yet), `Invalid` when it refuses
        more than a tenth of the questions.
        """
        known = _take_up(path)
        todo = [example for example in questions.examples if example.id not in known]
        refused = sum(
            known[example.id].finish_reason == REFUSED for example in questions.examples if example.id in known
        )
        total, began = len(questions.examples), time.monotonic()
        with path.open("ab") as file, asyncio.Runner() as runner:
            job = _Job(questions, file, iter(todo), refused)
            task = runner.get_loop().create_task(job.run(self))
            while not runner.run(_ended(task)):
                rate = job.done / (time.monotonic() - began)
                left = len(todo) - job.done
                yield Tick(total - left, total, round(rate, 2), round(left / rate, 1) if rate else 0.0)
            task.result()
        yield Tick(total, total, round(len(todo) / max(1e-3, time.monotonic() - began), 2), 0.0)


@dataclass
class _Job:
    """One call of `ask`: rows are taken from `todo` by as many workers as requests may be under way."""

    questions: Questions
    file: BinaryIO
    todo: Iterator[Example]
    refused: int
    done: int = 0

    async def run(self, asker: Asker) -> None:
        from understudy.llm.chat import ChatClient  # loads the SDK, which takes a second

        async with ChatClient(asker.base_url, concurrency=asker.concurrency, tries=asker.tries) as chat:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(asker.concurrency):
                        group.create_task(self._work(chat))
            except ExceptionGroup as group_error:
                raise group_error.exceptions[0] from None

    async def _work(self, chat: ChatClient) -> None:
        for example in self.todo:
            self._note(await self._row(chat, example))

    def _note(self, prediction: Prediction) -> None:
        try:
            self.file.write(prediction.model_dump_json(exclude_none=True).encode() + b"\n")
            self.file.flush()
        except OSError as error:
            raise disk_full(error, self.file.name) or error from error
        self.done += 1

    async def _row(self, chat: ChatClient, example: Example) -> Prediction:
        asked = self.questions
        wants_reference = asked.references and bool(example.completion.strip())
        try:
            answer = await chat.complete(
                asked.model,
                example.prompt,
                max_tokens=asked.max_tokens,
                temperature=TEMPERATURE,
                seed=asked.seed,
                extra=ASK_TOKEN_IDS if wants_reference else None,
            )
        except Invalid as error:
            self._refuse(error)
            return Prediction(id=example.id, text="", finish_reason=REFUSED, prompt_tokens=0, completion_tokens=0)
        reference = await self._reference(chat, example, answer) if wants_reference else None
        return Prediction(
            id=example.id,
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            reference_logprob=reference[0] if reference else None,
            reference_tokens=reference[1] if reference else None,
        )

    async def _reference(self, chat: ChatClient, example: Example, answer: Completion) -> tuple[float, int] | None:
        """Sum of log-probabilities and number of tokens of the reference; None when the endpoint cannot say."""
        turns = (*example.prompt, Turn(role="assistant", content=example.completion))
        try:
            scored = await chat.complete(self.questions.model, turns, max_tokens=1, extra=SCORE_REFERENCE)
        except Invalid as error:
            _check_refusal(error)
            return None
        positions = scored.raw.get("prompt_logprobs")
        if positions is None:
            raise Invalid(
                "The endpoint gives no log-probabilities of a prompt (`prompt_logprobs`)",
                "Take `perplexity` out of the panel, or serve with vLLM.",
            )
        return reference_logprob(positions, answer.raw.get("prompt_token_ids"), answer.prompt_tokens)

    def _refuse(self, error: Invalid) -> None:
        _check_refusal(error)
        self.refused += 1
        if self.refused > MOST_REFUSED * len(self.questions.examples):
            raise Invalid(
                f"Model `{self.questions.model}` was refused {self.refused} of {len(self.questions.examples)} questions, "
                f"the last with: {error}",
                "Shorten them, or serve with a longer context.",
            ) from error


def reference_logprob(
    positions: Sequence[Mapping[str, Mapping[str, Any]] | None], prompt_ids: Sequence[int] | None, prompt_tokens: int
) -> tuple[float, int] | None:
    """Sum of natural-log probabilities and number of tokens of an answer that follows its prompt in one rendering.

    `positions` has one entry per token of prompt and answer: null for the first, then {token id: {logprob}}.
    `prompt_ids` are the tokens of the prompt when it was rendered alone, `prompt_tokens` their number. The answer begins
    where the two renderings part: at the end of the prompt, or a token or two before it where the tokenizer merges
    over the seam. None when they part earlier, because the template then renders another prompt before an answer.
    """
    start = prompt_tokens
    if prompt_ids is not None:
        here = [int(next(iter(entry))) if entry else None for entry in positions]
        pairs = zip(prompt_ids, here, strict=False)
        start = next(
            (i for i, (one, other) in enumerate(pairs) if other not in (one, None)), min(len(prompt_ids), len(here))
        )
        if start < len(prompt_ids) - 2:
            return None
    logprobs = [float(next(iter(entry.values()))["logprob"]) for entry in positions[start:] if entry]
    return (round(sum(logprobs), 4), len(logprobs)) if logprobs else None


def answered(path: Path, examples: Sequence[Example]) -> list[Prediction]:
    """The predictions in `path`, in the order of `examples`, all of which have been answered."""
    known = _take_up(path)
    return [known[example.id] for example in examples]


def _take_up(path: Path) -> dict[str, Prediction]:
    """What an earlier call left in `path`, by example."""
    return {prediction.id: prediction for prediction in resume_jsonl(path, Prediction)}


def _check_refusal(error: Invalid) -> None:
    """Pass when the endpoint refused this one question; raise when it would refuse any."""
    status = getattr(error.__cause__, "status_code", None)
    if status == 404:
        raise Transient(f"{error.what}; the model may be on its way back") from error
    if status in (401, 403):
        raise error


async def _ended(task: asyncio.Task[None]) -> bool:
    await asyncio.wait({task}, timeout=TICK_SECONDS)
    return task.done()
