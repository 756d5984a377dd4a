"""The gateway over real sockets: a client, the gateway under uvicorn, and servers behind it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from prometheus_client import REGISTRY

from services.inference.admission import Admission
from services.inference.bootstrap import build
from services.inference.gateway import Gateway
from services.inference.sessions import Sessions
from services.inference.settings import InferenceSettings
from services.inference.usage import Usage
from understudy.belt.apikeys import mint
from understudy.belt.bus import Record
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.contracts import ServingRequested
from understudy.belt.folds.keys import Keys
from understudy.errors import NotFound
from understudy.service.doors import hot, passed_on
from understudy.service.host import kernel
from understudy.service.ports import free_ports
from understudy.service.web import add_errors, add_health

App = Callable[[Any, Any, Any], Awaitable[None]]
CHAT = "/v1/chat/completions"
TOKEN = "the-token-of-this-installation"
KEY, MADE = mint("anna", ("admin",), at_once=1)
WITH_KEY = {"authorization": f"Bearer {KEY}"}


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[str]:
    """Run an ASGI app; its URL."""
    (port,) = free_ports(1)
    config = uvicorn.Config(app, port=port, log_level="critical", lifespan="off", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await task


@asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that may misbehave on the wire; its URL."""
    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()


class Routes(dict[str, str | None]):
    """Model -> URL; None: known, but not ready."""

    reason: str | None = None

    def route(self, model: str) -> str | None:
        return self.get(model)

    def want(self, model: str) -> str | None:
        if model not in self:
            raise NotFound(f"The model `{model}` does not exist. Models here: {', '.join(self)}")
        return self.reason


async def own(scope: Any, receive: Any, send: Any) -> None:
    """The service's own API behind the gateway."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"own"})


@asynccontextmanager
async def gateway(
    routes: Routes, hold: float = 5, usage: Usage | None = None, **families: str
) -> AsyncIterator[httpx.AsyncClient]:
    prefixes = {f"/v1/{name}": (name, url) for name, url in families.items()}
    keys = Keys()
    keys.read(MADE, Record("keys", 0, 0, 0.0, b""))
    admission = Admission(keys, Sessions(TOKEN, keys), TOKEN, required=False, inside=True)
    app = Gateway(own, routes, prefixes, TOKEN, admission, usage or Usage(), max_body=10_000, hold_seconds=hold)
    json_body = {"content-type": "application/json"}
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=10, trust_env=False, headers=json_body) as client,
    ):
        yield client


FORM = {"content-type": "multipart/form-data; boundary=x"}


async def read(receive: Any) -> bytes:
    body = b""
    while True:
        event = await receive()
        body += event.get("body", b"")
        if not event.get("more_body"):
            return body


def echo(name: str) -> App:
    """Answers with what it was asked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = await read(receive)
        target = scope["raw_path"] + b"?" + scope["query_string"]
        headers = {key.decode(): value.decode() for key, value in scope["headers"]}
        seen = {
            "by": name,
            "method": scope["method"],
            "target": target.decode(),
            "body": body.decode(),
            "headers": headers,
        }
        sent = [(b"content-type", b"application/json"), (b"x-engine", name.encode()), (b"connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": 201, "headers": sent})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})

    return app


async def test_each_model_goes_to_its_engine_and_bytes_pass_unchanged() -> None:
    async with (
        serving(echo("one")) as one,
        serving(echo("two")) as two,
        gateway(Routes({"a": one, "ft:b:x": two})) as client,
    ):
        for model, name in (("a", "one"), ("ft:b:x", "two")):
            body = f'{{"stream":false,  "model": "{model}", "x": 1}}'
            answer = await client.post(CHAT, content=body, headers={"authorization": "Bearer k", "cookie": "a=b"})
            assert (answer.status_code, answer.headers["x-engine"]) == (201, name)
            seen = answer.json()
            assert (seen["body"], seen["target"]) == (body, f"{CHAT}?")
            assert seen["headers"]["authorization"] == f"Bearer {TOKEN}", "who the client is goes no further"
            assert "cookie" not in seen["headers"]
            assert len(answer.headers.get_list("date")) == 1


