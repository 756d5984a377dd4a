"""What the command line asks of a gateway, over HTTP.

`Source` is what a data folder answers as well when nothing is up (`folder.py`); only a gateway also takes files, runs and
chats. Every problem leaves as an `UnderstudyError` that says what and where. Does not print and does not wait.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import quote

import httpx
from httpx_sse import EventSource
from pydantic import BaseModel, ValidationError

from understudy.belt.folds.views import RunState, RunSummary
from understudy.errors import Invalid, NotFound, Transient, Unsupported
from understudy.recipe import Recipe
from understudy.report import Report


class Unreachable(Transient):
    """The server does not answer, or not now."""


class Deleted(NotFound):
    """The run was there once."""


class ModelFile(BaseModel):
    """One file of an adapter."""

    path: str
    """Below the adapter's folder, with slashes."""
    bytes: int
    sha256: str


class Source(Protocol):
    """Where runs and models are looked up, and runs are cancelled and deleted."""

    def run(self, run: str) -> RunState:
        """State of one run; raises `NotFound`, and `Deleted` when it was there once."""

    def runs(self, limit: int = 100) -> list[RunSummary]:
        """The newest runs, at most so many, newest first."""

    def report(self, state: RunState, baseline: str | None = None) -> tuple[Report, str]:
        """The report and its page, of a run that has one, with all items held against `baseline` if that is given."""

    def cancel(self, state: RunState, item: str | None) -> None:
        """Wish that a run, or one item of it, ends."""

    def delete(self, run: str) -> int:
        """Forget a run, or what a deletion of earlier left; returns how many bytes of the store that freed."""

    def logs(self, run: str, item: str | None) -> str:
        """What happened to a run, or to one item of it, one line per event."""

    def files(self, model: str) -> list[ModelFile]:
        """The files of an adapter; raises `NotFound`."""

    def content(self, model: str, file: ModelFile) -> Iterator[bytes]:
        """One of these files, in pieces."""


