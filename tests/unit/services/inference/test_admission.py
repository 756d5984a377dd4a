"""Who comes in, as what, and what may cost how much: by the rules alone, without sockets."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inference.admission import Admission, Caller, Refused
from services.inference.question import Wrong, asking_for_usage, question
from services.inference.sessions import COOKIE, Sessions
from services.inference.usage import Tap, Usage
from understudy.belt.apikeys import mint
from understudy.belt.bus import Record
from understudy.belt.contracts import KeyEnded
from understudy.belt.folds.keys import Keys
from understudy.service.doors import DOORS

TOKEN = "the-token-of-this-installation"
CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json", "content-length": "10"}


class House:
    """A gateway's door with some keys."""

    def __init__(self, **how: Any) -> None:
        self.keys = Keys()
        self.sessions = Sessions(TOKEN, self.keys)
        self.admission = Admission(self.keys, self.sessions, **{"token": TOKEN, "required": True, **how})

    def key(self, *scopes: str, **limits: int) -> str:
        text, made = mint("anna", scopes, **limits)  # type: ignore[arg-type]
        self.keys.read(made, Record("keys", 0, 0, time.time(), b""))
        return text

    def end(self, key: str) -> None:
        self.keys.read(KeyEnded(key_id=key.split("-")[2], at=time.time()), Record("keys", 0, 1, 0.0, b""))

    def admit(self, method: str, path: str, **headers: str) -> Caller:
        said = {"host": "127.0.0.1:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
        return self.admission.admit(
            {
                "type": "http",
                "http_version": "1.1",
                "method": method,
                "path": path,
                "query_string": b"a=1",
                "headers": [(name.encode(), value.encode()) for name, value in said.items()],
            }
        )

    def status(self, method: str, path: str, **headers: str) -> int:
        try:
            self.admit(method, path, **headers)
        except Refused as refused:
            return refused.response.status_code
        return 200


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_key_opens_what_its_scopes_say_at_every_door() -> None:
    house = House()
    keys = {scope: house.key(scope) for scope in ("inference", "jobs", "read", "admin")}
    opens = {"admin": {"inference", "jobs", "read", "admin"}, "jobs": {"jobs", "read"}}
    for door in DOORS:
        if not door.public or door.anybody:
            continue
        path = f"{door.family}/m/{door.part}" if door.part else door.family
        for scope, key in keys.items():
            for method, needed in (("GET", door.read), ("DELETE", door.change)):
                allowed = needed is None or needed in opens.get(scope, {scope})
                assert house.status(method, path, **bearer(key)) == (200 if allowed else 403), (scope, method, path)
        assert house.status("GET", path) == house.status("GET", path, **bearer("EMPTY")) == 401
    assert house.status("GET", "/v1/nothing", **bearer(keys["admin"])) == 404
    assert house.status("GET", "/v1/nothing") == 401, "a stranger is not told what there is"


def test_a_key_that_ended_or_never_was_lets_in_nobody_even_where_nobody_needs_one() -> None:
    for required in (True, False):
        house = House(required=required)
        key = house.key("admin")
        assert house.admit("GET", "/v1/runs", **bearer(key)).name == "anna"
        assert house.status("GET", "/v1/runs", **bearer(key[:-1] + ("a" if key[-1] != "a" else "b"))) == 401
        house.end(key)
        assert house.status("GET", "/v1/runs", **bearer(key)) == 401
    assert house.status("GET", "/v1/runs", **bearer("any-word-of-an-openai-client")) == 200


def test_without_keys_the_gateway_is_asked_by_its_own_names_only() -> None:
    """A web page whose name was bound to 127.0.0.1 says its own name."""
    house = House(required=False, hosts=frozenset({"gateway.lan"}))
    for host, status in (
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("127.9.9.9", 200),
        ("gateway.lan:8000", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example:8000", 403),
        ("", 403),
    ):
        assert house.status("GET", "/v1/runs", host=host) == status, host
    assert house.status("GET", "/v1/runs", host="evil.example", **bearer(TOKEN)) == 200, "no page knows the token"
    scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/v1/runs", "query_string": b""}
    for hosts in ([], [(b"host", b"localhost"), (b"host", b"evil.example")]):
        with pytest.raises(Refused) as refused:
            house.admission.admit({**scope, "headers": hosts})
        assert refused.value.response.status_code == 400


def test_no_page_of_another_site_asks() -> None:
    house = House(required=False, origins=frozenset({"https://app.example"}))
    for origin, status in (
        ("http://127.0.0.1:8000", 200),
        ("https://app.example", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1:9999", 403),
        ("null", 403),
    ):
        assert house.status("POST", CHAT, origin=origin, **JSON) == status, origin
    for kind in ("text/plain", "", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        assert house.status("POST", CHAT, **{**JSON, "content-type": kind}) == 415
    assert house.status("POST", CHAT, **{**JSON, "content-type": "application/json; charset=utf-8"}) == 200
    assert house.status("POST", "/v1/files", **{**JSON, "content-type": "multipart/form-data; boundary=x"}) == 200
    assert house.status("POST", "/v1/files", **JSON) == 415
    assert house.status("POST", "/v1/runs/r/cancel") == 200, "without a body there is nothing to declare"
    assert house.status("POST", "/v1/runs", content_type="text/plain", transfer_encoding="chunked") == 415


def test_probes_and_metrics_are_for_the_platform() -> None:
    assert House(inside=True).admit("GET", "/metrics").insider
    house = House()
    for path in ("/metrics", "/healthz", "/readyz"):
        assert house.status("GET", path) == house.status("GET", path, **bearer(house.key("admin"))) == 404


def test_no_web_page_reads_metrics_by_a_name_of_its_own() -> None:
    assert House(required=False, inside=True).status("GET", "/metrics", host="evil.example") == 403
    assert House(required=False, inside=True).status("GET", "/metrics") == 200
    alone = House(required=False, inside=True, alone=True)
    assert alone.status("GET", "/metrics", host="10.1.2.3:8001") == 200, "a probe asks a pod by its address"
    assert alone.status("GET", "/v1/runs", host="evil.example") == 403


def test_a_session_may_look_and_changes_nothing_without_its_token() -> None:
    house = House()
    key = house.key("jobs")
    found = house.keys.find(key)
    assert found
    cookie = house.sessions.begin(found, secure=False).partition(";")[0]
    assert cookie.startswith(COOKIE.decode())
    assert house.admit("GET", "/v1/reports/r", cookie=cookie).name == "anna"
    assert house.status("DELETE", "/v1/runs/r", cookie=cookie) == 403
    token = house.sessions.form_token({b"cookie": cookie.encode()})
    assert house.status("DELETE", "/v1/runs/r", cookie=cookie, x_csrf_token=token) == 200
    assert house.status("GET", "/v1/keys", cookie=cookie) == 403, "no more than its key"
    house.end(key)
    assert house.status("GET", "/v1/reports/r", cookie=cookie) == 401


def test_a_browser_without_a_session_is_sent_to_the_login_and_comes_back() -> None:
    with pytest.raises(Refused) as refused:
        House().admit("GET", "/v1/reports/r", accept="text/html,*/*")
    response = refused.value.response
    assert (response.status_code, response.headers["location"]) == (303, "/login?next=%2Fv1%2Freports%2Fr%3Fa%3D1")
    assert House().status("POST", "/v1/runs", accept="text/html") == 401


def test_limits_of_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    house, clock = House(), 1000.0
    monkeypatch.setattr("services.inference.admission.time.monotonic", lambda: clock)
    caller = house.admit("POST", CHAT, **JSON, **bearer(house.key("inference", requests_per_minute=6, at_once=2)))
    for _ in range(6):
        with house.admission.counted(caller):
            pass

    def refusal() -> Any:
        with pytest.raises(Refused) as refused, house.admission.counted(caller):
            raise AssertionError
        return refused.value.response

    assert (refusal().status_code, refusal().headers["retry-after"]) == (429, "10")
    assert json.loads(bytes(refusal().body))["error"]["code"] == "rate_limit_exceeded"
    clock += 20
    with house.admission.counted(caller), house.admission.counted(caller):
        assert refusal().headers["retry-after"] == "1"
    clock += 10
    with pytest.raises(KeyError), house.admission.counted(caller):
        raise KeyError
    clock += 20
    with house.admission.counted(caller), house.admission.counted(caller):
        pass


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"n": 17}, "n"),
        ({"n": "5"}, "n"),
        ({"n": -1}, "n"),
        ({"logprobs": -1}, "logprobs"),
        ({"max_tokens": 10**12}, "max_tokens"),
        ({"stop": "x" * 20_000}, "stop"),
        ({"logit_bias": {str(token): 1 for token in range(10_000)}}, "logit_bias"),
        ({"kv_transfer_params": {}}, "kv_transfer_params"),
        ({"best_of": 1000}, "best_of"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"top_logprobs": 500}, "top_logprobs"),
        ({"logprobs": 500}, "logprobs"),
        ({"stop": ["x"] * 65}, "stop"),
        ({"prompt_embeds": "UEsDB"}, "prompt_embeds"),
        ({"logits_processors": ["os.system"]}, "logits_processors"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"chat_template_kwargs": {"x": "y" * 5000}}, "chat_template_kwargs"),
        ({"vllm_xargs": {"x": 1}}, "vllm_xargs"),
        ({"tools": [{"x": "y" * 300_000}]}, "tools"),
        ({"structured_outputs": {"regex": "a" * 5000}}, "structured_outputs"),
        ({"response_format": {"json_schema": "x" * 70_000}}, "response_format"),
        ({"guided_regex": "(a|b)" * 1000}, "guided_regex"),
    ],
)
def test_what_costs_too_much_is_refused_by_its_name(more: dict[str, Any], field: str) -> None:
    with pytest.raises(Wrong, match=field) as wrong:
        question(json.dumps({"model": "m", **more}).encode())
    assert wrong.value.param == field
    assert question(json.dumps({"model": "m", **more}).encode(), bounded=False).model == "m", "our own services may"


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"prompt": ["a"] * 20, "n": 16}, "prompt"),
        ({"prompt": [[1, 2]] * 257}, "prompt"),
        ({"response_format": {"json_schema": {"pattern": "(a|b)*" * 1000}}}, "response_format"),
        ({"response_format": {"structures": [{"\u0070attern": "a" * 5000}]}}, "response_format"),
        ({"structured_outputs": {"json": {"pattern": "a" * 5000}}}, "structured_outputs"),
        ({"tools": [{"function": {"parameters": {"pattern": "a" * 5000}}}]}, "tools"),
    ],
)
def test_nor_is_it_hidden_in_a_list_or_a_schema(more: dict[str, Any], field: str) -> None:
    with pytest.raises(Wrong, match=field) as wrong:
        question(json.dumps({"model": "m", **more}).encode())
    assert wrong.value.param == field


