"""The supervisor, with tiny stand-in services that crash, refuse, hang and come back."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from understudy.embedded import stack as supervisor_module
from understudy.embedded import stackfile
from understudy.embedded.stack import Stack
from understudy.embedded.stackfile import running
from understudy.errors import Fatal
from understudy.service.ports import free_ports

SERVICE = """
import http.server, os, pathlib, signal, sys, time
name, behaviour = sys.argv[1:3]
marks = pathlib.Path(os.environ["UNDERSTUDY_DATA"]) / "marks"
marks.mkdir(exist_ok=True)
(marks / f"{name}-{os.getpid()}").touch()
starts = len(list(marks.glob(f"{name}-*")))
if behaviour == "fatal":
    print("out of luck: the reason is this", flush=True); print("", flush=True); sys.exit(70)
if behaviour == "crash":
    sys.exit("always the same trouble")
if behaviour == "killed" or (behaviour == "mixed" and starts <= 5 and starts != 3):
    os.kill(os.getpid(), signal.SIGKILL)
if behaviour == "mixed" and starts == 3:
    sys.exit("trouble of its own")
if behaviour == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/die": os._exit(9)
        body = "\\n".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("UNDERSTUDY", "OPENAI_API"))).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
port = os.environ.get("UNDERSTUDY_INTERNAL_PORT") or os.environ["UNDERSTUDY_PORT"]
http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


@pytest.fixture
def commands(tmp_path: Path) -> Callable[..., dict[str, Sequence[str]]]:
    """`commands(trainer="crash")`: four stand-ins, all well-behaved but the named ones."""
    script = tmp_path / "service.py"
    script.write_text(SERVICE)

    def make(**behaviour: str) -> dict[str, Sequence[str]]:
        names = ("datagen", "trainer", "inference", "evaluator")
        return {name: (sys.executable, "-S", str(script), name, behaviour.get(name, "good")) for name in names}

    return make


@pytest.fixture
def stack(tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]]) -> Iterator[Stack]:
    """A ready stack of well-behaved services."""
    with Stack(tmp_path / "data", commands=commands(), grace=2) as stack:
        stack.wait_ready(timeout=30)
        yield stack


def processes(data: Path) -> list[int]:
    """Stand-ins of `data` that still live."""
    pids = [int(mark.name.rsplit("-", 1)[1]) for mark in (data / "marks").glob("*")]
    return [pid for pid in pids if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], object], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def environment(port: int) -> dict[str, str]:
    return dict(line.split("=", 1) for line in httpx.get(f"http://127.0.0.1:{port}/env").text.splitlines())


def where(stack: Stack) -> dict[str, int]:
    ports: dict[str, int] = json.loads((stack.data / "stack.json").read_text())["ports"]
    return ports


def test_ready_stack_tells_everyone_where_the_others_are(stack: Stack) -> None:
    """Each service learns its port, the gateway, the data folder and the addresses of the others; so does who reads stack.json."""
    ports = where(stack)
    assert ports["inference"] == stack.port
    assert len(set(ports.values())) == 4
    seen = environment(ports["inference"])
    assert seen["UNDERSTUDY_DATA"] == str(stack.data)
    assert seen["UNDERSTUDY_GATEWAY"] == stack.url
    assert seen["UNDERSTUDY_PORT"] == str(stack.port)
    assert {seen[f"UNDERSTUDY_{name.upper()}_URL"] for name in ("datagen", "trainer", "evaluator")} == {
        f"http://127.0.0.1:{port}" for name, port in ports.items() if name != "inference"
    }
    assert running(stack.data) == stack.url


