"""An engine's own HTTP API: the few calls that gating, serving and retiring take.

Does not decide which adapters an engine shall have (`folder.py`), nor whether one is good (`gate.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import httpx

from services.inference.guard import UNDER_WAY
from understudy.errors import Invalid, Transient
from understudy.interrupt import awaited

SECONDS = 60.0
"""An engine may take for an answer."""
SECONDS_BUSY = 300.0
"""It may take for one that waits behind other people's requests."""
SECONDS_UNLOAD = 5.0
"""It may take to forget an adapter: that computes nothing."""


class EngineRefused(Invalid):
    """The engine is well, and does not do what it was asked for."""


class EngineClient:
    """An engine's own HTTP API; `with EngineClient(url) as engine:`.

    Raises `EngineRefused` when the engine refuses, `Transient` when it is not there. Stops when `interrupt.check` says so.
    """

    def __init__(self, url: str, key: str = "") -> None:
        """`key` is what the engine's guard wants to see, if it has one (`guard.py`)."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # Plain http: verify=False only spares the 50 ms that loading certificates takes.
        self._http = httpx.Client(base_url=url, timeout=SECONDS, trust_env=False, verify=False, headers=headers)

    def healthy(self) -> bool:
        """Whether the engine takes requests."""
        return self.pulse()[0] == HTTPStatus.OK

    def lost_its_core(self) -> bool:
        """Whether the server says that what computes behind it has ended: it ends too, but takes its time."""
        return self.pulse()[0] == HTTPStatus.SERVICE_UNAVAILABLE

    def pulse(self) -> tuple[int, int | None]:
        """HTTP status of its health, 0 when it is busy or ending; requests it has in hand, None when it does not say."""
        try:
            response = self._http.get("/health", timeout=5)
        except httpx.HTTPError:
            return 0, None
        under_way = response.headers.get(UNDER_WAY.decode(), "")
        return response.status_code, int(under_way) if under_way.isdecimal() else None

    def models(self) -> frozenset[str]:
        """Names of the base and of all loaded adapters."""
        return frozenset(card["id"] for card in self._call("GET", "/v1/models").json()["data"])

    def answers(self, model: str) -> None:
        """Have the engine answer with `model`, an adapter that it has to take up from its folder first, or not."""
        self._call("POST", "/v1/completions", {"model": model, "prompt": "ready", "max_tokens": 1})

    def explain(self, adapter: str, folder: Path) -> Invalid:
        """Why the engine refused to take up `adapter`, which lies in `folder`: it says so only when it is told to load it.

        Of one that it has taken up there is nothing to explain.
        """
        try:
            self._call("POST", "/v1/load_lora_adapter", {"lora_name": adapter, "lora_path": str(folder)})
        except Invalid as error:
            return error
        self.unload(adapter)
        return Invalid(
            f"The engine does not find the adapter {folder} by itself",
            "Start it with VLLM_PLUGINS=lora_filesystem_resolver, that folder's parent as VLLM_LORA_RESOLVER_CACHE_DIR and the"
            " base's name as --model; `python -m services.inference.launch` does.",
        )

    def unload(self, name: str) -> None:
        """Forget an adapter; not having it is success."""
        try:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": name}, SECONDS_UNLOAD)
        except Invalid:
            if name in self.models():
                raise

    def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
        """For every prompt the natural log-probabilities of its tokens 1..n-1, each given those before it."""
        request = {"model": model, "prompt": prompts, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 0}
        choices = self._call("POST", "/v1/completions", request, SECONDS_BUSY).json()["choices"]
        return [
            [next(iter(token.values()))["logprob"] for token in choice["prompt_logprobs"] if token]
            for choice in sorted(choices, key=lambda choice: choice["index"])
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = SECONDS
    ) -> httpx.Response:
        try:
            response = awaited(lambda: self._http.request(method, path, json=body, timeout=seconds))
        except httpx.HTTPError as error:
            raise Transient(f"The engine did not answer {path}: {error or type(error).__name__}") from error
        if response.is_success:
            return response
        # The engine answers 500 also to an adapter it cannot use (wrong rank, wrong shapes): then it stays healthy.
        if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR or self.healthy():
            raise EngineRefused(f"The engine refused {path} ({response.status_code}): {_reason(response)}")
        raise Transient(f"The engine failed at {path} ({response.status_code}): {_reason(response)}")


def _reason(response: httpx.Response) -> str:
    try:
        body = response.json()
        return str(body["error"]["message"] if "error" in body else body.get("message", body))[:1000]
    except (ValueError, KeyError, TypeError, AttributeError):
        return response.text[:1000]