@pytest.mark.parametrize(
    "more",
    [
        {"prompt": ['a " b'] * 256},
        {"prompt": list(range(10_000))},
        {"prompt": 'one, with "many" quotes' * 1000},
        {"prompt": [[1, 2, 3]] * 16, "n": 16},
        {"structured_outputs": {"grammar": "root ::= " + "a" * 10_000}},
        {"tools": [{"function": {"name": f"f{n}", "description": "d" * 100}} for n in range(200)]},
    ],
)
def test_what_is_large_for_a_reason_goes_through(more: dict[str, Any]) -> None:
    assert question(json.dumps({"model": "m", **more}).encode()).model == "m"


def test_the_last_of_equal_fields_counts_and_escapes_hide_none() -> None:
    """As for the engine, which reads the same bytes."""
    assert question(b'{"model": "a", "model": "b"}').model == "b"
    with pytest.raises(Wrong, match="n: Expected `int` <= 16"):
        question(b'{"model": "a", "n": 1, "\\u006e": 99}')
    assert question(b'{"model": "a", "n": 99, "\\u006e": 1}', bounded=False).model == "a"
    assert json.loads(b'{"n": 1, "\\u006e": 99}') == {"n": 99}


def test_a_large_body_costs_next_to_nothing() -> None:
    body = b'{"messages": [' + b"{}," * 2_900_000 + b'{}], "model": "m"}'
    started = time.process_time()
    assert question(body, bounded=False).model == "m"
    with pytest.raises(Wrong, match="500,000 objects"):
        question(body)
    assert time.process_time() - started < 0.3, "0.8 s and 253 MB when all of it was built"
    for nonsense in (b"[" * 1_000_000, b'{"model":', b'"\xff"', b'{"model": "m", "x": ' + b"[" * 100_000):
        with pytest.raises(Wrong):
            question(nonsense)


