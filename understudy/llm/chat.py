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
import ssl
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from understudy.errors import Invalid, Transient
from understudy.llm.answers import Completion, Dialect, completion_in, error_in, parsed, retry_after, usage_in
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
        parts = _address(base_url)
        self.base_url = base_url.rstrip("/")
        self._api_key, self._tries, self._timeout, self._secure = (
            (api_key or "").strip(),
            tries,
            timeout,
            parts.scheme == "https",
        )
        self._proxy = None if proxy_bypass(parts.hostname or "") else _proxy(parts.scheme)
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
                document = parsed(body)
                error = error_in(document, body)
                problem = error["message"] or f"status {status}"
                if status == 429 and error.get("code") != "insufficient_quota":
                    wait = max(limits.refused(sent, headers, problem), retry_after(headers) or 0.0) or wait
                    limits.pause(min(wait, LONGEST_WAIT))
                else:
                    limits.answered(sent, headers)
                    if status == 200:
                        answer = completion_in(document)
                        if isinstance(answer, Completion):
                            return answer
                        nonsense += 1
                        problem = f"{answer}: {error['message']}".removesuffix(": ")
                        usage = usage_in(document)
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
        said = f"The endpoint {self.base_url} {what} a request for model `{model}`: {problem}"
        return said.replace(self._api_key, "(the key)") if self._api_key else said  # some endpoints repeat it

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


def _address(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        more = parts.query or parts.fragment or "@" in base_url
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not more:
            parts.hostname.encode("idna")
            return parts
    except ValueError:  # of a port that is no number, of a name that no resolver takes
        pass
    what = "The endpoint's address" if "@" in base_url else f"`{base_url}`"  # what is before an @ may be a secret
    raise Invalid(
        f"{what} is not of the form http[s]://host[:port]/path", "Give one such as `https://api.openai.com/v1`."
    )


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
