"""What is asked of a model for a panel, greedily, and how the answers of one question become its `Prediction`.

Each finished row is kept at once (`llm/ask.py`), so that a killed process goes on where it was. Does not read classes
out of answers or measure them (`measure.py`), and knows no panels, runs or messages.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from understudy.errors import Invalid, Transient
from understudy.llm.answers import Completion
from understudy.llm.ask import KEY_REFUSED, Log, Tally, Tick, ask
from understudy.llm.chat import ChatClient, Refused
from understudy.records import Example, Prediction, Turn, resume_jsonl

TEMPERATURE = 0.0
"""Greedy: the most likely token each time."""
REFUSED = "refused"
"""`finish_reason` of a question that the endpoint would not take, such as one longer than the model's context."""
MOST_REFUSED = 0.1
"""Share of refused questions above which a panel says nothing about the model."""
ASK_TOKEN_IDS = {"return_token_ids": True}
SCORE_REFERENCE = {"prompt_logprobs": 0, "add_generation_prompt": False, "continue_final_message": True}
"""Render the chat up to the last letter of the reference and give the log-probability of every token of it."""
SCORE_TURN = {"prompt_logprobs": 0, "add_generation_prompt": False}
"""The same, with what ends a turn."""


@dataclass(frozen=True)
class Questions:
    """What to ask one model."""

    model: str
    examples: Sequence[Example]
    max_tokens: int
    seed: int
    references: bool
    """Also ask how likely the model finds the reference answers."""
    labels: tuple[str, ...] = ()
    """Also ask how likely it finds each of these as the whole answer."""


@dataclass(frozen=True)
class Asker:
    """Asks one endpoint: our own gateway.

    for tick in asker.ask(questions, file): ...      # may be killed and called again
    predictions = answered(file, questions.examples)
    """

    base_url: str
    """Up to and with `/v1`."""
    concurrency: int
    token: str | None = None
    """What it knows us by."""
    tries: int = 8

    def ask(self, questions: Questions, path: Path) -> Generator[Tick, None, None]:
        """Ask what `path` has no answer to yet; yields about twice a second.

        Raises `Transient` when the endpoint does not answer or does not know the model (yet), `Invalid` when it refuses
        more than a tenth of the questions.
        """
        with Log(path, resume_jsonl(path, Prediction)) as log:
            before = [log.lines[example.id] for example in questions.examples if example.id in log.lines]
            rows = _Rows(questions, refused_before=sum(line.finish_reason == REFUSED for line in before))
            yield from ask(log, questions.examples, rows.answer, rows.refused, self._connect, self.concurrency)

    def _connect(self, concurrency: int) -> ChatClient:
        return ChatClient(self.base_url, self.token, concurrency=concurrency, tries=self.tries, exact=True)