def test_a_stream_is_asked_for_its_usage_whatever_the_client_said() -> None:
    for said in ("", ', "stream_options": {"include_usage": false, "continuous_usage_stats": true}'):
        body = f'{{"model": "m", "stream": true{said}}} \n'.encode()
        options = json.loads(asking_for_usage(body, question(body)))["stream_options"]
        assert options["include_usage"] is True
        assert options.get("continuous_usage_stats") == (True if said else None)


def chunk(text: str) -> bytes:
    return b"data: " + json.dumps({"choices": [{"delta": {"content": text}}], "usage": None}).encode() + b"\n\n"


USAGE = b'data: {"id":"c","choices":[],"usage":{"prompt_tokens":13,"total_tokens":20,"completion_tokens":7}}\n\n'
DONE = b"data: [DONE]\n\n"


def test_the_event_about_usage_is_read_and_taken_out_wherever_the_pieces_split() -> None:
    words = [chunk("a"), chunk('"choices":[] "usage":{"prompt_tokens":9}'), chunk("ü\n\n")]
    stream = b"".join([*words, USAGE, DONE])
    for hide in (True, False):
        for at in range(len(stream) + 1):
            tap = Tap(stream=True, hide=hide)
            passed = tap.feed(stream[:at]) + tap.feed(stream[at:]) + tap.end()
            assert passed == (b"".join([*words, DONE]) if hide else stream), at
            assert tap.tokens == (13, 7)