async def test_a_stream_passes_piece_by_piece() -> None:
    let_go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await let_go.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    async with (
        serving(app) as url,
        gateway(Routes(m=url)) as client,
        client.stream("POST", CHAT, json={"model": "m", "stream": True}) as answer,
    ):
        pieces = answer.aiter_raw()
        assert await anext(pieces) == b"data: 1\n\n", "before the engine has sent the second"
        let_go.set()
        assert b"".join([piece async for piece in pieces]) == b"data: 2\n\n"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_hangs_up_ends_the_work_of_the_engine(begun: bool) -> None:
    working, ended = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        working.set()
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async with serving(app) as url, gateway(Routes(m=url)) as client:
        request = asyncio.create_task(client.post(CHAT, json={"model": "m"}))
        await asyncio.wait_for(working.wait(), 5)
        request.cancel()
        await asyncio.wait_for(ended.wait(), 5)


async def test_errors_have_openais_shape() -> None:
    async with gateway(Routes(known=None)) as client:

        async def post(**request: Any) -> tuple[int, dict[str, Any]]:
            answer = await client.post(CHAT, **request)
            return answer.status_code, answer.json()["error"]

        status, error = await post(json={"model": "nobody"})
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert "known" in error["message"]
        status, error = await post(content=b"{")
        assert (status, error["type"]) == (400, "invalid_request_error")
        for request in ({}, {"model": 7}, {"model": ""}, []):
            status, error = await post(json=request)
            assert (status, error["param"]) == (400, "model")
        status, error = await post(content=b"x" * 20_000)
        assert (status, error["code"]) == (413, "request_too_large")


async def test_a_request_waits_for_an_engine_that_is_starting() -> None:
    routes = Routes(m=None)
    async with serving(echo("late")) as url, gateway(routes) as client:
        asyncio.get_running_loop().call_later(0.3, routes.update, {"m": url})
        answer = await client.post(CHAT, json={"model": "m"})
        assert answer.json()["by"] == "late"