@dataclass(frozen=True)
class _Rows:
    """How one question of a panel is asked, and what becomes of a refused one."""

    questions: Questions
    refused_before: int
    """Questions that an earlier call was refused."""
    tails: dict[str, int] = field(default_factory=dict)
    """Label -> tokens that the template puts after it, once known."""

    async def answer(self, chat: ChatClient, example: Example) -> Prediction:
        """The line of one example."""
        asked = self.questions
        wants_reference = asked.references and bool(example.completion.strip())
        wants_ids = wants_reference or bool(asked.labels)
        with _model_may_come_back():
            answer = await chat.complete(
                asked.model,
                example.prompt,
                max_tokens=asked.max_tokens,
                temperature=TEMPERATURE,
                seed=asked.seed,
                extra=ASK_TOKEN_IDS if wants_ids else None,
            )
        reference = await self._reference(chat, example, answer) if wants_reference else None
        return Prediction(
            id=example.id,
            text=answer.text,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            reference_logprob=reference[0] if reference else None,
            reference_tokens=reference[1] if reference else None,
            label_logprobs=await self._labels(chat, example, answer) if asked.labels else None,
        )

    def refused(self, example: Example, error: Refused, tally: Tally) -> Prediction:
        """The line of a refused one; raises `Invalid` when there are too many."""
        refused = self.refused_before + tally.refused
        if refused > MOST_REFUSED * tally.total:
            raise Invalid(
                f"Model `{self.questions.model}` was refused {refused} of {tally.total} questions, the last with: {error}",
                "Shorten them, or serve with a longer context.",
            ) from error
        return Prediction(id=example.id, text="", finish_reason=REFUSED, prompt_tokens=0, completion_tokens=0)

    async def _reference(self, chat: ChatClient, example: Example, answer: Completion) -> tuple[float, int] | None:
        """Sum of log-probabilities and number of tokens of the reference; None when the endpoint cannot say."""
        positions = await self._positions(chat, example, example.completion, SCORE_REFERENCE)
        if positions is None:
            return None
        if not positions:
            raise Invalid(
                "The endpoint gives no log-probabilities of a prompt (`prompt_logprobs`)",
                "Take `perplexity` out of the panel, or serve with vLLM.",
            )
        return reference_logprob(positions, answer.raw.get("prompt_token_ids"), answer.prompt_tokens)

    async def _labels(self, chat: ChatClient, example: Example, answer: Completion) -> tuple[float, ...] | None:
        """For each label the sum of log-probabilities of its tokens and of the one that ends the turn, without which a label
        always beats one that it begins; None when the endpoint cannot say."""
        found: list[float] = []
        for label in self.questions.labels:
            positions = await self._positions(chat, example, label, SCORE_TURN)
            if positions and label not in self.tails:
                if not (alone := await self._positions(chat, example, label, SCORE_REFERENCE)):
                    return None
                self.tails[label] = len(positions) - len(alone)
            if not positions or self.tails[label] < 1:
                return None
            upto = len(positions) - self.tails[label] + 1
            logprob = reference_logprob(positions[:upto], answer.raw.get("prompt_token_ids"), answer.prompt_tokens)
            if logprob is None:
                return None
            found.append(logprob[0])
        return tuple(found)

    async def _positions(
        self, chat: ChatClient, example: Example, text: str, how: Mapping[str, Any]
    ) -> Sequence[Mapping[str, Mapping[str, Any]] | None] | None:
        """What the model finds of every token of the chat that ends in `text`; empty when the endpoint does not say, None when it
        refuses to."""
        turns = (*example.prompt, Turn(role="assistant", content=text))
        try:
            with _model_may_come_back():
                scored = await chat.complete(self.questions.model, turns, max_tokens=1, extra=how)
        except Refused as error:
            if error.status in KEY_REFUSED:
                raise
            return None
        positions = scored.raw.get("prompt_logprobs")
        return positions if isinstance(positions, list) else ()


def reference_logprob(
    positions: Sequence[Mapping[str, Mapping[str, Any]] | None], prompt_ids: Sequence[int] | None, prompt_tokens: int
) -> tuple[float, int] | None:
    """Sum of natural-log probabilities and number of tokens of an answer that follows its prompt in one rendering.

    `positions` has one entry per token of prompt and answer: null for the first, then {token id: {logprob}}.
    `prompt_ids` are the tokens of the prompt when it was rendered alone, `prompt_tokens` their number. The answer begins
    where the two renderings part: at the end of the prompt, or a token or two before it where the tokenizer merges
    over the seam. None when they part earlier, because the template then renders another prompt before an answer, and
    where the endpoint gives no numbers.
    """
    try:
        here = [int(next(iter(entry))) if entry else None for entry in positions]
        each = [float(next(iter(entry.values()))["logprob"]) if entry else None for entry in positions]
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration):
        return None
    start = prompt_tokens
    if prompt_ids is not None:
        pairs = zip(prompt_ids, here, strict=False)
        start = next(
            (i for i, (one, other) in enumerate(pairs) if other not in (one, None)), min(len(prompt_ids), len(here))
        )
        if start < len(prompt_ids) - 2:
            return None
    logprobs = [logprob for logprob in each[start:] if logprob is not None]
    total = sum(logprobs)
    return (round(total, 4), len(logprobs)) if logprobs and math.isfinite(total) else None


def answered(path: Path, examples: Sequence[Example]) -> list[Prediction]:
    """The predictions in `path`, in the order of `examples`, all of which have been answered."""
    known = {prediction.id: prediction for prediction in resume_jsonl(path, Prediction)}
    return [known[example.id] for example in examples]


@contextmanager
def _model_may_come_back() -> Iterator[None]:
    """404 says nothing about the question."""
    try:
        yield
    except Refused as error:
        if error.status == 404:
            raise Transient(f"{error.what}; the model may be on its way back") from error
        raise