def test_who_hangs_up_is_charged_what_came() -> None:
    tap = Tap(stream=True, hide=True)
    for word in ("a", "b", "c"):
        tap.feed(chunk(word))
    assert tap.tokens == (0, 3)


def test_usage_of_an_answer_that_comes_whole_wherever_it_splits() -> None:
    answer = b'{"choices":[{"message":{"content":"\\"usage\\":{\\"prompt_tokens\\":9}"}}],'
    answer += b'"usage":{"prompt_tokens":5,"completion_tokens":2}}'
    for at in range(len(answer) + 1):
        tap = Tap(stream=False, hide=False)
        assert tap.feed(answer[:at]) + tap.feed(answer[at:]) + tap.end() == answer
        assert tap.tokens == (5, 2)


def test_usage_adds_up_by_key_and_model_and_is_told_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    house, usage = House(), Usage()
    key = house.keys.find(house.key("inference"))
    assert key
    for _ in range(3):
        usage.add(key, "m", (13, 7))
    usage.add(key, "n", (0, 1))
    assert [(u.model, u.requests, u.prompt_tokens, u.completion_tokens) for u in usage.all()] == [
        ("m", 3, 39, 21),
        ("n", 1, 0, 1),
    ]
    with caplog.at_level("INFO"):
        usage.tell()
    first, second = caplog.messages
    assert first == f"key {key.id} (anna) has used m: 3 requests, 39 prompt tokens, 21 completion tokens"
    assert "has used n: 1 requests" in second


def test_the_token_of_our_services_opens_nothing_where_only_others_come_in() -> None:
    for none in (None, ""):
        house = House(token=none)
        for said in (TOKEN, "", "None"):
            assert house.status("GET", "/v1/runs", **bearer(said)) == 401
        assert house.status("GET", "/v1/runs", authorization="Bearer ") == 401


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_stream_in_any_pieces_passes_whole_but_for_its_usage(data: st.DataObject) -> None:
    events = data.draw(
        st.lists(st.one_of(st.text(max_size=20).map(chunk), st.sampled_from([b": ping\n\n", USAGE])), max_size=6)
    )
    stream = b"".join([*events, DONE])
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[start:end] for start, end in itertools.pairwise([0, *cuts, len(stream)])]
    for hide in (True, False):
        tap = Tap(stream=True, hide=hide)
        passed = [tap.feed(piece) for piece in pieces] + [tap.end()]
        assert b"".join(passed) == (stream.replace(USAGE, b"") if hide else stream)
        assert all(piece.endswith(b"\n\n") or not piece for piece in passed), "only whole events go on"
        assert tap.tokens == (
            (13, 7) if USAGE in events else (0, sum(event.startswith(b"data: {") for event in events))
        )


def test_what_is_no_stream_of_events_is_not_held_for_ever() -> None:
    tap = Tap(stream=True, hide=True)
    assert sum(len(tap.feed(b"x" * 100_000)) for _ in range(30)) > 2_000_000