class Gateway:
    """`with Gateway(url, key) as gateway: gateway.run("quickstart-0123456789")`. No redirect is followed: the key goes to `url` alone."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url.rstrip("/")
        local = httpx.URL(self.url).host in ("127.0.0.1", "localhost", "::1")
        # No limit on uploads and answers of a slow machine; a lost server shows up as a failed connection.
        self._http = httpx.Client(
            base_url=self.url,
            timeout=httpx.Timeout(600, connect=5),
            verify=httpx.create_ssl_context(),  # whom SSL_CERT_FILE names is trusted on this machine too
            trust_env=not local,
            headers={"authorization": f"Bearer {_sendable(key)}"} if key else {},
        )

    def upload(self, path: Path) -> str:
        """Store a file; returns its id, the same for the same bytes."""
        with path.open("rb") as file:
            answer = self._ask("POST", "/v1/files", files={"file": (path.name, file)}, data={"purpose": "user_data"})
        return str(answer.json()["id"])

    def start(self, recipe: Recipe, fresh: str = "") -> RunState:
        """Ask for a run; the same recipe, and the same word that sets it apart, is the same run."""
        body = {"recipe": recipe.written(), "fresh": fresh}
        return RunState.model_validate(self._ask("POST", "/v1/runs", json=body).json())

    def run(self, run: str) -> RunState:
        return RunState.model_validate(self._ask("GET", _run(run)).json())

    def runs(self, limit: int = 100) -> list[RunSummary]:
        page = self._ask("GET", "/v1/runs", params={"limit": limit}).json()
        return [RunSummary.model_validate(state) for state in page["data"]]

    def report(self, state: RunState, baseline: str | None = None) -> tuple[Report, str]:
        page = f"/v1/reports/{quote(state.id, safe='')}"
        asked = {"baseline": baseline} if baseline else None
        report = self._ask("GET", f"{page}.json", params=asked).content
        try:
            return Report.model_validate_json(report), self._ask("GET", page, params=asked).text
        except ValidationError as error:
            raise Unsupported(
                f"The report of run {state.id} cannot be read here: {error.errors()[0]['msg']}",
                "It was made by another version of Understudy: use that one's command line.",
            ) from None

    def cancel(self, state: RunState, item: str | None) -> None:
        self._ask("POST", f"{_run(state.id)}/cancel", json={"item": item} if item else None)

    def delete(self, run: str) -> int:
        return int(self._ask("DELETE", _run(run)).json()["freed_bytes"])

    def logs(self, run: str, item: str | None) -> str:
        return self._ask("GET", f"{_run(run)}/logs", params={"item": item} if item else None).text

    def files(self, model: str) -> list[ModelFile]:
        try:
            listed = self._ask("GET", f"{_model(model)}/files").json()["data"]
        except NotFound:
            self._ask("GET", _model(model))  # says so when there is no such model; `.../files` might be another's name
            raise
        return [ModelFile.model_validate(file) for file in listed]

    def content(self, model: str, file: ModelFile) -> Iterator[bytes]:
        with _explained(self.url), self._http.stream("GET", f"{_model(model)}/files/{quote(file.path)}") as answer:
            if not answer.is_success:
                answer.read()
                raise _refusal(answer, self.url)
            yield from answer.iter_bytes()

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
            if not answer.is_success:
                answer.read()
                raise _refusal(answer, self.url)
            for event in EventSource(answer).iter_sse():
                if event.data == "[DONE]":
                    return
                said = json.loads(event.data)
                if "error" in said:
                    raise Invalid(f"{self.url} broke off: {said['error'].get('message', said['error'])}")
                for choice in said.get("choices", []):
                    yield choice["delta"].get("content") or ""

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the server says to something that has no method of its own here."""
        answer: dict[str, Any] = self._ask(method, path, **({"json": body} if body is not None else {})).json()
        return answer

    def _ask(self, method: str, path: str, **body: Any) -> httpx.Response:
        with _explained(self.url):
            answer = self._http.request(method, path, **body)
            if not answer.is_success:
                raise _refusal(answer, self.url)
            return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()


def _run(run: str) -> str:
    return f"/v1/runs/{quote(run, safe='')}"


def _model(model: str) -> str:
    return f"/v1/models/{quote(model, safe='/:')}"  # names on the endpoint may have slashes, as those of the hub do


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
            if "CERTIFICATE_VERIFY_FAILED" in reason:
                remedy = (
                    "Is it the right one? SSL_CERT_FILE names a PEM file with whom to trust, an authority of your own."
                )
            raise Unreachable(f"The server {self._url} did not answer: {reason}", remedy) from error


def _sendable(key: str) -> str:
    """The key as a header has it. Raises `Invalid` for what cannot be one, without saying it."""
    if not (key := key.strip()).isascii() or not key.isprintable():
        raise Invalid("The API key has a character that no key has", "Look at UNDERSTUDY_API_KEY, or what --key names.")
    return key


def _refusal(answer: httpx.Response, url: str) -> Exception:
    if answer.has_redirect_location:
        where = answer.headers["location"][:200]
        return Invalid(
            f"{url} sends on to {where}, and neither key nor data go there", "If it is right, name it: --server."
        )
    code = None
    try:
        error = answer.json()["error"]
        message, code = str(error["message"]), error.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"{url} answered {answer.status_code} to {answer.request.method} {answer.request.url.path}: {answer.text[:200]}"
    if answer.status_code >= 500:
        return Unreachable(message)
    if answer.status_code == 401:
        sent = "authorization" in answer.request.headers
        remedy = f"Is it the one for {url}?" if sent else "Put yours in UNDERSTUDY_API_KEY, or name it with --key."
        return Invalid(message, remedy)
    if code == "insufficient_scope":
        return Invalid(message, f"Ask whoever runs {url} for a key that may: `understudy keys --help` says which.")
    if answer.status_code == 404:
        return Deleted(message) if "was deleted" in message else NotFound(message)
    return Invalid(message)
