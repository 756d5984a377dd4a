"""Async client of any OpenAI-compatible endpoint, for datagen, judge and evaluator: pooling, bounded concurrency, retries.

Retries what may pass (connection lost, 408, 409, 429, 5xx) with backoff and `Retry-After`; a 4xx is `Invalid` at
once, because asking again gives the same answer. Does not stream, keep budgets (datagen does) or know prompts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import openai

from understudy.errors import Invalid, Transient
from understudy.records import Turn


@dataclass(frozen=True)
class Completion:
    """One answer."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    raw: Mapping[str, Any]
    """The whole response body, for what is not in the standard (e.g. vLLM's `prompt_logprobs`)."""


class ChatClient:
    """`async with ChatClient(base_url) as chat: answer = await chat.complete("seedling", turns, max_tokens=64)`.

    At most `concurrency` requests are under way at once; the rest wait in order of asking.
    """

    def __init__(
        self,
        base_url: str | None,
        *,
        api_key: str | None = None,
        concurrency: int = 16,
        tries: int = 8,
        timeout: float = 120,
    ) -> None:
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key
            or os.environ.get("OPENAI_API_KEY")
            or "none",  # a local endpoint wants no key, the SDK wants one
            max_retries=tries - 1,
            timeout=timeout,
        )
        self._slots = asyncio.Semaphore(concurrency)

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

        Raises `Invalid` when the endpoint refuses the request, `Transient` when it did not answer after all tries.
        """
        request: dict[str, Any] = {
            "model": model,
            "messages": [turn.model_dump() for turn in messages],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if seed is not None:
            request["seed"] = seed
        async with self._slots:
            try:
                raw = await self._client.chat.completions.with_raw_response.create(
                    **request, extra_body=dict(extra or {})
                )
            except (openai.APIConnectionError, openai.RateLimitError, openai.InternalServerError) as error:
                raise Transient(
                    f"The endpoint {self._client.base_url} did not answer for model `{model}`: {error}"
                ) from error
            except openai.APIStatusError as error:
                raise Invalid(
                    f"The endpoint {self._client.base_url} refused a request for model `{model}`: {error.message}"
                ) from error
        body = raw.http_response.json()
        choice, usage = body["choices"][0], body.get("usage") or {}
        return Completion(
            text=choice["message"].get("content") or "",
            finish_reason=choice.get("finish_reason") or "unknown",
            prompt_tokens=usage.get("prompt_tokens", 0),
            completion_tokens=usage.get("completion_tokens", 0),
            raw=body,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()
