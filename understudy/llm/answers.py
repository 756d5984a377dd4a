"""What requests and responses of the chat protocol mean: the answer in a response, what is wrong with it, and which fields a model does
not take.

Tolerant of every shape that providers are known to send; what it returns can be written as UTF-8. Does not send (`chat.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DISPENSABLE = ("temperature", "seed", "response_format")
"""What a question is still nearly the same question without."""
MOST_SAID = 1000
"""Characters of an error that are of use to anybody."""
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


def speak(request: Mapping[str, Any], names: Mapping[str, str | None]) -> dict[str, Any]:
    """The request in a model's names for its fields; None is the name of one that it does not take."""
    named = ((names.get(name, name), value) for name, value in request.items())
    return {name: value for name, value in named if name is not None}


def lesson(spoken: Mapping[str, Any], error: Mapping[str, Any]) -> dict[str, str | None]:
    """What a refusal of `spoken` seems to teach about one field: its name, or None when the model does not take it; else nothing.

    `error` has the `message`, `param` and `code` of the response. A message may quote the request, so that a field whose
    name is a word in what was asked counts as named only by `param`. It is proved when the request without it is answered.
    """
    message, code, param = str(error["message"]), str(error.get("code")), error.get("param")
    if not code.startswith("unsupported") and not _UNSUPPORTED.search(message):
        return {}
    own = json.dumps(list(spoken.values()), ensure_ascii=False)

    def named(name: str) -> bool:
        if isinstance(param, str) and param:
            return param.rpartition(".")[2] == name
        word = re.compile(rf"\b{name}\b", re.IGNORECASE)
        return bool(word.search(message)) and not word.search(own)

    if "max_tokens" in spoken and "max_completion_tokens" in message:
        return {"max_tokens": "max_completion_tokens"} if named("max_tokens") or named("max_completion_tokens") else {}
    return next(({name: None} for name in DISPENSABLE if name in spoken and named(name)), {})


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
    return {"message": _text(message or "")[:MOST_SAID], "param": where.get("param"), "code": where.get("code")}


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
