"""What the gateway looks at in a completion request: the model, and what costs more than anybody may ask for.

Everything else is skipped without building it, whatever its size, and bounds are looked at while it is skipped: a microsecond, but for
prompts, schemas and tools, whose texts are looked through.
Types are narrower than the engine's, which takes "5" for 5. Of two equal keys the last counts, as for the engine. Bytes go on
as they came; only a stream of somebody with a key is asked for its usage too.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated

import msgspec
from msgspec import Meta, Raw

from understudy.errors import Invalid

MOST_CHOICES = 16
"""`n`, `best_of`: answers to one question, each as dear as the first."""
MOST_ANSWERS = 256
"""Prompts in one request, times `n`."""
MOST_LOGPROBS = 20
"""Alternatives of each token."""
MOST_TOKENS = 1_000_000
MOST_STOPS = 64
MOST_PARTS = 500_000
"""Objects and lists in a body, which the engine builds all."""
LONGEST_REGEX = 4 * 1024
"""Bytes of a regular expression that the answer must obey."""
LONGEST = {
    "stop": 16 * 1024,
    "guided_regex": LONGEST_REGEX,
    "chat_template_kwargs": 4 * 1024,
    "structured_outputs": 64 * 1024,
    "response_format": 64 * 1024,
    "guided_json": 64 * 1024,
    "guided_grammar": 64 * 1024,
    "guided_choice": 64 * 1024,
    "logit_bias": 64 * 1024,
    "bad_words": 64 * 1024,
    "stop_token_ids": 64 * 1024,
    "allowed_token_ids": 64 * 1024,
    "logprob_token_ids": 64 * 1024,
    "tools": 256 * 1024,
}
"""Bytes of fields that the engine compiles, or looks through for every token. A schema, also that of a tool, becomes a grammar."""
SHORTEST = min(LONGEST.values())
NO_MODEL = "You must provide a `model`, as text. GET /v1/models lists them."
Choices = Annotated[int, Meta(ge=0, le=MOST_CHOICES)] | None
Logprobs = Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)] | None
Tokens = Annotated[int, Meta(ge=0, le=MOST_TOKENS)] | None
_ABSENT = Raw()


class StreamOptions(msgspec.Struct, omit_defaults=True):
    """What a stream shall tell beside the answer."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Question(msgspec.Struct, gc=False):
    """A completion request, as far as it matters whoever asks."""

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether its own stream shall tell the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)


class Bounded(Question, gc=False):
    """The same of anybody but our own services, with what has bounds."""

    n: Choices = None
    best_of: Choices = None
    beam_width: Choices = None
    logprobs: bool | Logprobs = None
    top_logprobs: Logprobs = None
    prompt_logprobs: Logprobs = None
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    min_tokens: Tokens = None
    prompt: Raw = _ABSENT
    stop: Raw = _ABSENT
    guided_regex: Raw = _ABSENT
    chat_template_kwargs: Raw = _ABSENT
    structured_outputs: Raw = _ABSENT
    response_format: Raw = _ABSENT
    guided_json: Raw = _ABSENT
    guided_grammar: Raw = _ABSENT
    guided_choice: Raw = _ABSENT
    logit_bias: Raw = _ABSENT
    bad_words: Raw = _ABSENT
    stop_token_ids: Raw = _ABSENT
    allowed_token_ids: Raw = _ABSENT
    logprob_token_ids: Raw = _ABSENT
    tools: Raw = _ABSENT

    # What reaches into the engine: tensors, code, memory of other engines, templates, the name of somebody's request.
    prompt_embeds: None = None
    logits_processors: None = None
    kv_transfer_params: None = None
    ec_transfer_params: None = None
    mm_processor_kwargs: None = None
    media_io_kwargs: None = None
    vllm_xargs: None = None
    chat_template: None = None
    request_id: None = None


class _Constraint(msgspec.Struct):
    regex: str | None = None
    json: Raw = _ABSENT
    structural_tag: Raw = _ABSENT


_QUESTION, _BOUNDED = msgspec.json.Decoder(Question), msgspec.json.Decoder(Bounded)
_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
WITH_PATTERNS = ("response_format", "guided_json", "tools")
"""Fields whose schemas may have patterns anywhere."""
_STOPS, _CONSTRAINT = msgspec.json.Decoder(list[Raw]), msgspec.json.Decoder(_Constraint | None)


