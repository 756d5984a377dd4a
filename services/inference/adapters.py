"""Which adapters an engine shall have, against which it has; and the few calls on an engine that this takes.

An engine forgets its adapters when it restarts, so nothing here reacts to events: `reconcile` asks what is loaded and
loads what is missing. Names are immutable, one for one content, hence never `load_inplace`: the engine's prefix cache
is keyed by name and would go on answering for the old weights. Does not decide whether an adapter is good (`gate.py`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx

from understudy.belt.contracts import Artifact, ModelTrained
from understudy.errors import Invalid, Transient, UnderstudyError

log = logging.getLogger(__name__)


def model_name(base: str, trained: ModelTrained, adapter: Artifact) -> str:
    """`ft:<base>:<run name>:<variant>:<first 8 of the digest>`, without characters that URLs or engines trip over."""
    parts = (base, trained.recipe.name, trained.variant, adapter.sha256[:8])
    return ":".join(["ft", *(re.sub(r"[^A-Za-z0-9._/+-]", "-", part) for part in parts)])


class EngineClient:
    """An engine's own HTTP API; `with EngineClient(url) as engine:`.

    Raises `Invalid` when the engine refuses, `Transient` when it is not there.
    """

    def __init__(self, url: str, timeout: float = 60) -> None:
        # Plain http: verify=False only spares the 50 ms that loading certificates takes.
        self._http = httpx.Client(base_url=url, timeout=timeout, trust_env=False, verify=False)

    def healthy(self) -> bool:
        """Whether the engine takes requests."""
        try:
            return self._http.get("/health", timeout=5).status_code == HTTPStatus.OK
        except httpx.HTTPError:
            return False

    def models(self) -> frozenset[str]:
        """Names of the base and of all loaded adapters."""
        return frozenset(card["id"] for card in self._call("GET", "/v1/models").json()["data"])

    def load(self, name: str, folder: Path) -> None:
        """Load an adapter; having it already is success."""
        try:
            self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        except Invalid:
            if name not in self.models():
                raise

    def unload(self, name: str) -> None:
        """Forget an adapter; not having it is success."""
        try:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        except Invalid:
            if name in self.models():
                raise

    def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
        """For every prompt the natural log-probabilities of its tokens 1..n-1, each given those before it."""
        request = {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        choices = self._call("POST", "/v1/completions", request).json()["choices"]
        return [
            [next(iter(token.values()))["logprob"] for token in choice["prompt_logprobs"] if token]
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._http.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise Transient(f"The engine did not answer {path}: {error or type(error).__name__}") from error
        if response.is_success:
            return response
        # The engine answers 500 also to an adapter it cannot use (wrong rank, wrong shapes): then it stays healthy.
        if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR or self.healthy():
            raise Invalid(f"The engine refused {path} ({response.status_code}): {_reason(response)}")
        raise Transient(f"The engine failed at {path} ({response.status_code}): {_reason(response)}")


def reconcile(
    engine: EngineClient, desired: Mapping[str, Artifact], fetch: Callable[[Artifact], Path]
) -> frozenset[str]:
    """Load what `desired` (name -> adapter) has and `engine` lacks; what it serves then.

    An adapter that cannot be loaded is logged and left out: it must not keep the others from being served.
    """
    present = engine.models()
    for name in [name for name in desired if name not in present]:
        try:
            engine.load(name, fetch(desired[name]))
        except Transient:
            raise
        except UnderstudyError as error:
            log.error("adapter %s is not served: %s", name, error)
    return engine.models()


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
        return str(body["error"]["message"] if "error" in body else body.get("message", body))[:1000]
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:1000]
