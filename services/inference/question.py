"""What the gateway looks at in a completion request: the model, and what costs more than anybody may ask for.

Everything else is skipped without building it, whatever its size. Bytes go on as they came; only a stream of somebody with a
key is asked for its usage too.
"""

from __future__ import annotations

from typing import Any

import msgspec

from understudy.errors import Invalid

MOST_CHOICES = 16
"""`n`, `best_of`: answers to one question, each as dear as the first."""
MOST_LOGPROBS = 20
"""Alternatives of each token."""
MOST_STOPS = 64
LONGEST_GRAMMAR = 64 * 1024
"""Bytes of a schema or a grammar that the answer must obey; it is compiled for every new one,"""
LONGEST_REGEX = 4 * 1024
"""and of a regular expression, or of what a template is given."""
LONGEST_TOOLS = 256 * 1024
"""Of the tools that an answer may call, whose schemas are grammars too."""
FORBIDDEN = (
    "prompt_embeds",
    "logits_processors",
    "kv_transfer_params",
    "ec_transfer_params",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "vllm_xargs",
    "chat_template",
)
"""What reaches into the engine: tensors, code, memory of other engines, templates."""
NO_MODEL = "You must provide a `model`, as text. GET /v1/models lists them."
Absent = msgspec.UnsetType | None


class Question(msgspec.Struct):
    """A completion request, as far as it matters here."""

    model: str
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    n: int | None = None
    best_of: int | None = None
    beam_width: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    stop: str | list[str] | None = None
    structured_outputs: msgspec.Raw | Absent = msgspec.UNSET
    response_format: msgspec.Raw | Absent = msgspec.UNSET
    guided_json: msgspec.Raw | Absent = msgspec.UNSET
    guided_grammar: msgspec.Raw | Absent = msgspec.UNSET
    guided_choice: msgspec.Raw | Absent = msgspec.UNSET
    guided_regex: msgspec.Raw | Absent = msgspec.UNSET
    prompt_embeds: msgspec.Raw | Absent = msgspec.UNSET
    logits_processors: msgspec.Raw | Absent = msgspec.UNSET
    ec_transfer_params: msgspec.Raw | Absent = msgspec.UNSET
    media_io_kwargs: msgspec.Raw | Absent = msgspec.UNSET
    vllm_xargs: msgspec.Raw | Absent = msgspec.UNSET
    tools: msgspec.Raw | Absent = msgspec.UNSET
    chat_template_kwargs: msgspec.Raw | Absent = msgspec.UNSET
    kv_transfer_params: msgspec.Raw | Absent = msgspec.UNSET
    mm_processor_kwargs: msgspec.Raw | Absent = msgspec.UNSET
    chat_template: msgspec.Raw | Absent = msgspec.UNSET

    @property
    def wants_usage(self) -> bool:
        """Whether its own stream shall tell the usage."""
        return bool((self.stream_options or {}).get("include_usage"))


class _Constraint(msgspec.Struct):
    regex: str | None = None


_QUESTION, _CONSTRAINT = msgspec.json.Decoder(Question), msgspec.json.Decoder(_Constraint)


class Wrong(Invalid):
    """The request cannot be passed on; `param` is the field."""

    def __init__(self, what: str, param: str | None = None) -> None:
        super().__init__(what)
        self.param = param


def question(body: bytes) -> Question:
    """Raises `Wrong` for what is no completion request."""
    try:
        found = _QUESTION.decode(body)
    except msgspec.ValidationError as error:
        text, _, place = str(error).partition(" - at `$")
        field = place.strip(".`").partition(".")[0].partition("[")[0] or None
        if field in (None, "model"):
            raise Wrong(NO_MODEL, "model") from None
        raise Wrong(f"{field}: {text}.", field) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Wrong(f"The request body is not valid JSON: {error}") from None
    if not found.model:
        raise Wrong(NO_MODEL, "model")
    return found


def check(asked: Question) -> None:
    """Raises `Wrong` when it asks for more than is allowed."""
    for field, most in (
        ("n", MOST_CHOICES),
        ("best_of", MOST_CHOICES),
        ("beam_width", MOST_CHOICES),
        ("logprobs", MOST_LOGPROBS),
        ("top_logprobs", MOST_LOGPROBS),
        ("prompt_logprobs", MOST_LOGPROBS),
    ):
        value = getattr(asked, field)
        if value is not None and value > most:
            raise Wrong(f"{field}: {value} is more than the {most} that are allowed.", field)
    if isinstance(asked.stop, list) and len(asked.stop) > MOST_STOPS:
        raise Wrong(f"stop: {len(asked.stop)} are more than the {MOST_STOPS} that are allowed.", "stop")
    for field in FORBIDDEN:
        if _there(getattr(asked, field)):
            raise Wrong(f"{field}: not allowed here.", field)
    for field in ("structured_outputs", "response_format", "guided_json", "guided_grammar", "guided_choice"):
        _check_length(field, getattr(asked, field), LONGEST_GRAMMAR)
    _check_length("tools", asked.tools, LONGEST_TOOLS)
    for field in ("guided_regex", "chat_template_kwargs"):
        _check_length(field, getattr(asked, field), LONGEST_REGEX)
    if _there(asked.structured_outputs):
        try:
            regex = _CONSTRAINT.decode(bytes(asked.structured_outputs)).regex  # type: ignore[arg-type]
        except msgspec.DecodeError:
            raise Wrong("structured_outputs: expected an object.", "structured_outputs") from None
        if regex and len(regex.encode()) > LONGEST_REGEX:
            raise Wrong(f"structured_outputs: its regex is longer than {LONGEST_REGEX:,} bytes.", "structured_outputs")


def asking_for_usage(body: bytes, asked: Question) -> bytes:
    """The same request, which asks for its usage at the end of the stream: the last of two equal keys counts."""
    options = msgspec.json.encode({**(asked.stream_options or {}), "include_usage": True})
    return body.rstrip()[:-1] + b',"stream_options":' + options + b"}"


def _there(value: object) -> bool:
    return value is not None and value is not msgspec.UNSET and bytes(value) != b"null"  # type: ignore[call-overload]


def _check_length(field: str, value: object, most: int) -> None:
    if _there(value) and len(bytes(value)) > most:  # type: ignore[call-overload]
        raise Wrong(f"{field}: longer than the {most:,} bytes that are allowed.", field)