class Wrong(Invalid):
    """The request cannot be passed on; `param` is the field."""

    def __init__(self, what: str, param: str | None = None) -> None:
        super().__init__(what)
        self.param = param


def question(body: bytes, *, bounded: bool = True) -> Question:
    """Raises `Wrong` for what is no completion request, or asks for more than is allowed where that has bounds."""
    try:
        found = (_BOUNDED if bounded else _QUESTION).decode(body)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None
    except RecursionError:
        raise Wrong("The request body has lists or objects too deep in one another.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Wrong(f"The request body is not valid JSON: {error}") from None
    if not found.model:
        raise Wrong(NO_MODEL, "model")
    if isinstance(found, Bounded):
        _check_lengths(found, body)
    return found


def asking_for_usage(body: bytes, asked: Question) -> bytes:
    """The same request, which asks for its usage at the end of the stream: the last of two equal keys counts."""
    options = asked.stream_options or StreamOptions()
    options.include_usage = True
    return body.rstrip()[:-1] + b',"stream_options":' + msgspec.json.encode(options) + b"}"


def _wrong(said: str) -> Wrong:
    """From msgspec's words, e.g. "Expected `int` <= 16 - at `$.n`"."""
    text, _, place = said.partition(" - at `$")
    field = place.strip(".`").partition(".")[0].partition("[")[0] or None
    if field in (None, "model"):
        return Wrong(NO_MODEL, "model")
    return Wrong(f"{field}: not allowed here." if text.startswith("Expected `null`") else f"{field}: {text}.", field)


def _check_lengths(asked: Bounded, body: bytes) -> None:
    size = len(body)
    if size > MOST_PARTS and body.count(b"{") + body.count(b"[") > MOST_PARTS:
        raise Wrong(f"The request body has more than the {MOST_PARTS:,} objects and lists that are allowed.")
    if size > SHORTEST:  # no field is longer than all
        for field, most in LONGEST.items():
            if len(memoryview(getattr(asked, field))) > most:
                raise Wrong(f"{field}: longer than the {most:,} bytes that are allowed.", field)
    _check_prompts(asked)
    for field in WITH_PATTERNS if size > LONGEST_REGEX else ():
        if any(len(text) > LONGEST_REGEX for text in _TEXT.findall(memoryview(getattr(asked, field)))):
            raise Wrong(
                f"{field}: a text in it is longer than {LONGEST_REGEX:,} bytes, as a pattern must not be.", field
            )
    if bytes(asked.stop)[:1] == b"[" and len(_STOPS.decode(asked.stop)) > MOST_STOPS:
        raise Wrong(f"stop: more than the {MOST_STOPS} that are allowed.", "stop")
    if size > LONGEST_REGEX and asked.structured_outputs != _ABSENT:
        try:
            constraint = _CONSTRAINT.decode(asked.structured_outputs)
        except msgspec.DecodeError:
            raise Wrong("structured_outputs: expected an object.", "structured_outputs") from None
        inside = (constraint.json, constraint.structural_tag) if constraint else ()
        if any(len(text) > LONGEST_REGEX for part in inside for text in _TEXT.findall(memoryview(part))):
            raise Wrong(
                f"structured_outputs: a text in it is longer than {LONGEST_REGEX:,} bytes.", "structured_outputs"
            )
        if constraint and constraint.regex and len(constraint.regex.encode()) > LONGEST_REGEX:
            raise Wrong(f"structured_outputs: its regex is longer than {LONGEST_REGEX:,} bytes.", "structured_outputs")


def _check_prompts(asked: Bounded) -> None:
    """Of a list of prompts, texts or tokens, how many there are; of a list of tokens it is one."""
    said = memoryview(asked.prompt)
    first = bytes(said[:64]).lstrip(b"[ \t\r\n")[:1]
    if bytes(said[:1]) != b"[" or (first != b'"' and b"[" not in bytes(said[1:64])):
        return
    most = MOST_ANSWERS // max(1, asked.n or 1)
    found = _TEXT.finditer(said) if first == b'"' else re.finditer(rb"\[", said[1:])
    if sum(1 for _ in itertools.islice(found, most + 1)) > most:
        raise Wrong(
            f"prompt: more than {MOST_ANSWERS} answers, which are prompts times `n`, are not allowed.", "prompt"
        )
