"""Async client of any OpenAI-compatible endpoint, for datagen, judge and evaluator: one question, one answer or one error.

What may pass (no connection, 408, 409, 429, 5xx, a 200 without an answer in it) is tried again after a backoff with jitter
or `Retry-After`, whichever is longer; a 4xx is `Refused` at once, because asking again gives the same answer, except where
it names a field of the request that this model does not take: then the field is renamed or left out, and from then on for
everybody if that was answered. Requests wait for their turn in the rate that the endpoint allows (`limits.py`). Who asks says
where and with which key: nothing is read from the environment but proxies. Does not stream, speak HTTP (`wire.py`), keep budgets,
know prompts or ask many (`ask.py`).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import lru_cache
from itertools import count
from types import TracebackType
from typing import Any, Self

from understudy.errors import Invalid, Transient
from understudy.llm.answers import Completion, completion_in, error_in, lesson, parsed, speak, usage_in
from understudy.llm.headers import retry_after
from understudy.llm.limits import Limits, Sent
from understudy.llm.wire import Lost, Unreadable, Wire
from understudy.records import Turn

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 8.0
"""Seconds before the second try and before the last ones."""
LONGEST_WAIT = 120.0
"""Seconds that an endpoint may ask us to wait; beyond that it does not answer today."""
LONGEST_TRYING = 240.0
"""Seconds after its first try in which a question is tried again."""
TRIES_WITHOUT_ANSWER = 3
"""Of a question that is answered with 200 and nonsense, when nothing was counted for it."""
NOT_WORKED_ON = (409, 429, 503)
"""Of HTTP: the request was turned away before anybody could work on it (and bill it). Other statuses from 500 on say nothing."""
MOST_BYTES, BYTES_PER_TOKEN = 1 << 20, 256
"""How long a response may be: so much, and so much for each token that it may tell of. A prompt has no more of them than bytes; vLLM's
`prompt_logprobs` take about 100 bytes for each."""
HEAD_START = 2.0
"""Seconds that the first requests have before the others."""
HELLO = (Turn(role="user", content="Hi"),)
"""What any endpoint answers to that answers at all; one token of the answer is enough."""


class Refused(Invalid):
    """The endpoint answered and will not answer this question."""

    def __init__(self, what: str, status: int, usage: tuple[int, int] = (0, 0)) -> None:
        super().__init__(what)
        self.status = status
        """Of HTTP; 200 when the answer was none, 0 when this question alone was never answered."""
        self.usage = usage
        """Prompt and completion tokens that the endpoint counted nevertheless."""


class Unanswered(Transient):
    """The endpoint did not answer after all tries."""


class Away(Unanswered):
    """It said that it will not answer anybody for longer than `LONGEST_WAIT`."""


class ChatClient:
    """`async with ChatClient(url, key) as chat: answer = await chat.complete("seedling", turns, max_tokens=64)`.

    At most `concurrency` requests are under way at once, the rest wait in order of asking. The first goes alone, and each
    answer lets one more go, so that what a model does not take or allow is refused once and not to all; after `HEAD_START`
    all may go. What is learnt of a model (names of fields, `Limits`) is known to every client in this process with the same
    endpoint and key.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None,
        *,
        concurrency: int = 16,
        tries: int = 8,
        timeout: float = 120,
        exact: bool = False,
    ) -> None:
        """`base_url` goes up to and with `/v1`; raises `Invalid` when it is no HTTP address. `timeout` is in seconds, for each try.

        `exact`: every field is sent, so that an answer is one to this request; a model that does not take one refuses.
        """
        self.base_url, self._api_key = base_url.rstrip("/"), (api_key or "").strip()
        self._wire = Wire(self.base_url, self._api_key, timeout)
        self._tries, self._exact, self._model = tries, exact, ""
        self._slots, self._closed_slots = asyncio.Semaphore(1), concurrency - 1
        self._turn = asyncio.Lock()

    async def complete(
        self,
        model: str,
        messages: Sequence[Turn],
        *,
        max_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        extra: Mapping[str, Any] | None = None,
        lost: Callable[[], Awaitable[None]] | None = None,
        tries: int | None = None,
    ) -> Completion:
        """One chat completion; `extra` is merged into the request body.

        `lost` is awaited after each try without an answer that the endpoint may have worked on and billed; it may raise to end it.
        Raises `Refused` when the endpoint refuses the request, `Unanswered` when it did not answer after all tries, `Away` when
        it answers nobody.
        """
        request: dict[str, Any] = {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            request["seed"] = seed
        self._model = model
        async with self._slots:
            try:
                return await self._until_answered(request | dict(extra or {}), lost or _nothing, tries or self._tries)
            finally:
                self._open(1)

    async def lives(self) -> bool:
        """Whether the endpoint answers a question that is like no other, by the model asked last; raises `Away`."""
        try:
            await self.complete(self._model, HELLO, max_tokens=1, tries=1)
        except Refused as error:
            return error.status in (200, 400, 422)  # this question has been looked at
        except Away:
            raise
        except Unanswered:
            return False
        return True

    def _open(self, slots: int) -> None:
        for _ in range(min(slots, self._closed_slots)):
            self._closed_slots -= 1
            self._slots.release()

    async def _until_answered(
        self, request: Mapping[str, Any], lost: Callable[[], Awaitable[None]], tries: int
    ) -> Completion:
        model, max_tokens = str(request["model"]), int(request["max_tokens"])
        known, limits = _known(self.base_url, self._api_key, model)
        names = {name: other for name, other in known.items() if other or not self._exact}
        clock, began, nonsense = asyncio.get_running_loop().time, 0.0, 0
        for attempt in count(1):
            spoken = speak(request, names)
            content = json.dumps(spoken).encode()
            sent = await self._wait_for_turn(limits, len(content) // 4 + max_tokens)
            began, wait, refusal, away = began or clock(), backoff(attempt), None, False
            try:
                most = MOST_BYTES + BYTES_PER_TOKEN * (len(content) + max_tokens)
                response = await self._wire.post("/chat/completions", content, most)
            except Lost as miss:
                problem, worked_on = str(miss), miss.sent
            except Unreadable as what:
                problem, worked_on = str(what), True
                refusal = Refused(self._says("gave no answer to", model, problem), 200)
            else:
                status, document = response.status, parsed(response.body)
                error, told = error_in(document, response.body), retry_after(response.headers) or 0.0
                problem = error["message"] or f"status {status}"
                worked_on = (status >= 500 or status == 408) and status not in NOT_WORKED_ON
                if status == 429 and error.get("code") != "insufficient_quota":
                    told = max(told, min(LONGEST_WAIT, limits.refused(sent, response.headers, problem)))
                    limits.pause(min(told or wait, LONGEST_WAIT))
                else:
                    limits.answered(sent, response.headers)
                    if status == 200:
                        answer = completion_in(document)
                        if isinstance(answer, Completion):
                            known.update(names)
                            return answer
                        nonsense, usage = nonsense + 1, usage_in(document)
                        problem, worked_on = f"{answer}: {error['message']}".removesuffix(": "), not any(usage)
                        if nonsense >= TRIES_WITHOUT_ANSWER or any(usage):
                            refusal = Refused(self._says("gave no answer to", model, problem), status, usage)
                    elif status in (400, 422) and (learnt := self._lesson(spoken, error)):
                        names |= learnt
                        continue
                    elif status not in (408, 409) and status < 500:
                        refusal = Refused(self._says("refused", model, problem), status)
                away = told > LONGEST_WAIT and status in (429, 503)
                wait = max(wait, min(told, LONGEST_WAIT))
            if worked_on:
                await lost()
            if refusal:
                raise refusal
            if away:
                raise Away(self._says("asks to wait too long with", model, problem))
            if attempt >= tries or clock() - began > LONGEST_TRYING:
                raise Unanswered(self._says("did not answer", model, problem))
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _lesson(self, spoken: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, str | None]:
        learnt = lesson(spoken, error)
        return {} if self._exact and None in learnt.values() else learnt

    async def _wait_for_turn(self, limits: Limits, tokens: int) -> Sent:
        async with self._turn:  # the first in the line looks at the clock, the others wait behind it
            while isinstance(sent := limits.take(tokens), float):
                await asyncio.sleep(min(max(sent, 0.001), 1.0))
            return sent

    def _says(self, what: str, model: str, problem: str) -> str:
        said = f"The endpoint {self.base_url} {what} a request for model `{model}`: {problem}"
        return said.replace(self._api_key, "(the key)") if self._api_key else said  # some endpoints repeat it

    async def __aenter__(self) -> Self:
        await self._wire.__aenter__()
        self._start = asyncio.get_running_loop().call_later(HEAD_START, self._open, self._closed_slots)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._start.cancel()
        await self._wire.__aexit__(kind, error, trace)


def backoff(attempt: int) -> float:
    """Seconds to wait after the try of this number (from 1): doubled each time, half of it by chance."""
    return min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(attempt - 1, 10)) * random.uniform(0.5, 1.0)


async def _nothing() -> None:
    pass


@lru_cache(maxsize=1024)
def _known(base_url: str, api_key: str, model: str) -> tuple[dict[str, str | None], Limits]:
    """What this process has learnt of a model at an endpoint: its names for the fields of a request (`answers.speak`), its limits."""
    return {}, Limits()
