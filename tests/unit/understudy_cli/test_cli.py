"""The command line against a stand-in gateway: what a user sees, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import understudy_cli
from understudy.embedded import stack
from understudy.embedded.stackfile import running
from understudy.errors import Invalid
from understudy.service.child import Child
from understudy.service.ports import free_ports, is_free
from understudy.settings import PROJECT
from understudy_cli import main, pull
from understudy_cli.client import ModelFile

FAKE = Path(__file__).with_name("fake_gateway.py")
BYSTANDER = (
    "import http.server as h, os\n"
    "class H(h.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "h.HTTPServer(('127.0.0.1', int(os.environ['UNDERSTUDY_PORT'])), H).serve_forever()"
)
COMMANDS = {
    "datagen": [sys.executable, "-c", BYSTANDER],
    "inference": [sys.executable, str(FAKE)],
}
RECIPE = """
name: {name}
datasets:
  remarks: {{source: remarks.csv, rows: {{train: 10, validation: 0, test: 5}}}}
variants:
  mine: {{train: remarks}}
evaluation:
  panels:
    in-domain: {{dataset: remarks, metrics: [accuracy]}}
"""

Outcome = tuple[int, str, str]
Cli = Callable[..., Outcome]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`cli("runs")` -> (exit code, stdout, stderr), in an empty folder with a data folder of its own and small services."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("UNDERSTUDY_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(stack, "COMMANDS", COMMANDS)
    monkeypatch.setattr("understudy_cli.watch.EVERY", 0.05)
    (tmp_path / "models" / "seedling").mkdir(parents=True)
    (tmp_path / "models" / "seedling" / "config.json").write_text("{}")
    (tmp_path / "remarks.csv").write_text("text,label\ngood,1\n")

    def run(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as end:
            main(list(arguments))
        said = capsys.readouterr()
        return int(end.value.code or 0), said.out, said.err

    return run


@pytest.fixture(scope="module")
def server_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in gateway keeps what it was asked."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(server_data: Path) -> Iterator[str]:
    """URL of a stand-in gateway."""
    data, (port,) = server_data, free_ports(1)
    env = {"UNDERSTUDY_PORT": str(port), "UNDERSTUDY_DATA": str(data), "PYTHONPATH": str(PROJECT)}
    child = Child([sys.executable, str(FAKE)], log=data / "log", env=env)
    deadline = time.monotonic() + 20
    while is_free(port):
        assert time.monotonic() < deadline, (data / "log").read_text()
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    child.stop(1)


def recipe(tmp_path: Path, name: str, **more: str) -> str:
    path = tmp_path / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name) + "".join(f"{key}: {value}\n" for key, value in more.items()))
    return str(path)


def test_run_ends_in_table_headline_and_page(cli: Cli, server: str, tmp_path: Path) -> None:
    """Values with intervals, marks against base, what was gained in a sentence, the page on disk, exit code 0."""
    code, out, err = cli("run", recipe(tmp_path, "quick"), "--server", server)
    assert code == 0
    row = next(line for line in out.splitlines() if "accuracy" in line)
    assert "50.0 % [45.0 – 55.0]" in row
    assert "70.0 % [65.0 – 75.0] ▲" in row
    assert "mine: Gained on in-domain." in out
    assert "accuracy rose from 50.0 % to 70.0 % (+20.0 points, 95 % interval +10.0 to +30.0)." in out
    assert "On in-domain, 17 of 100 answers of the base name no class" in out
    assert "Talk to it: understudy chat ft:seedling:quick:mine" in out
    page = Path(out.split("Report: ")[1].strip())
    assert page.read_text() == "<html>the report</html>"
    assert page.parent == tmp_path / "data" / "reports"
    assert "mine: trainer: training" in err, "progress is told in plain lines when nobody looks at a terminal"


def test_same_command_again_shows_the_result_and_fresh_starts_anew(cli: Cli, server: str, tmp_path: Path) -> None:
    """A finished run is not made twice; --fresh makes another, and from then on that is the one."""
    path = recipe(tmp_path, "again")
    first = cli("run", path, "--server", server)
    second = cli("run", path, "--server", server)
    assert second[0] == 0
    assert second[1] == first[1]
    assert "was finished before" in second[2]
    code, out, err = cli("run", path, "--server", server, "--fresh")
    assert code == 0
    assert "attempt 2" in err
    assert out.splitlines()[0] != first[1].splitlines()[0]
    assert cli("run", path, "--server", server)[1] == out


def test_failed_run_says_why_and_the_same_command_tries_it_again(cli: Cli, server: str, tmp_path: Path) -> None:
    """The reason is on stderr, the exit code is 1, and a second try takes up the same run instead of showing the old failure."""
    path = recipe(tmp_path, "doomed")
    code, _, err = cli("run", path, "--server", server)
    assert code == 1
    assert "the data was no good" in err
    code, _, err = cli("run", path, "--server", server)
    assert code == 1
    assert "failed: the data was no good. Trying again." in err
    assert "trainer: training" in err, "it was worked on again"
    assert cli("runs", "--server", server)[1].count("doomed-") == 1


def test_report_without_an_item_is_exit_code_3_and_the_same_command_tries_that_again(
    cli: Cli, server: str, tmp_path: Path
) -> None:
    """There is a table, the failed item is named with its reason, a script can tell; asked again, only it is missing."""
    path = recipe(tmp_path, "patchy")
    code, out, _ = cli("run", path, "--server", server)
    assert code == 3
    assert "mine FAILED: the trainer ran out of ideas" in out
    code, out, err = cli("run", path, "--server", server)
    assert code == 0
    assert "was finished before, but for mine; trying again." in err
    assert "FAILED" not in out


def test_cancelling_a_run_ends_who_watches_it_and_the_same_command_takes_it_up_again(
    cli: Cli, server: str, tmp_path: Path
) -> None:
    """Whoever cancels: the watch ends with that word, exit code 3 because something was scored before."""
    path = recipe(tmp_path, "slow")
    with understudy("run", path, "--server", server) as process:
        assert process.stderr
        assert process.stdout
        seen = ""
        while "training" not in seen:
            seen += process.stderr.readline()
        run = seen.split()[1]
        code, out, _ = cli("cancel", run, "--server", server)
        assert (code, out) == (0, f"Run {run} is cancelled. How it ends: understudy watch {run}\n")
        said = process.stdout.read()
        assert "run: cancelled" in process.stderr.read()
        assert "The run was cancelled; this is what was scored." in said
        assert process.wait(20) == 3
    code, _, err = cli("watch", run, "--server", server)
    assert code == 1
    assert f"Run {run} was cancelled" in err
    code, out, _ = cli("cancel", run, "--server", server)
    assert (code, out) == (0, f"Run {run} is over (cancelled): there is nothing to cancel.\n")
    with understudy("run", path, "--server", server) as process:
        assert process.stderr
        assert f"Run {run} was cancelled; taking it up again." in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_cancelling_an_item_leaves_the_others(cli: Cli, server: str, tmp_path: Path) -> None:
    """An unknown item is named with the nearest; a run without an item has exit code 3."""
    path = recipe(tmp_path, "slow", seed="3")
    with understudy("run", path, "--server", server) as process:
        assert process.stderr
        assert process.stdout
        run = process.stderr.readline().split()[1]
        code, _, err = cli("cancel", run, "mime", "--server", server)
        assert code == 1
        assert "did you mean `mine`?" in err
        code, out, _ = cli("cancel", run, "mine", "--server", server)
        assert (code, out.startswith(f"Item mine of run {run} is cancelled.")) == (0, True)
        assert "over (cancelled)" in cli("cancel", run, "mine", "--server", server)[1]
        process.send_signal(signal.SIGINT)
        process.wait(20)


def test_delete_asks_first_and_says_what_was_freed(
    cli: Cli, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nobody can be asked it wants --yes; the page that was kept here goes too."""
    out = cli("run", recipe(tmp_path, "quick", seed="5"), "--server", server)[1]
    page = Path(out.split("Report: ")[1].strip())
    run = page.stem
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, _, err = cli("delete", run, "--server", server)
    assert code == 1
    assert "Add --yes" in err
    assert page.exists()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    asked: list[str] = []
    monkeypatch.setattr("typer.confirm", lambda question, **_: asked.append(question))
    code, out, _ = cli("delete", run, "--server", server)
    assert (code, out) == (0, f"Run {run} is deleted; 3.0 MiB were freed.\n")
    assert asked == [f"Delete run {run} (finished: 2 scored) and all that it made?"]
    assert not page.exists()
    code, out, _ = cli("delete", run, "--server", server)
    assert (code, out) == (0, f"Run {run} is deleted; 0 bytes were freed.\n"), "what a first try may have left goes now"
    assert len(asked) == 1
    code, _, err = cli("delete", "never-heard-of", "--yes", "--server", server)
    assert code == 1
    assert "never-heard-of" in err


