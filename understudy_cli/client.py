"""What the command line asks: a gateway over HTTP, or, when nothing is up, the data folder itself.

`Gateway` and `Folder` answer the same three questions (`Runs`); only a gateway also takes files, runs and chats. Every problem leaves as an
`UnderstudyError` that says what and where. Does not print and does not wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import httpx

from understudy.belt.bus import Bus
from understudy.belt.folds.runs import Ledger, RunState
from understudy.errors import Invalid, Transient
from understudy.recipe import Recipe
from understudy.settings import Settings


class NotThere(Invalid):
    """What was asked for is not known there."""


class Unreachable(Transient):
    """The server does not answer, or not now."""


class Runs(Protocol):
    """Where runs and reports are looked up."""

    def run(self, run: str) -> RunState:
        """State of one run; raises `NotThere`."""

    def runs(self) -> list[RunState]:
        """All runs, newest first."""

    def report(self, state: RunState) -> tuple[dict[str, Any], bytes]:
        """`report.json` and the HTML page of a finished run."""


class Gateway:
    """`with Gateway(url) as gateway: gateway.run("quickstart-0123456789")`."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        # No limit on uploads and answers of a slow machine; a lost server shows up as a failed connection.
        self._http = httpx.Client(base_url=self.url, timeout=httpx.Timeout(600, connect=5), trust_env=not local)

    def upload(self, path: Path) -> str:
        """Store a file; returns its id, the same for the same bytes."""
        with path.open("rb") as file:
            answer = self._ask("POST", "/v1/files", files={"file": (path.name, file)}, data={"purpose": "user_data"})
        return str(answer.json()["id"])

    def start(self, recipe: Recipe, attempt: str = "") -> RunState:
        """Ask for a run; the same recipe and attempt is the same run."""
        body = {"recipe": recipe.model_dump(mode="json"), "attempt": attempt}
        return RunState.model_validate(self._ask("POST", "/v1/runs", json=body).json())

    def run(self, run: str) -> RunState:
        return RunState.model_validate(self._ask("GET", f"/v1/runs/{quote(run, safe='')}").json())

    def runs(self) -> list[RunState]:
        return [
            RunState.model_validate(state)
            for state in self._ask("GET", "/v1/runs", params={"limit": 1000}).json()["data"]
        ]

    def report(self, state: RunState) -> tuple[dict[str, Any], bytes]:
        page = f"/v1/reports/{quote(state.id, safe='')}"
        return self._ask("GET", f"{page}.json").json(), self._ask("GET", page).content

    def models(self) -> list[str]:
        """Names that answer on the endpoint."""
        return [str(model["id"]) for model in self._ask("GET", "/v1/models").json()["data"]]

    def chat(
        self, model: str, messages: Sequence[Mapping[str, str]], max_tokens: int, temperature: float
    ) -> Iterator[str]:
        """The answer, piece by piece as it comes."""
        body = {
            "model": model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
        }
        with _explained(self.url), self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.is_error:
                answer.read()
                raise _refusal(answer, self.url)
            for line in answer.iter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data and data != "[DONE]":
                    event = json.loads(data)
                    if "error" in event:
                        raise Invalid(f"{self.url} broke off: {event['error'].get('message', event['error'])}")
                    for choice in event.get("choices", []):
                        yield choice["delta"].get("content") or ""

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        with _explained(self.url):
            answer = self._http.request(method, path, **body)
            if answer.is_error:
                raise _refusal(answer, self.url)
            return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


class Folder:
    """The data folder of a stack that is down: the ledger is read from the bus, reports from the artifact store."""

    def __init__(self, data: Path) -> None:
        self._settings = Settings(data=data)

    def run(self, run: str) -> RunState:
        found = next((state for state in self.runs() if state.id == run), None)
        if found is None:
            raise NotThere(
                f"There is no run `{run}` in {self._settings.data}", "`understudy runs` lists those there are."
            )
        return found

    def runs(self) -> list[RunState]:
        with bus_of(self._settings.data) as bus:
            return Ledger(bus).load().runs() if bus else []

    def report(self, state: RunState) -> tuple[dict[str, Any], bytes]:
        from understudy.store.artifacts import FsspecArtifactStore

        assert state.report
        folder = FsspecArtifactStore(self._settings.artifact_url(), self._settings.cache()).fetch(state.report)
        return json.loads((folder / "report.json").read_text(encoding="utf-8")), (folder / "report.html").read_bytes()


@contextmanager
def bus_of(data: Path) -> Iterator[Bus | None]:
    """The bus that UNDERSTUDY_BUS names, else the one in the data folder; None when there is none, and none is left behind."""
    from understudy.belt.bus.connect import connect

    settings = Settings(data=data)
    if not settings.bus and not (data / "bus.sqlite").exists():
        yield None
        return
    bus = connect(settings)
    try:
        yield bus
    finally:
        bus.close()


class _explained:
    """Turns what httpx raises into `Unreachable`, and an answer that makes no sense into `Invalid`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, httpx.HTTPError | httpx.InvalidURL):
            reason = str(error) or type(error).__name__
            remedy = "Is it up? `understudy up` starts one here, --server names another."
            raise Unreachable(f"The server {self._url} did not answer: {reason}", remedy) from error


def _refusal(answer: httpx.Response, url: str) -> Exception:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"{url} answered {answer.status_code} to {answer.request.method} {answer.request.url.path}: {answer.text[:200]}"
    if answer.status_code >= 500:
        return Unreachable(message)
    return NotThere(message) if answer.status_code == 404 else Invalid(message)