async def test_a_request_does_not_wait_for_ever() -> None:
    routes = Routes(m=None)
    routes.reason = "no space left"
    async with gateway(routes, hold=0.1) as client:
        answer = await client.post(CHAT, json={"model": "m"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_not_ready")
        assert int(answer.headers["retry-after"]) > 0
        assert "no space left" in answer.json()["error"]["message"]


async def test_a_request_is_sent_again_once_where_a_kept_connection_had_ended() -> None:
    connections, asked = 0, 0

    async def forgetful(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers one request for each connection; hangs up when it hears of the next."""
        nonlocal connections, asked
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        await asyncio.sleep(0.05)
        await reader.read(1)
        writer.transport.abort()

    async with listening(forgetful) as url, gateway(Routes(m=url)) as client:
        for _ in range(2):
            assert (await client.post(CHAT, json={"model": "m"})).text == "ok"
    assert (connections, asked) == (2, 2)


async def test_an_answer_that_breaks_off_is_neither_repeated_nor_completed() -> None:
    asked = 0

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await writer.drain()
        writer.close()

    async with listening(dying) as url, gateway(Routes(m=url)) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post(CHAT, json={"model": "m"})
        assert asked == 1


async def test_a_request_that_ends_its_engine_meets_no_other() -> None:
    asked = 0

    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    async with listening(dying) as url, gateway(Routes(m=url)) as client:
        assert (await client.post(CHAT, json={"model": "m"})).status_code == 503
        assert asked == 1


async def test_connections_to_an_engine_are_kept() -> None:
    ports = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ports.add(scope["client"][1])
        await echo("x")(scope, receive, send)

    async with serving(app) as url, gateway(Routes(m=url)) as client:
        for _ in range(5):
            await client.post(CHAT, json={"model": "m"})
    assert len(ports) == 1


async def test_other_families_go_to_their_service_as_they_came() -> None:
    async with serving(echo("files")) as url, gateway(Routes(), files=url) as client:
        seen = (await client.get("/v1/files/a%2Fb?limit=2")).json()
        assert (seen["method"], seen["target"], seen["body"]) == ("GET", "/v1/files/a%2Fb?limit=2", "")
        assert seen["headers"]["x-understudy-token"] == TOKEN

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(100):
                yield b"x" * 1000

        chunked = (await client.post("/v1/files", content=pieces(), headers=FORM)).json()
        assert chunked["body"] == "x" * 100_000, "uploads have their own limit, at the service that takes them"
        whole = (await client.post("/v1/files", content=b"y" * 50_000, headers=FORM)).json()
        assert (whole["body"], whole["headers"]["content-length"]) == ("y" * 50_000, "50000")
        assert (await client.head("/v1/files")).status_code == 201
        assert (await client.get("/v1/filesystem")).status_code == 404
        assert (await client.get("/v1/models")).text == "own"
        assert (await client.get("/healthz")).text == "own"


async def test_the_service_as_it_is_built_passes_on_what_the_table_of_doors_says(tmp_path: Path) -> None:
    async with serving(echo("datagen")) as data, serving(echo("trainer")) as train, serving(echo("evaluator")) as score:
        settings = InferenceSettings(data=tmp_path, datagen_url=data, trainer_url=train, evaluator_url=score)
        app = FastAPI()
        add_errors(app)
        add_health(app, "inference", lambda: None)
        service = build(settings, kernel(settings, EmbeddedBus(tmp_path / "bus.sqlite")))
        app.include_router(service.router)
        (lane,) = service.lanes
        assert (lane.group, list(lane.handlers)) == ("inference", [ServingRequested])
        async with serving(service.wrap(app, True)) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            for family, station in passed_on().items():
                for path in (family, f"{family}/a%2Fb/c?limit=1"):
                    seen = (await client.get(path)).json()
                    assert (seen["by"], seen["target"].rstrip("?")) == (station, path)
            assert (await client.get("/v1/models")).json()["object"] == "list"
            assert (await client.get("/v1/engines")).json() == {"object": "list", "data": []}
            assert (await client.get("/healthz")).json()["service"] == "inference"
            assert (await client.get("/v1/nothing")).status_code == 404


async def test_a_service_that_refuses_an_upload_half_way_is_heard() -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 5\r\n\r\nlarge")
        await writer.drain()
        await reader.read()  # what still comes is thrown away
        writer.close()

    async with listening(refusing) as url, gateway(Routes(), files=url) as client:
        answer = await client.post("/v1/files", content=b"x" * 5_000_000, headers=FORM)
        assert (answer.status_code, answer.text) == (413, "large")


async def test_a_service_that_is_down_is_named() -> None:
    (port,) = free_ports(1)
    async with gateway(Routes(), evals=f"http://127.0.0.1:{port}") as client:
        answer = await client.get("/v1/evals")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "service_unavailable")
        assert "evals" in answer.json()["error"]["message"]


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"understudy_gateway_{name}", labels) or 0.0


async def test_requests_are_counted_by_family_and_class_of_code() -> None:
    def counts() -> dict[tuple[str, str], float]:
        ways = ((CHAT, "2xx"), (CHAT, "4xx"), (CHAT, "5xx"), ("/v1/files", "5xx"), ("own", "2xx"), ("own", "4xx"))
        return {(family, code): metric("requests_total", family=family, code=code) for family, code in ways}

    (nobody,) = free_ports(1)
    async with (
        serving(echo("one")) as one,
        gateway(Routes({"a": one, "b": None}), hold=0, files=f"http://127.0.0.1:{nobody}") as client,
    ):
        before, took = counts(), metric("request_seconds_count", family=CHAT)
        await client.post(CHAT, json={"model": "a"})
        await client.post(CHAT, json={"model": "nobody-has-it"})
        await client.post(CHAT, json={"model": "b"})
        await client.get("/v1/files/file-1")
        await client.get("/v1/models")
        await client.get("/one/of/very/many/paths")
        assert {way: count - before[way] for way, count in counts().items()} == dict.fromkeys(before, 1)
        assert metric("request_seconds_count", family=CHAT) - took == 3
        families = {s.labels["family"] for m in REGISTRY.collect() for s in m.samples if "family" in s.labels}
        assert families <= {*hot(), *passed_on(), "own"}, "a label per path would grow"


async def test_the_first_token_of_a_stream_is_timed_and_the_request_is_in_flight_till_its_end() -> None:
    go_on = asyncio.Event()

    async def engine(scope: Any, receive: Any, send: Any) -> None:
        await read(receive)
        kind = b"text/event-stream" if scope["path"] == CHAT else b"application/json"
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
        await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})

    def first(what: str, family: str = CHAT) -> float:
        return metric(f"first_token_seconds_{what}", family=family)

    async with serving(engine) as url, gateway(Routes({"a": url})) as client:
        count, total = first("count"), first("sum")
        async with client.stream("POST", CHAT, json={"model": "a", "stream": True}) as answer:
            await anext(answer.aiter_raw())
            assert first("count") - count == 1
            assert 0.05 <= first("sum") - total < 2
            assert metric("requests_in_flight", family=CHAT) == 1
            go_on.set()
        assert first("count") - count == 1
        await client.post("/v1/completions", json={"model": "a"})
        assert first("count", "/v1/completions") == 0
    assert metric("requests_in_flight", family=CHAT) == 0


WORDS = [b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % word for word in range(5)]
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":13,"total_tokens":18,"completion_tokens":5}}\n\n'
DONE = b"data: [DONE]\n\n"


def streaming(seen: list[bytes], for_ever: bool = False) -> App:
    """An engine that streams, in pieces which are no events, and tells the usage where it is asked to."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await read(receive))
        asked = (json.loads(seen[-1]).get("stream_options") or {}).get("include_usage")
        stream = b"".join([*WORDS, USAGE if asked else b"", DONE])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for at in range(0, len(stream), 7):
            await send({"type": "http.response.body", "body": stream[at : at + 7], "more_body": True})
            await asyncio.sleep(0)
            if for_ever and at > len(b"".join(WORDS[:3])):
                await receive()
                return
        await send({"type": "http.response.body", "body": b""})

    return app


async def test_a_stream_is_charged_to_its_key_and_looks_as_if_nobody_had_counted() -> None:
    seen: list[bytes] = []
    usage = Usage()
    plain = b'{"model": "m", "stream": true,  "stream_options": {"include_usage": false}}'
    async with serving(streaming(seen)) as url, gateway(Routes(m=url), usage=usage) as client:
        answer = await client.post(CHAT, content=plain, headers=WITH_KEY)
        assert answer.content == b"".join([*WORDS, DONE])
        answer = await client.post(CHAT, content=plain.replace(b"false", b"true"), headers=WITH_KEY)
        assert answer.content == b"".join([*WORDS, USAGE, DONE])
        assert seen[1] == plain.replace(b"false", b"true")
        assert [(u.name, u.model, u.requests, u.prompt_tokens, u.completion_tokens) for u in usage.all()] == [
            ("anna", "m", 2, 26, 10)
        ]
        for nobody in ({}, {"authorization": "Bearer EMPTY"}):
            assert (await client.post(CHAT, content=plain, headers=nobody)).content == b"".join([*WORDS, DONE])
            assert seen[-1] == plain, "byte for byte"
        assert [u.requests for u in usage.all()] == [2]


async def test_who_hangs_up_is_charged_what_came_and_may_ask_again() -> None:
    seen: list[bytes] = []
    usage = Usage()
    request = {"json": {"model": "m", "stream": True}, "headers": WITH_KEY}
    async with serving(streaming(seen, for_ever=True)) as url, gateway(Routes(m=url), usage=usage) as client:
        for times in (1, 2):
            async with client.stream("POST", CHAT, **request) as answer:  # type: ignore[arg-type]
                pieces = answer.aiter_raw()
                came = b""
                while came.count(b"data: ") < 3:
                    came += await anext(pieces)
                assert (await client.post(CHAT, **request)).status_code == 429, "one at a time"  # type: ignore[arg-type]
            while not (used := list(usage.all())) or used[0].requests < times:
                await asyncio.sleep(0.01)
            assert (used[0].prompt_tokens, used[0].completion_tokens) == (0, 3 * times)


async def test_errors_of_an_engine_have_openais_shape() -> None:
    said = {"error": {"message": "too long", "type": "BadRequestError", "param": "messages", "code": 400}}

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads(await read(receive))
        body = json.dumps(said if asked["status"] != 500 else {"detail": "odd"}).encode()
        if asked["status"] == 200:
            body = WORDS[0] + b"data: " + body + b"\n\n" + DONE
        await send({"type": "http.response.start", "status": asked["status"], "headers": []})
        for at in range(0, len(body), 9):
            await send({"type": "http.response.body", "body": body[at : at + 9], "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serving(failing) as url, gateway(Routes(m=url)) as client:
        answer = await client.post(CHAT, json={"model": "m", "status": 400})
        assert (answer.status_code, answer.json()["error"]) == (
            400,
            {"message": "too long", "type": "invalid_request_error", "param": "messages", "code": None},
        )
        answer = await client.post(CHAT, json={"model": "m", "status": 500})
        assert (answer.status_code, answer.json()["error"]["message"]) == (500, "odd")
        answer = await client.post(CHAT, json={"model": "m", "status": 401})
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_refuses"), (
            "it is we who are refused"
        )
        for shown in ({}, WITH_KEY):
            answer = await client.post(CHAT, json={"model": "m", "status": 200, "stream": True}, headers=shown)
            first, error, done = answer.content.split(b"\n\n", 2)
            assert (first + b"\n\n", done) == (WORDS[0], DONE)
            assert json.loads(error.removeprefix(b"data: "))["error"]["code"] is None


async def test_an_engine_that_dies_in_the_middle_of_an_error_leaves_an_error() -> None:
    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 500 Oh\r\ncontent-length: 1000\r\n\r\n{"error"')
        await writer.drain()
        writer.close()

    async with listening(dying) as url, gateway(Routes(m=url)) as client:
        answer = await client.post(CHAT, json={"model": "m"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")


async def test_what_a_client_says_about_itself_goes_no_further() -> None:
    claims = {
        **WITH_KEY,
        "cookie": "a=b",
        "x-understudy-owner": "otto",
        "x-understudy-token": "guessed",
        "x-understudy-anything": "x",
        "x-forwarded-for": "10.0.0.1",
        "forwarded": "for=10.0.0.1",
        "proxy-authorization": "Basic x",
        "x-request-id": "of-somebody-else",
        "connection": "keep-alive, x-secret",
        "x-secret": "x",
    }
    async with serving(echo("x")) as url, gateway(Routes(m=url), runs=url) as client:
        engine = (await client.post(CHAT, json={"model": "m"}, headers=claims)).json()["headers"]
        service = (await client.get("/v1/runs", headers={**claims, "x-harmless": "y"})).json()["headers"]
    passed = {name for name in (*engine, *service) if name.startswith("x-") or name in claims}
    assert passed == {
        "authorization",
        "connection",
        "x-understudy-token",
        "x-understudy-owner",
        "x-understudy-key",
        "x-harmless",
    }
    assert engine["authorization"] == f"Bearer {TOKEN}"
    assert (service["x-understudy-token"], service["x-understudy-owner"]) == (TOKEN, "anna")
    assert (service["connection"], "connection" in engine, "authorization" in service) == ("close", False, False)


async def test_a_client_that_does_not_read_slows_its_engine_and_fills_no_memory() -> None:
    sent = 0

    async def flooding(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 64000000\r\n\r\n")
        for _ in range(1000):
            writer.write(b"data: " + b"x" * 63_992 + b"\n\n")
            sent += 64_000
            await writer.drain()
        writer.close()

    async with listening(flooding) as url, gateway(Routes(m=url)) as client:
        async with client.stream("POST", CHAT, json={"model": "m", "stream": True}) as answer:
            pieces = answer.aiter_raw()
            size = len(await anext(pieces))
            await asyncio.sleep(0.5)
            assert sent < 40_000_000, "what fits into the sockets between them"
            size += sum([len(piece) async for piece in pieces])
        assert size == 64_000_000