def test_a_run_that_is_deleted_while_it_is_watched_ends_the_command_at_once(
    cli: Cli, server: str, tmp_path: Path
) -> None:
    """Exit code 1 and that word, not a minute of reconnecting."""
    with understudy("run", recipe(tmp_path, "slow", seed="9"), "--server", server) as process:
        assert process.stderr
        seen = ""
        while "training" not in seen:
            seen += process.stderr.readline()
        run = seen.split()[1]
        assert cli("delete", run, "--yes", "--server", server)[0] == 0
        rest = process.stderr.read()
        assert process.wait(5) == 1
    assert f"understudy: Run `{run}` was deleted" in rest
    assert "reconnecting" not in rest


def test_a_later_attempt_is_found_though_the_first_was_deleted(cli: Cli, server: str, tmp_path: Path) -> None:
    """And when all are deleted the first is made anew; a fresh one never takes the place of one that was there."""
    path = recipe(tmp_path, "again", seed="9")
    first = cli("run", path, "--server", server)[2].split()[1]
    second = cli("run", path, "--server", server, "--fresh")[2].split()[1]
    assert cli("delete", first, "--yes", "--server", server)[0] == 0
    err = cli("run", path, "--server", server)[2]
    assert f"Run {second} was finished before" in err
    assert cli("delete", second, "--yes", "--server", server)[0] == 0
    third = cli("run", path, "--server", server, "--fresh")[2]
    assert "(attempt 3) started" in third
    assert cli("delete", third.split()[1], "--yes", "--server", server)[0] == 0
    assert f"Run {first} started" in cli("run", path, "--server", server)[2]