def test_the_key_of_a_provider_is_shown_to_whom_it_is_for(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ("OPENAI_API_KEY", "OPENAI_API_LOCAL")
    monkeypatch.setenv("UNDERSTUDY_PROVIDERS", '{"local": {"base_url": "http://x/v1", "key": "OPENAI_API_LOCAL"}}')
    for name in keys:
        monkeypatch.setenv(name, "sk-of-the-operator")
    with Stack(tmp_path / "data", commands=commands()) as stack:
        stack.wait_ready()
        seen = {(name, key): environment(port)[key] for name, port in where(stack).items() for key in keys}
    assert {name for (name, _), key in seen.items() if key} == {"datagen"}
    assert [seen["datagen", key] for key in keys] == ["sk-of-the-operator"] * 2


def test_who_says_that_strangers_come_has_them_name_no_folder_and_read_no_metrics(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy on this machine publishes what listens on loopback."""
    monkeypatch.setenv("UNDERSTUDY_KEYS", "required")
    with Stack(tmp_path / "data", commands=commands()) as stack:
        stack.wait_ready()
        ports = where(stack)
        assert not environment(ports["datagen"]).get("UNDERSTUDY_BASES")
        seen = environment(int(environment(ports["datagen"])["UNDERSTUDY_GATEWAY"].rpartition(":")[2]))
        assert int(seen["UNDERSTUDY_INTERNAL_PORT"]) not in (0, stack.port)


def test_who_starts_a_stack_for_this_machine_says_which_bases_there_are(stack: Stack) -> None:
    for port in where(stack).values():
        seen = environment(port)
        assert seen["UNDERSTUDY_BASES"] == "*"
        assert seen["UNDERSTUDY_HOST"] == "127.0.0.1"
    assert environment(stack.port)["UNDERSTUDY_PUBLISH"] == f"127.0.0.1:{stack.port}"


def test_only_the_gateway_listens_for_others_and_insiders_find_it_elsewhere(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says about a gateway: of this one only what this stack says holds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_TLS_CERT", "cert.pem")
    monkeypatch.setenv("UNDERSTUDY_TLS_KEY", str(tmp_path / "key.pem"))
    monkeypatch.setenv("UNDERSTUDY_PUBLISH", "127.0.0.1:8000")
    monkeypatch.setenv("UNDERSTUDY_INTERNAL_PORT", "8001")
    (port,) = free_ports(1)
    with Stack(tmp_path / "data", port, host="0.0.0.0", commands=commands(), grace=2) as stack:
        stack.wait_ready(timeout=30)
        assert stack.endpoint == f"https://{socket.gethostname()}:{port}"
        assert running(stack.data, "endpoint") == stack.endpoint
        inside = where(stack)["inference"]
        assert inside != port
        assert stack.url == running(stack.data) == f"http://127.0.0.1:{inside}"
        seen = {name: environment(at) for name, at in where(stack).items()}
    gateway = seen.pop("inference")
    told = {
        name: gateway[f"UNDERSTUDY_{name}"] for name in ("HOST", "PORT", "PUBLISH", "INTERNAL_HOST", "INTERNAL_PORT")
    }
    assert told == {
        "HOST": "0.0.0.0",
        "PORT": str(port),
        "PUBLISH": f"0.0.0.0:{port}",
        "INTERNAL_HOST": "127.0.0.1",
        "INTERNAL_PORT": str(inside),
    }
    assert gateway["UNDERSTUDY_TLS_CERT"] == str(tmp_path / "cert.pem"), "a service's own folder is another"
    for other in seen.values():
        assert other["UNDERSTUDY_HOST"] == "127.0.0.1"
        assert other["UNDERSTUDY_GATEWAY"] == stack.url
        assert not {name for name in supervisor_module.GATEWAY_ALONE if other[name]}
    assert not {name for name, env in {"inference": gateway, **seen}.items() if "UNDERSTUDY_BASES" in env}


def test_an_address_that_is_not_ours_is_said(tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]]) -> None:
    with pytest.raises(Fatal, match=r"Cannot listen on 192\.0\.2\.1:8123: .* --host"):
        Stack(tmp_path / "data", 8123, host="192.0.2.1", commands=commands()).start()


def test_dead_service_comes_back_on_its_port(stack: Stack) -> None:
    """A crash and a kill -9 both end in the same service on the same port, and are told."""
    said: list[str] = []
    stack.say = said.append
    port = where(stack)["trainer"]
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/die")
    until(lambda: said and _answers(port))
    (pid,) = [
        int(mark.name.split("-")[1])
        for mark in (stack.data / "marks").glob("trainer-*")
        if _alive(int(mark.name.split("-")[1]))
    ]
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(said) == 2 and _answers(port))
    assert "exit code 9" in said[0]
    assert "signal 9" in said[1]
    stack.check()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/").is_success
    except httpx.TransportError:
        return False


def test_stop_leaves_no_process_no_file_and_a_free_folder(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]]
) -> None:
    """Even a service that ignores SIGTERM is gone, and the folder can be taken again at once."""
    data = tmp_path / "data"
    with Stack(data, commands=commands(trainer="stubborn"), grace=0.5) as stack:
        stack.wait_ready(timeout=30)
        assert len(processes(data)) == 4
    assert processes(data) == []
    assert running(data) is None
    assert not (data / "stack.json").exists()
    with Stack(data, stack.port, commands=commands(), grace=2) as again:
        again.wait_ready(timeout=30)


def test_fatal_exit_is_not_restarted_and_last_words_are_shown(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]]
) -> None:
    """Exit code 70 ends the stack at once, with the last line that the service wrote."""
    data = tmp_path / "data"
    with Stack(data, commands=commands(evaluator="fatal"), grace=2) as stack, pytest.raises(Fatal) as caught:
        stack.wait_ready(timeout=30)
    assert "evaluator" in str(caught.value)
    assert "out of luck: the reason is this" in str(caught.value)
    assert str(data / "logs" / "evaluator.log") in str(caught.value)
    assert len(list((data / "marks").glob("evaluator-*"))) == 1
    assert processes(data) == []


def test_five_quick_deaths_end_the_stack(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that always crashes is tried five times, then its last words end the stack."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.02)
    data = tmp_path / "data"
    with (
        Stack(data, commands=commands(datagen="crash"), grace=2) as stack,
        pytest.raises(Fatal, match="always the same trouble"),
    ):
        stack.wait_ready(timeout=30)
    assert len(list((data / "marks").glob("datagen-*"))) == 5


def test_kills_from_outside_are_no_fault_of_the_service_until_they_go_on_for_long(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed more often than a service may crash it still comes back; after the patience for it the stack says so and ends."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor_module, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(supervisor_module, "KILLED_PATIENCE", 6.0)
    data = tmp_path / "data"
    with Stack(data, commands=commands(trainer="killed"), grace=2) as stack:
        until(lambda: len(list((data / "marks").glob("trainer-*"))) > supervisor_module.MAX_DEATHS)
        stack.check()
        with pytest.raises(Fatal, match="killed by signal 9"):
            stack.wait()


def test_a_service_that_ends_once_between_kills_is_not_one_that_crashes(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four kills and one exit are five deaths, and no fault of the service."""
    monkeypatch.setattr(supervisor_module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor_module, "LONGEST_PAUSE", 0.02)
    data = tmp_path / "data"
    with Stack(data, commands=commands(trainer="mixed"), grace=2) as stack:
        until(lambda: len(list((data / "marks").glob("trainer-*"))) > supervisor_module.MAX_DEATHS)
        stack.check()


def test_second_stack_on_a_folder_is_refused(stack: Stack) -> None:
    """One stack per data folder; the first one does not notice the attempt."""
    with pytest.raises(Fatal, match="already up"):
        Stack(stack.data).start()
    assert running(stack.data) == stack.url


def test_port_in_use_names_port_and_holder(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message says which port, which process, and what to do; nothing is left running and the folder is free again."""
    monkeypatch.setattr(supervisor_module, "PORT_PATIENCE", 0.2)
    data = tmp_path / "data"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Fatal, match=rf"Port {port} is in use by .*process {os.getpid()}.*--port"):
            Stack(data, port, commands=commands()).start()
    assert running(data) is None
    assert not (data / "marks").exists()


def test_data_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    """A data folder that cannot be made is an expected error with a remedy."""
    (tmp_path / "data").write_text("")
    with pytest.raises(Fatal, match=r"Cannot write in the data folder .*data.*--data"):
        Stack(tmp_path / "data").start()


SUPERVISOR = """
import json, sys, time
from pathlib import Path
from understudy.embedded.stack import Stack
stack = Stack(Path(sys.argv[1]), commands=json.loads(sys.argv[2]))
stack.start(); stack.wait_ready(); print(stack.port, flush=True); stack.wait()
"""


def test_kill_9_of_the_supervisor_leaves_no_orphan_and_nothing_stale(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]]
) -> None:
    """All services die with a killed supervisor, and the next stack takes the same folder and port without help."""
    data = tmp_path / "data"
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(data), json.dumps(commands(trainer="stubborn"))], stdout=subprocess.PIPE
    )
    assert supervisor.stdout
    with supervisor, supervisor.stdout:
        port = int(supervisor.stdout.readline())
        assert running(data) == f"http://127.0.0.1:{port}"
        assert len(processes(data)) == 4
        supervisor.kill()
    assert (data / "stack.json").exists()  # left behind, and yet:
    assert running(data) is None
    with Stack(data, port, commands=commands(), grace=2) as stack:
        stack.wait_ready(timeout=30)
        until(lambda: len(processes(data)) == 4)
        assert running(data) == stack.url


def test_stale_file_of_another_process_is_not_believed(tmp_path: Path) -> None:
    """While a new stack starts, the address of a killed one is not given out."""
    descriptor = stackfile.lock(tmp_path)
    (tmp_path / "stack.json").write_text(json.dumps({"url": "http://old", "pid": 1, "ports": {}}))
    assert running(tmp_path) == ""
    os.close(descriptor)
    assert running(tmp_path) is None


def test_folder_of_an_older_version_is_refused_in_one_sentence_before_anything_starts(
    tmp_path: Path, commands: Callable[..., dict[str, Sequence[str]]]
) -> None:
    """An old bus, then an old store: neither is touched, no service is started, the folder is free again."""
    data = tmp_path / "data"
    data.mkdir()
    with contextlib.closing(sqlite3.connect(data / "bus.sqlite")) as db:
        db.execute("PRAGMA user_version = 1")
    with pytest.raises(Fatal, match=r"bus\.sqlite was written by an Understudy before version 0\.3\. .*--data"):
        Stack(data, commands=commands()).start()
    (data / "bus.sqlite").unlink()
    (data / "artifacts" / "refs" / "runs").mkdir(parents=True)
    (data / "artifacts" / "refs" / "runs" / "old.json").write_text('{"uri": "x", "sha256": "0"}')
    with pytest.raises(Fatal, match=r"artifact store .* was written by an Understudy before version 0\.2"):
        Stack(data, commands=commands()).start()
    assert not (data / "marks").exists()
    assert running(data) is None


def test_stack_file_has_a_version(stack: Stack) -> None:
    assert json.loads((stack.data / "stack.json").read_text())["version"] == stackfile.VERSION
