"""What requests and responses of the chat protocol mean: the answer in a response, what is wrong with it, how long to wait, and which
fields a model does not take.

Tolerant of every shape that providers are known to send; what it returns can be written as UTF-8. Does not send (`chat.py`).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

DISPENSABLE = ("temperature", "seed", "response_format")
"""What a question is still the same question without."""
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|extra (field|input)|not (permitted|allowed|available)|deprecated|instead",
    re.IGNORECASE,
)


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


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in a response, empty when there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _text(value: object) -> str:
    """What can be written as UTF-8: JSON may hold half a character."""
    return str(value).encode("utf-8", "replace").decode()


def error_in(document: Mapping[str, Any], body: bytes) -> dict[str, Any]:
    """`message`, `param` and `code` of an error in whichever of the usual shapes."""
    error = document.get("error")
    where = error if isinstance(error, dict) else document
    message = where.get("message") or where.get("detail") or (error if isinstance(error, str) else None)
    if not document and not body.startswith(b"{"):
        message = body[:200].decode("utf-8", "replace").strip()
    return {"message": _text(message or ""), "param": where.get("param"), "code": where.get("code")}


def completion_in(document: Mapping[str, Any]) -> Completion | str:
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
    prompt, completion = usage_in(document)
    return Completion(_text(text or ""), _text(choice.get("finish_reason") or "unknown"), prompt, completion, document)


def usage_in(document: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of prompt and completion, as the endpoint counted them; 0 where it did not."""
    usage = document.get("usage")
    if not isinstance(usage, dict):
        return 0, 0
    prompt, completion = (usage.get(name) for name in ("prompt_tokens", "completion_tokens"))
    return _count(prompt), _count(completion)


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1 << 40 else 0