def test_logs_are_printed_as_the_server_has_them(cli: Cli, server: str, tmp_path: Path) -> None:
    out = cli("run", recipe(tmp_path, "quick", seed="6"), "--server", server)[1]
    run = Path(out.split("Report: ")[1].strip()).stem
    assert cli("logs", run, "--server", server)[1] == "12:00:00  the run: asked for\n"
    assert cli("logs", run, "mine", "--server", server)[1] == "12:00:00  mine: asked for\n"
    assert "no item `nine`" in cli("logs", run, "nine", "--server", server)[2]


def test_runs_shows_the_newest_and_says_that_there_are_more(cli: Cli, server: str, tmp_path: Path) -> None:
    for seed in ("7", "8"):
        assert cli("run", recipe(tmp_path, "many", seed=seed), "--server", server)[0] == 0
    code, out, err = cli("runs", "--limit", "1", "--server", server)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "--limit shows more" in err


def test_source_and_base_replace_those_of_the_recipe(cli: Cli, server: str, tmp_path: Path) -> None:
    """The server is asked with the id of the user's file, and with the absolute folder of the user's base."""
    (tmp_path / "own.csv").write_text("text,label\nbad,0\n")
    (tmp_path / "my-base").mkdir()
    path = recipe(tmp_path, "replaced")
    assert cli("run", path, "--server", server, "--source", "remarks=own.csv", "--base", "./my-base")[0] == 0
    assert cli("run", path, "--server", server, "--source", "own.csv")[0] == 0
    listed = cli("runs", "--server", server)[1]
    assert str(tmp_path / "my-base") in listed
    assert listed.count("replaced-") == 2


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ("", ["missing.yaml"], "There is no recipe file at missing.yaml"),
        ("datasets: [", ["r.yaml"], "is not valid YAML"),
        ("datsets: {}", ["r.yaml"], "unknown key `datsets` (did you mean `datasets`?)"),
        ("datasets: {a: {source: nowhere.csv}}", ["r.yaml"], "datasets.a.source: there is no file"),
        ("datasets: {a: {source: empty.csv}}", ["r.yaml"], "empty.csv is empty"),
        ("datasets: {a: {source: models}}", ["r.yaml"], "is a folder"),
        ("datasets: {a: {source: remarks.csv}}", ["r.yaml", "--source", "b=remarks.csv"], "no dataset `b`"),
        ("datasets: {a: {source: remarks.csv}}", ["r.yaml", "--base", "nobody"], "There is no base model `nobody`"),
        ("datasets: {a: {source: remarks.csv, task: passthrough}}", ["r.yaml", "--source", "remarks.csv"], "NAME=FILE"),
    ],
)
def test_wrong_input_is_one_paragraph_before_anything_is_started(
    cli: Cli, tmp_path: Path, change: str, arguments: list[str], expected: str
) -> None:
    """What was wrong and where on one line of stderr, exit code 1, no trace, no data folder."""
    (tmp_path / "r.yaml").write_text(change)
    (tmp_path / "empty.csv").touch()
    code, out, err = cli("run", *arguments)
    assert code == 1
    assert expected in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert not (tmp_path / "data").exists()


