"""The client against a real HTTP server: what it retries, what it refuses at once, what it learns, whom it tells the key, and that
it keeps to its concurrency."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from understudy.errors import Invalid, Transient
from understudy.llm.chat import Away, ChatClient, Refused, Unanswered
from understudy.records import Turn

ASK = [Turn(role="user", content="hi")]
ANSWER = {
    "id": "1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    "prompt_logprobs": [None],
}


@pytest.fixture
def seen() -> list[tuple[str, dict[str, str]]]:
    """Path and headers of each request to a `server`."""
    return []


@pytest.fixture
def server(seen: list[tuple[str, dict[str, str]]]) -> Iterator[Callable[..., str]]:
    """`server(respond)` starts a server; `respond(body)` gives (status, headers, answer). Returns the base URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(respond: Callable[[dict[str, Any]], tuple[int, dict[str, str], Any]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                seen.append((self.path, dict(self.headers)))
                status, headers, answer = respond(body)
                content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {
                    "Content-Type": "application/json",
                    "Content-Length": str(len(content)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/v1"

    yield start
    for running in servers:
        running.shutdown()


async def test_an_answer_with_what_is_not_in_the_standard(server: Callable[..., str]) -> None:
    asked: list[dict[str, Any]] = []
    url = server(lambda body: (asked.append(body) or 200, {}, ANSWER))  # type: ignore[func-returns-value]
    async with ChatClient(url, None) as chat:
        answer = await chat.complete("m", ASK, max_tokens=5, seed=1, extra={"prompt_logprobs": 0})
    assert (answer.text, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens) == (
        "hello",
        "stop",
        3,
        1,
    )
    assert answer.raw["prompt_logprobs"] == [None]
    assert (asked[0]["prompt_logprobs"], asked[0]["seed"], asked[0]["temperature"]) == (0, 1, 0)


async def test_a_busy_server_is_asked_again(server: Callable[..., str]) -> None:
    calls: list[int] = []

    def respond(_: Any) -> tuple[int, dict[str, str], Any]:
        calls.append(1)
        return (429, {"Retry-After": "0"}, {"error": {"message": "slow down"}}) if len(calls) < 3 else (200, {}, ANSWER)

    async with ChatClient(server(respond), None) as chat:
        assert (await chat.complete("m", ASK, max_tokens=5)).text == "hello"
    assert len(calls) == 3


async def test_a_refusal_is_invalid_at_once_and_says_why(server: Callable[..., str]) -> None:
    calls: list[int] = []
    url = server(lambda _: (calls.append(1) or 400, {}, {"error": {"message": "too long by 7 tokens"}}))  # type: ignore[func-returns-value]
    async with ChatClient(url, None) as chat:
        with pytest.raises(Invalid, match="too long by 7 tokens"):
            await chat.complete("m", ASK, max_tokens=5)
    assert len(calls) == 1


async def test_nobody_there_is_transient() -> None:
    async with ChatClient("http://127.0.0.1:9/v1", None, tries=1) as chat:
        with pytest.raises(Transient, match="did not answer"):
            await chat.complete("m", ASK, max_tokens=5)


async def test_no_more_than_the_allowed_requests_at_once(server: Callable[..., str]) -> None:
    now, most, guard = [0], [0], threading.Lock()

    def respond(_: Any) -> tuple[int, dict[str, str], Any]:
        with guard:
            now[0] += 1
            most[0] = max(most[0], now[0])
        threading.Event().wait(0.02)
        with guard:
            now[0] -= 1
        return 200, {}, ANSWER

    async with ChatClient(server(respond), None, concurrency=4) as chat:
        await asyncio.gather(*(chat.complete("m", ASK, max_tokens=5) for _ in range(30)))
    assert most[0] == 4


PAID = {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}


@pytest.mark.parametrize(
    ("nonsense", "says"),
    [
        ({"error": {"message": "upstream is down", "code": 502}}, "upstream is down"),
        ({"error": "upstream is down"}, "upstream is down"),
        (b"<html>Sign in</html>", "<html>Sign in</html>"),
        (b"", "no JSON object"),
        (b"[]", "no JSON object"),
        ({**ANSWER, "usage": None, "choices": []}, "no `choices"),
        ({**ANSWER, "usage": None, "choices": [{"index": 0, "message": None}]}, "no `choices"),
        ({**ANSWER, "usage": None, "choices": [{"message": {"content": [1]}}]}, "is no text"),
    ],
)
async def test_a_200_without_an_answer_is_asked_again_and_then_refused(
    server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, nonsense: Any, says: str
) -> None:
    monkeypatch.setattr("understudy.llm.chat.FIRST_BACKOFF", 0.001)
    calls: list[int] = []

    def respond(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        calls.append(1)
        return 200, {}, nonsense if body["model"] == "bad" or len(calls) == 1 else ANSWER

    async with ChatClient(server(respond), None) as chat:
        assert (await chat.complete("good", ASK, max_tokens=5)).text == "hello"
        assert len(calls) == 2
        with pytest.raises(Refused, match="gave no answer") as refused:
            await chat.complete("bad", ASK, max_tokens=5)
    assert says in str(refused.value)
    assert len(calls) == 5


async def test_what_was_counted_is_not_asked_for_again(server: Callable[..., str]) -> None:
    calls: list[int] = []
    url = server(lambda _: (calls.append(1) or 200, {}, PAID | {"choices": []}))  # type: ignore[func-returns-value]
    async with ChatClient(url, None) as chat:
        with pytest.raises(Refused) as refused:
            await chat.complete("m", ASK, max_tokens=5)
    assert (len(calls), refused.value.usage) == (1, (3, 1))


async def test_half_a_character_and_impossible_counts_do_no_harm(server: Callable[..., str]) -> None:
    choice = b'{"message": {"content": "a \\ud83d b"}, "finish_reason": "stop"}'
    usage = b'{"prompt_tokens": -5, "completion_tokens": 1e99}'
    url = server(lambda _: (200, {}, b'{"choices": [%b], "usage": %b}' % (choice, usage)))
    async with ChatClient(url, None) as chat:
        answer = await chat.complete("m", ASK, max_tokens=5)
    assert answer.text.encode() == b"a ? b"
    assert (answer.prompt_tokens, answer.completion_tokens) == (0, 0)


async def test_what_a_model_does_not_take_is_learnt_from_its_first_refusal(server: Callable[..., str]) -> None:
    """The texts are OpenAI's, of a reasoning model."""
    bodies: list[dict[str, Any]] = []

    def respond(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        bodies.append(body)
        error: dict[str, Any] = {"type": "invalid_request_error", "param": None, "code": None}
        if "max_tokens" in body:
            error |= {"param": "max_tokens", "code": "unsupported_parameter"}
            error["message"] = (
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
            )
        elif "temperature" in body:
            error |= {"param": "temperature", "code": "unsupported_value"}
            error["message"] = "Unsupported value: 'temperature' does not support 0.7 with this model."
        elif "response_format" in body:
            error["message"] = (
                "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model."
            )
        else:
            return 200, {}, ANSWER
        return 400, {}, {"error": error}

    url = server(respond)
    async with ChatClient(url, None) as chat:
        extra = {"response_format": {"type": "json_schema"}}
        many = (chat.complete("o1", ASK, max_tokens=5, temperature=0.7, seed=1, extra=extra) for _ in range(20))
        assert {answer.text for answer in await asyncio.gather(*many)} == {"hello"}
    assert len(bodies) == 23, "one refusal for each field, not for each request"
    assert bodies[-1].keys() == {"model", "messages", "max_completion_tokens", "seed"}
    async with ChatClient(url, None) as another:
        await another.complete("o1", ASK, max_tokens=5, temperature=0.7)
        assert len(bodies) == 24, "nor for each client"
        await another.complete("m2", ASK, max_tokens=5)
    assert "max_tokens" in bodies[24], "another model is asked as usual"


@pytest.mark.parametrize(
    "message",
    [
        "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 512 tokens.",
        "temperature must be at most 2",
    ],
)
async def test_a_refused_value_is_no_refused_field(server: Callable[..., str], message: str) -> None:
    calls: list[int] = []
    url = server(lambda _: (calls.append(1) or 400, {}, {"error": {"message": message}}))  # type: ignore[func-returns-value]
    async with ChatClient(url, None) as chat:
        with pytest.raises(Refused):
            await chat.complete("m", ASK, max_tokens=5, temperature=3)
    assert len(calls) == 1


async def test_the_key_goes_where_it_is_told_and_is_never_picked_up(
    server: Callable[..., str], seen: list[tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    other = server(lambda _: (200, {}, ANSWER))
    url = server(lambda body: (200, {}, ANSWER) if body["model"] == "m" else (307, {"Location": other}, {}))
    async with ChatClient(url, None) as chat:
        await chat.complete("m", ASK, max_tokens=5)
    assert not any("authorization" in name.lower() for name in seen[0][1])
    async with ChatClient(url, "sk-given\n") as chat:
        await chat.complete("m", ASK, max_tokens=5)
        with pytest.raises(Refused, match="307"):
            await chat.complete("elsewhere", ASK, max_tokens=5)
    assert seen[1][1]["Authorization"] == "Bearer sk-given"
    assert len(seen) == 3, "a redirect is not followed"


async def test_a_key_that_the_endpoint_repeats_is_not_said(server: Callable[..., str]) -> None:
    url = server(lambda _: (401, {}, {"error": {"message": "Incorrect API key provided: sk-given"}}))
    async with ChatClient(url, "sk-given") as chat:
        with pytest.raises(Refused, match=r"Incorrect API key provided: \(the key\)"):
            await chat.complete("m", ASK, max_tokens=5)


async def test_the_environments_proxy_is_used_but_where_it_says_no(
    server: Callable[..., str], seen: list[tuple[str, dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = server(lambda _: (200, {}, ANSWER))
    monkeypatch.setenv("http_proxy", proxy.removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    async with ChatClient("http://model.example/v1", None) as chat:
        assert (await chat.complete("m", ASK, max_tokens=5)).text == "hello"
    assert seen.pop()[0] == "http://model.example/v1/chat/completions"
    async with ChatClient(proxy, None) as chat:
        await chat.complete("m", ASK, max_tokens=5)
    assert seen.pop()[0] == "/v1/chat/completions"


async def test_tls_is_checked_against_the_certificates_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *name]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        content = json.dumps(ANSWER).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(content), content))
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    url = f"https://localhost:{listening.sockets[0].getsockname()[1]}/v1"
    async with ChatClient(url, None, tries=1) as chat:
        with pytest.raises(Unanswered, match="CERTIFICATE_VERIFY_FAILED"):
            await chat.complete("m", ASK, max_tokens=5)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with ChatClient(url, None, tries=1) as chat:
        assert (await chat.complete("m", ASK, max_tokens=5)).text == "hello"
    listening.close()


async def test_an_endpoint_that_asks_to_wait_is_left_alone_by_all(server: Callable[..., str]) -> None:
    times: list[float] = []

    def respond(_: Any) -> tuple[int, dict[str, str], Any]:
        times.append(time.monotonic())
        return (429, {"retry-after-ms": "400"}, {}) if len(times) == 1 else (200, {}, ANSWER)

    async with ChatClient(server(respond), None, concurrency=4) as chat:
        await asyncio.gather(*(chat.complete("m", ASK, max_tokens=5) for _ in range(8)))
    assert len(times) == 9
    assert times[1] - times[0] >= 0.4


async def test_a_quota_that_is_used_up_and_a_day_to_wait_are_not_waited_for(server: Callable[..., str]) -> None:
    quota = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    url = server(lambda body: (429, {}, quota) if body["model"] == "poor" else (429, {"Retry-After": "86400"}, {}))
    async with ChatClient(url, None) as chat:
        with pytest.raises(Refused, match="current quota"):
            await chat.complete("poor", ASK, max_tokens=5)
        with pytest.raises(Unanswered, match="status 429"):
            await chat.complete("m", ASK, max_tokens=5)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/v1",
        "model.example/v1",
        "http:///v1",
        "http://x:port/v1",
        "http://x/v1?a=b",
        "http://a..b/v1",
        "https://me:secret@model.example/v1",
    ],
)
def test_what_is_no_address_is_said_at_once_without_its_secret(url: str) -> None:
    with pytest.raises(Invalid, match="not of the form http") as said:
        ChatClient(url, None)
    assert "secret" not in str(said.value)


@pytest.mark.parametrize("status", [200, 500])
async def test_a_response_is_read_up_to_a_limit_and_not_unpacked(
    server: Callable[..., str], seen: list[tuple[str, dict[str, str]]], status: int
) -> None:
    """A few hundred kilobytes may unpack to more than there is memory."""
    bombs = {"packed": gzip.compress(b'{"x":"' + b"a" * (64 << 20)), "long": b'{"x":"' + b"a" * (3 << 20)}

    def respond(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        name = body["model"]
        return status, {"Content-Encoding": "gzip"} if name == "packed" else {}, bombs[name]

    url, says = server(respond), {"packed": "is compressed (gzip)", "long": "is longer than 1,0"}
    async with ChatClient(url, None, tries=1) as chat:
        for name, text in says.items():
            with pytest.raises((Refused, Unanswered)) as error:
                await chat.complete(name, ASK, max_tokens=5)
            assert isinstance(error.value, Refused) == (status == 200)
            assert (text if status == 200 else "did not answer") in str(error.value)
            assert len(str(error.value)) < 1500
    assert seen[0][1]["Accept-Encoding"] == "identity"


async def test_a_long_prompts_logprobs_are_within_the_limit(server: Callable[..., str]) -> None:
    """A token for each byte of the prompt, with entries as vLLM writes them."""
    text = "a" * 100_000
    entry = {"12345": {"logprob": -12.345678901234567, "rank": 123456, "decoded_token": "\u00e4\u00f6\u00fc"}}
    url = server(lambda _: (200, {}, ANSWER | {"prompt_logprobs": [None, *[entry] * len(text)]}))
    async with ChatClient(url, None) as chat:
        answer = await chat.complete("m", [Turn(role="user", content=text)], max_tokens=1)
    assert len(answer.raw["prompt_logprobs"]) == len(text) + 1


QUOTES = "Input content unsupported. Your input: 'what temperature do seed cakes take'"


@pytest.mark.parametrize("asked", ["what temperature do seed cakes take", "another text"])
async def test_a_message_that_quotes_a_row_teaches_nothing(server: Callable[..., str], asked: str) -> None:
    bodies: list[dict[str, Any]] = []

    def respond(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        bodies.append(body)
        bad = body["messages"][0]["content"] == asked
        return (400, {}, {"error": {"message": QUOTES}}) if bad else (200, {}, ANSWER)

    async with ChatClient(server(respond), None) as chat:
        with pytest.raises(Refused, match="content unsupported"):
            await chat.complete("m", [Turn(role="user", content=asked)], max_tokens=5, seed=1)
        await chat.complete("m", ASK, max_tokens=5, seed=1)
    assert bodies[-1].keys() >= {"temperature", "seed"}, "what is left out and refused nevertheless was not the reason"
    if "temperature" in asked:
        assert len(bodies) == 2


async def test_who_wants_an_exact_request_answered_gets_no_answer_to_another(server: Callable[..., str]) -> None:
    error = {"message": "not with this model", "param": "temperature", "code": "unsupported_value"}
    url = server(lambda body: (400, {}, {"error": error}) if "temperature" in body else (200, {}, ANSWER))
    async with ChatClient(url, None) as chat, ChatClient(url, None, exact=True) as exact:
        for _ in range(2):
            with pytest.raises(Refused, match="not with this model"):
                await exact.complete("m", ASK, max_tokens=5)
            await chat.complete("m", ASK, max_tokens=5)


async def test_a_silly_header_harms_nobody(server: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("understudy.llm.chat.FIRST_BACKOFF", 0.001)
    rates = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "98"}
    answers: list[tuple[int, dict[str, str], Any]] = [
        (200, rates | {"x-ratelimit-reset-requests": "9" * 400}, ANSWER),
        (503, {"Retry-After": "Mon, 01 Jan 99999999999 00:00:00 GMT"}, {}),
        (200, {"x-ratelimit-limit-requests": "1e-323", "x-ratelimit-remaining-requests": "0"}, ANSWER),
    ]
    url = server(lambda _: answers.pop(0) if answers else (200, rates, ANSWER))
    for _ in range(2):
        async with ChatClient(url, None) as chat:
            assert (await chat.complete("m", ASK, max_tokens=5)).text == "hello"
    assert not answers


@pytest.mark.parametrize("after", ["0", "Mon, 01 Jan 2024 00:00:00 GMT"])
async def test_no_wait_is_shorter_than_our_own(
    server: Callable[..., str], monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    monkeypatch.setattr("understudy.llm.chat.FIRST_BACKOFF", 0.1)
    times: list[float] = []
    url = server(lambda _: (times.append(time.monotonic()) or 503, {"Retry-After": after}, {}))  # type: ignore[func-returns-value]
    async with ChatClient(url, None, tries=4) as chat:
        with pytest.raises(Unanswered):
            await chat.complete("m", ASK, max_tokens=5)
    assert times[-1] - times[0] >= 0.05 + 0.1 + 0.2


async def test_a_spent_quota_is_asked_once(server: Callable[..., str]) -> None:
    calls: list[int] = []
    url = server(lambda _: (calls.append(1) or 429, {"Retry-After": "3600"}, {}))  # type: ignore[func-returns-value]
    async with ChatClient(url, None, concurrency=512) as chat:
        with pytest.raises(Away):
            await asyncio.gather(*(chat.complete("m", ASK, max_tokens=5) for _ in range(512)))
    assert len(calls) == 1


async def test_what_may_have_been_worked_on_is_told_before_it_is_tried_again(
    server: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("understudy.llm.chat.FIRST_BACKOFF", 0.001)
    log: list[object] = []

    def respond(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        log.append(status := statuses.pop(0))
        if status == 0:
            time.sleep(0.4)
        return status or 200, {}, ANSWER if status == 200 else {}

    async def lost() -> None:
        log.append("lost")

    statuses = [429, 500, 503, 0, 504, 409, 200]
    async with ChatClient(server(respond), None, timeout=0.3) as chat:
        await chat.complete("m", ASK, max_tokens=5, lost=lost)
    assert log == [429, 500, "lost", 503, 0, "lost", 504, "lost", 409, 200]
    async with ChatClient("http://127.0.0.1:9/v1", None, tries=2) as chat:
        with pytest.raises(Unanswered):
            await chat.complete("m", ASK, max_tokens=5, lost=lost)
    assert log[-1] == 200, "nobody was there to work on it"


async def test_who_answers_another_question_lives(server: Callable[..., str]) -> None:
    def respond(body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        hello = body["messages"] == [{"role": "user", "content": "Hi"}]
        return int(body["model"]) if hello else 500, {}, ANSWER

    async with ChatClient(server(respond), None, tries=1) as chat:
        for status, lives in ((200, True), (400, True), (500, False), (429, False), (401, False), (404, False)):
            with pytest.raises(Unanswered):
                await chat.complete(str(status), ASK, max_tokens=5)
            assert await chat.lives() == lives
