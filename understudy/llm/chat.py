"""Async client of any OpenAI-compatible endpoint, for datagen, judge and evaluator: one question, one answer or one error.

What may pass (no connection, 408, 409, 429, 5xx, a 200 without an answer in it) is tried again after a backoff with jitter
or `Retry-After`; a 4xx is `Refused` at once, because asking again gives the same answer, except where it names a field of
the request that this model does not take: the field is renamed or left out from then on (`Dialect`). Requests wait
for their turn in the rate that the endpoint allows (`limits.py`). Who asks says where and with which key: nothing is
read from the environment but proxies. Does not stream, follow redirects, keep budgets, know prompts or ask many (`ask.py`).

Sends with aiohttp: the SDK's path costs 1.4 ms of CPU per request on the machine where aiohttp's costs 0.1 ms, and
its retries hide the 429s that teach the limits (docs/adr/0007; `bench/ask.py` measures both).
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from understudy.errors import Invalid, Transient
from understudy.llm.limits import Limits, Sent
from understudy.records import Turn

if TYPE_CHECKING:
    import aiohttp

FIRST_BACKOFF, LAST_BACKOFF = 0.5, 8.0
"""Seconds before the second try and before the last ones."""
LONGEST_WAIT = 120.0
"""Seconds that an endpoint may ask us to wait; beyond that it does not answer today."""
TRIES_WITHOUT_ANSWER = 3
"""Of a question that is answered with 200 and nonsense, when nothing was counted for it."""
CONNECT_SECONDS = 10.0
HEAD_START = 2.0
"""Seconds that the first requests have before the others."""
DISPENSABLE = ("temperature", "seed", "response_format")
"""What a question is still the same question without."""
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra (field|input)|not (permitted|allowed|available)|deprecated|instead",
    re.IGNORECASE,
)


class Refused(Invalid):
    """The endpoint answered and will not answer this question."""

    def __init__(self, what: str, status: int, usage: tuple[int, int] = (0, 0)) -> None:
        super().__init__(what)
        self.status = status
        """Of HTTP; 200 when the answer was none."""
        self.usage = usage
        """Prompt and completion tokens that the endpoint counted nevertheless."""


class Unanswered(Transient):
    """The endpoint did not answer after all tries."""


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    raw: Mapping[str, Any]
    """The whole response body, for what is not in the standard (e.g. vLLM's `prompt_logprobs`)."""


@dataclass
class Dialect:
    """Which names a model has for the fields of a request, learnt from its refusals."""

    names: dict[str, str | None] = field(default_factory=dict)
    """Our name -> the model's; None: it does not take this one."""

    def speak(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The request as the model takes it."""
        named = ((self.names.get(name, name), value) for name, value in request.items())
        return {name: value for name, value in named if name is not None}

    def learn(self, spoken: Mapping[str, Any], error: Mapping[str, Any]) -> bool:
        """Whether a refusal of `spoken` taught something, so that it is worth asking again.

        `error` has the `message`, `param` and `code` of the response.
        """
        message = str(error["message"])
        if error.get("code") != "unsupported_parameter" and not _UNSUPPORTED.search(message):
            return False
        if "max_tokens" in spoken and "max_completion_tokens" in message:
            return self._know("max_tokens", "max_completion_tokens")
        named = error.get("param") or message
        for name in DISPENSABLE:
            if name in spoken and re.search(rf"\b{name}\b", str(named)):
                return self._know(name, None)
        return False

    def _know(self, name: str, other: str | None) -> bool:
        self.names[name] = other
        return True


class ChatClient:
    """`async with ChatClient(url, key) as chat: answer = await chat.complete("seedling", turns, max_tokens=64)`.

    At most `concurrency` requests are under way at once, the rest wait in order of asking. The first goes alone, and each
    answer lets one more go, so that what a model does not take or allow is refused once and not to all; after `HEAD_START`
    all may go. What is learnt of a model (`Dialect`, `Limits`) is known to every client in this process with the same endpoint and key.
    """

    def __init__(
        self, base_url: str, api_key: str | None, *, concurrency: int = 16, tries: int = 8, timeout: float = 120
    ) -> None:
        """`base_url` goes up to and with `/v1`; raises `Invalid` when it is no HTTP address. `timeout` is in seconds, for each try."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise Invalid(f"`{base_url}` is no address of an endpoint", "Give one such as `https://api.openai.com/v1`.")
        self.base_url = base_url.rstrip("/")
        self._api_key, self._tries, self._timeout, self._secure = (
            (api_key or "").strip(),
            tries,
            timeout,
            parts.scheme == "https",
        )
        self._proxy = None if proxy_bypass(parts.hostname) else _proxy(parts.scheme)
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
    ) -> Completion:
        """One chat completion; `extra` is merged into the request body.

        Raises `Refused` when the endpoint refuses the request, `Unanswered` when it did not answer after all tries.
        """
        request: dict[str, Any] = {
            "model": model,
            "messages": [{"role": turn.role, "content": turn.content} for turn in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            request["seed"] = seed
        async with self._slots:
            try:
                return await self._until_answered(model, request | dict(extra or {}), max_tokens)
            finally:
                self._open(1)

    def _open(self, slots: int) -> None:
        for _ in range(min(slots, self._closed_slots)):
            self._closed_slots -= 1
            self._slots.release()

    async def _until_answered(self, model: str, request: Mapping[str, Any], max_tokens: int) -> Completion:
        dialect, limits = _known(self.base_url, self._api_key, model)
        nonsense = 0
        for attempt in count(1):
            spoken = dialect.speak(request)
            content = json.dumps(spoken).encode()
            sent = await self._wait_for_turn(limits, len(content) // 4 + max_tokens)
            wait = backoff(attempt)
            try:
                status, headers, body = await self._post(content)
            except ConnectionError as lost:
                problem = str(lost)
            else:
                document = _parsed(body)
                error = _error(document, body)
                problem = error["message"] or f"status {status}"
                if status == 429 and error.get("code") != "insufficient_quota":
                    wait = max(limits.refused(sent, headers, problem), retry_after(headers) or 0.0) or wait
                    limits.pause(min(wait, LONGEST_WAIT))
                else:
                    limits.answered(sent, headers)
                    if status == 200:
                        answer = _completion(document)
                        if isinstance(answer, Completion):
                            return answer
                        nonsense += 1
                        problem = f"{answer}: {error['message']}".removesuffix(": ")
                        usage = _usage(document)
                        if nonsense >= TRIES_WITHOUT_ANSWER or any(usage):
                            raise Refused(self._says("gave no answer to", model, problem), status, usage)
                    elif status in (400, 422) and dialect.learn(spoken, error):
                        continue
                    elif status not in (408, 409) and status < 500:
                        raise Refused(self._says("refused", model, problem), status)
                    wait = retry_after(headers) or wait
            if attempt >= self._tries or wait > LONGEST_WAIT:
                raise Unanswered(self._says("did not answer", model, problem))
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _wait_for_turn(self, limits: Limits, tokens: int) -> Sent:
        async with self._turn:  # the first in the line looks at the clock, the others wait behind it
            while isinstance(sent := limits.take(tokens), float):
                await asyncio.sleep(min(sent, 1.0))
            return sent

    async def _post(self, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        import aiohttp  # takes a quarter of a second, which only those who ask should wait

        try:
            async with self._session.post(
                f"{self.base_url}/chat/completions", data=content, proxy=self._proxy, allow_redirects=False
            ) as response:
                return response.status, response.headers, await response.read()
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise ConnectionError(f"{type(error).__name__}: {error}".rstrip(": ")) from error

    def _says(self, what: str, model: str, problem: str) -> str:
        return f"The endpoint {self.base_url} {what} a request for model `{model}`: {problem}"

    async def __aenter__(self) -> Self:
        import aiohttp

        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "understudy"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        self._session: aiohttp.ClientSession = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls() if self._secure else True),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=CONNECT_SECONDS),
        )
        self._start = asyncio.get_running_loop().call_later(HEAD_START, self._open, self._closed_slots)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._start.cancel()
        await self._session.close()


def backoff(attempt: int) -> float:
    """Seconds to wait after the try of this number (from 1): doubled each time, half of it by chance."""
    return min(LAST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(attempt - 1, 10)) * random.uniform(0.5, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds by `retry-after-ms` or `Retry-After` (seconds or a date, RFC 9110 10.2.3); None when neither is there."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            return max(0.001, float(value) / unit)
        except ValueError:
            pass
        try:
            return max(0.001, float(parsedate_to_datetime(value).timestamp()) - time.time())
        except ValueError:
            pass
    return None


@lru_cache(maxsize=1024)
def _known(base_url: str, api_key: str, model: str) -> tuple[Dialect, Limits]:
    """What this process has learnt of a model at an endpoint."""
    return Dialect(), Limits()


def _proxy(scheme: str) -> str | None:
    """As the environment says (`https_proxy`, `all_proxy`, ...)."""
    proxies = getproxies()
    return proxies.get(scheme) or proxies.get("all")


def _tls() -> ssl.SSLContext:
    """The system's certificates (or SSL_CERT_FILE's), else certifi's where a small image has none."""
    paths = ssl.get_default_verify_paths()
    if paths.cafile or (paths.capath and any(Path(paths.capath).iterdir())):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a response, empty when there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(value: object) -> str:
    """What can be written as UTF-8: JSON may hold half a character."""
    return str(value).encode("utf-8", "replace").decode()


def _error(document: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """`message`, `param` and `code` of an error in whichever of the usual shapes."""
    error = document.get("error")
    where = error if isinstance(error, dict) else document
    message = where.get("message") or where.get("detail") or (error if isinstance(error, str) else None)
    if not document and not body.startswith(b"{"):
        message = body[:200].decode("utf-8", "replace").strip()
    return {"message": _text(message or ""), "param": where.get("param"), "code": where.get("code")}


def _completion(document: Mapping[str, Any]) -> Completion | str:
    """The answer in a response of status 200, or what is wrong with it."""
    if not document:
        return "the response is no JSON object"
    if document.get("error"):
        return "the response is an error"
    choices = document.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return "the response has no `choices[0].message`"
    text = message.get("content")
    if not isinstance(text, str | None):
        return "the response's message is no text"
    prompt, completion = _usage(document)
    return Completion(_text(text or ""), _text(choice.get("finish_reason") or "unknown"), prompt, completion, document)


def _usage(document: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and completion, as the endpoint counted them; 0 where it did not."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return _count(prompt), _count(completion)


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