def test_refusal_of_the_server_is_shown_as_it_is(cli: Cli, server: str, tmp_path: Path) -> None:
    """A base that the server does not have is a 400 with its words, and no run."""
    code, _, err = cli("run", recipe(tmp_path, "lost", base="nowhere"), "--server", server)
    assert code == 1
    assert err.strip() == "understudy: There is no base model `nowhere`. Give another."


def test_server_that_does_not_answer_is_named(cli: Cli, tmp_path: Path) -> None:
    """Every command that takes --server says which did not answer and what to do; --debug adds the trace."""
    (port,) = free_ports(1)
    for command in (["run", recipe(tmp_path, "quick")], ["runs"], ["report", "x"], ["watch", "x"], ["chat", "x"]):
        code, _, err = cli(*command, "--server", f"http://127.0.0.1:{port}")
        assert code == 1
        assert f"The server http://127.0.0.1:{port} did not answer" in err
        assert "Traceback" not in err
    assert "Traceback" in cli("--debug", "runs", "--server", f"http://127.0.0.1:{port}")[2]


def test_on_a_bus_of_others_runs_are_looked_up_at_their_endpoint(
    cli: Cli, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a container nobody has to name the server."""
    assert cli("run", recipe(tmp_path, "shared"), "--server", server)[0] == 0
    monkeypatch.setenv("UNDERSTUDY_BUS", "kafka:9092")
    monkeypatch.setenv("UNDERSTUDY_GATEWAY", server)
    assert "shared-" in cli("runs")[1]


def test_wrong_usage_is_exit_code_2(cli: Cli) -> None:
    """An unknown option is not an error of the input."""
    assert cli("run", "--sauce", "x")[0] == 2
    assert "Usage" in cli("run")[1] + cli("run")[2]


def test_looking_at_an_empty_folder_makes_nothing(cli: Cli, tmp_path: Path) -> None:
    """runs, report and watch without a stack read the data folder; they do not create one."""
    assert cli("runs")[0] == 0
    for command in ("report", "watch"):
        code, _, err = cli(command, "unknown-run")
        assert code == 1
        assert "There is no run `unknown-run`" in err
    assert not (tmp_path / "data").exists()


def test_chat_from_a_pipe_answers_once(cli: Cli, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard input is one message; the streamed pieces arrive in order, with the system message before them."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("hello there\n"))
    assert cli("chat", "seedling", "--server", server, "--system", "be brief")[:2] == (
        0,
        "2 turns, you said hello there\n",
    )


def test_chat_remembers_and_forgets(cli: Cli, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a terminal the history is sent along, /clear empties it, the end of input ends it."""
    lines = iter(["one", "two", "/clear", "three"])
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)

    def typed(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    code, out, _ = cli("chat", "seedling", "--server", server)
    assert code == 0
    assert out.splitlines() == ["1 turns, you said one", "3 turns, you said two", "1 turns, you said three"]


def test_chat_with_an_unknown_model_lists_those_there_are(cli: Cli, server: str) -> None:
    """The names to choose from are in the message."""
    code, _, err = cli("chat", "nobody", "--server", server)
    assert code == 1
    assert "no model `nobody`" in err
    assert "seedling, quick:mine" in err


def test_run_without_a_server_starts_a_stack_and_stops_it(cli: Cli, tmp_path: Path) -> None:
    """The stack lives as long as the command."""
    code, out, err = cli("run", recipe(tmp_path, "quick"))
    assert code == 0
    assert "▲" in out
    assert "ready:" in err
    assert running(tmp_path / "data") is None


def understudy(*arguments: str) -> subprocess.Popen[str]:
    """The command as a process of its own, with the small services."""
    script = (
        "import json, sys\n"
        "from understudy.embedded import stack\n"
        "stack.COMMANDS = json.loads(sys.argv[1])\n"
        "from understudy_cli import main\n"
        "main(sys.argv[2:])"
    )
    command = [sys.executable, "-c", script, json.dumps(COMMANDS), *arguments]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_ctrl_c_stops_the_stack_says_that_it_resumes_and_it_does(cli: Cli, tmp_path: Path) -> None:
    """Exit code 130, no service left, and the same command goes on with the same run to its end."""
    path, data = recipe(tmp_path, "slow"), tmp_path / "data"
    with understudy("run", path) as process:
        assert process.stderr
        seen = ""
        while "training" not in seen:
            line = process.stderr.readline()
            assert line, seen
            seen += line
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(20) == 130
    assert "run the same command again" in rest
    assert "Traceback" not in rest
    assert running(data) is None
    with understudy("run", path) as process:
        assert process.stderr
        assert process.stdout
        while "goes on" not in process.stderr.readline():
            assert process.poll() is None
        (data / "hurry").touch()
        assert "▲" in process.stdout.read()
        assert process.wait(20) == 0
    assert len(list((data / "fake-runs").iterdir())) == 1


def test_up_serves_until_sigterm_and_is_found_by_other_commands(cli: Cli, tmp_path: Path) -> None:
    """The banner has the URL; a second `up` and a busy port are refused; `run` uses what is up and leaves it up; SIGTERM ends it with 0."""
    (port,) = free_ports(1)
    with understudy("up", "--port", str(port)) as process:
        assert process.stdout
        banner = ""
        while f"http://127.0.0.1:{port}/v1" not in banner:
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            banner += line
        code, _, err = cli("up", "--port", "9")
        assert code == 1
        assert f"already up on {tmp_path / 'data'}, at http://127.0.0.1:{port}" in err
        code, _, err = cli("up", "--port", str(port), "--data", "elsewhere")
        assert code == 1
        assert f"Port {port} is in use by" in err
        assert cli("run", recipe(tmp_path, "quick"))[0] == 0
        assert running(tmp_path / "data") == f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert running(tmp_path / "data") is None


def test_service_that_cannot_go_on_ends_the_run_with_its_words(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk, say, reaches the user in the service's own words."""
    words = "print('trainer: The disk that holds x is full. Free some space.'); raise SystemExit(70)"
    monkeypatch.setattr(stack, "COMMANDS", {**COMMANDS, "trainer": [sys.executable, "-c", words]})
    code, _, err = cli("run", recipe(tmp_path, "quick"))
    assert code == 1
    assert "The disk that holds x is full" in err
    assert running(tmp_path / "data") is None


def test_doctor_tells_what_is_missing_and_never_the_key(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every line has a status, whatever is not ok has a remedy, and a failing check is exit code 1."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code, out, _ = cli("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert {
        "Python",
        "torch",
        "engine",
        "GPU",
        "memory",
        "disk",
        "data folder",
        "port",
        "bundled model",
    } <= checks.keys()
    assert checks["bundled model"]["status"] == "fail", "the models folder of this test has no weights"
    assert code == 1
    assert all(check["remedy"] for check in checks.values() if check["status"] != "ok")
    assert checks["OPENAI_API_KEY"]["status"] == "ok"
    assert "sk-secret" not in out
    assert "sk-secret" not in cli("doctor")[1]
    assert os.environ["OPENAI_API_KEY"]


@pytest.mark.parametrize(
    ("publish", "tls", "status", "says"),
    [
        ("127.0.0.1:8000", "", "ok", "127.0.0.1:8000: for this machine alone, keys are optional, no TLS"),
        ("", "", "ok", "127.0.0.1, once it is up: for this machine alone"),
        ("0.0.0.0:8000", "", "warn", "0.0.0.0:8000: keys are required, no TLS"),
        ("8000", "cert.pem", "ok", "8000: keys are required, TLS"),
    ],
)
def test_doctor_says_who_comes_in(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, publish: str, tls: str, status: str, says: str
) -> None:
    monkeypatch.setenv("UNDERSTUDY_PUBLISH", publish)
    monkeypatch.setenv("UNDERSTUDY_TLS_CERT", tls)
    (check,) = [check for check in json.loads(cli("doctor", "--json")[1]) if check["name"] == "published"]
    assert check["status"] == status
    assert says in check["detail"]
    assert ("UNDERSTUDY_TLS_CERT" in check["remedy"]) is (status == "warn")


def test_pull_brings_every_file_whole_and_says_where_the_card_is(cli: Cli, server: str, tmp_path: Path) -> None:
    """Under its own name only once it is complete; a folder that has something in it is not touched."""
    code, out, err = cli("pull", "ft:seedling:quick:mine", "mine", "--server", server)
    assert (code, err) == (0, "")
    assert (tmp_path / "mine" / "weights" / "part one.bin").read_bytes() == bytes(range(256)) * 500
    assert "3 files, 125.0 KiB" in out
    assert f"Its card: {tmp_path / 'mine' / 'README.md'}" in out
    assert not (tmp_path / ".mine.partial").exists()
    code, _, err = cli("pull", "ft:seedling:quick:mine", "mine", "--server", server)
    assert code == 1
    assert "is there already" in err


def test_pull_goes_on_with_what_is_missing(cli: Cli, server: str, server_data: Path, tmp_path: Path) -> None:
    """A file that does not arrive whole is an error and leaves no folder; the next try fetches that one alone."""
    (server_data / "torn").touch()
    code, _, err = cli("pull", "ft:seedling:quick:torn", "adapter", "--server", server)
    assert code == 1
    assert "weights/part one.bin of ft:seedling:quick:torn did not arrive" in err
    assert not (tmp_path / "adapter").exists()
    (tmp_path / ".adapter.partial" / "of-another-model.bin").touch()
    (tmp_path / ".adapter.partial" / "README.md").write_text("torn")
    (server_data / "torn").unlink()
    (server_data / "fetched").unlink()
    assert cli("pull", "ft:seedling:quick:torn", "adapter", "--server", server)[0] == 0
    assert (server_data / "fetched").read_text().splitlines() == ["README.md", "weights/part one.bin"]
    found = sorted(str(path.relative_to(tmp_path / "adapter")) for path in (tmp_path / "adapter").rglob("*"))
    assert found == ["README.md", "adapter_config.json", "weights", "weights/part one.bin"]
    assert (tmp_path / "adapter" / "README.md").read_text() == "a card"


def test_pull_never_leaves_its_folder(cli: Cli, server: str, tmp_path: Path) -> None:
    """A server that names a path outside is refused before anything is written."""
    code, _, err = cli("pull", "ft:seedling:quick:evil", "evil", "--server", server)
    assert code == 1
    assert "`../outside`, which would not stay in the folder" in err
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / ".evil.partial").exists()
    code, _, err = cli("pull", "nobody", "x", "--server", server)
    assert code == 1
    assert err.startswith("understudy: The model `nobody` does not exist")


def test_pull_into_what_cannot_be_written_is_one_paragraph(cli: Cli, server: str, tmp_path: Path) -> None:
    """A file where a folder must be: the target's parent, or the one that gathers."""
    (tmp_path / "file").touch()
    (tmp_path / ".mine.partial").touch()
    for target, place in (("file/mine", "file/.mine.partial"), ("mine", ".mine.partial"), ("x" * 300, "x" * 300)):
        code, _, err = cli("pull", "ft:seedling:quick:mine", target, "--server", server)
        assert code == 1
        assert f"Cannot make {tmp_path / target}: " in err
        assert str(tmp_path / place) in err
        assert len(err.strip().splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_pull_into_a_folder_that_may_not_be_written_is_one_paragraph(cli: Cli, server: str, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    code, _, err = cli("pull", "ft:seedling:quick:mine", "closed/mine", "--server", server)
    assert code == 1
    assert "Permission denied" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("path", ["", ".", "..", "/etc/x", "a/../../b", "a//b", "./a", "a/", "a\\b", "a\0b"])
def test_paths_that_lead_elsewhere_are_none(path: str) -> None:
    file = ModelFile(path=path, bytes=0, sha256="")
    with pytest.raises(Invalid, match="would not stay"):
        pull.check(file, "m")


def test_help_names_every_command_and_each_teaches(cli: Cli) -> None:
    """What it does, an example that begins with its name, and every option with a word about it."""
    commands = [
        "plan",
        "run",
        "watch",
        "report",
        "logs",
        "cancel",
        "delete",
        "chat",
        "pull",
        "up",
        "runs",
        "clean",
        "doctor",
        "topics",
    ]
    listed = cli("--help")[1]
    for command in commands:
        assert f" {command} " in listed
        told = cli(command, "--help")[1]
        assert f"understudy {command}" in told.split("Usage:")[1].split("\n", 1)[1], command
        assert command in (understudy_cli.__doc__ or "")
