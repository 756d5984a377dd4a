"""HTTP resources of inference that are not hot: the models, the files of their adapters, how the engines are doing, and what keys used.

Completions do not come through here (`gateway.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import orjson
from fastapi import APIRouter, Response
from fastapi.responses import FileResponse

from services.inference.fleet import Fleet, Model
from services.inference.usage import Usage
from understudy.errors import NotFound
from understudy.store.artifacts import ArtifactStore
from understudy.terms import Artifact


def router(fleet: Fleet, store: ArtifactStore, usage: Usage) -> APIRouter:
    """Inference's routes."""
    routes = APIRouter()
    listed: tuple[object, Response] = (None, Response())

    @routes.get("/v1/models")
    def models() -> Response:
        nonlocal listed
        version, response = listed
        if version != (now := fleet.version()):
            response = _json({"object": "list", "data": [_card(model) for model in fleet.models()]})
            listed = now, response
        return response

    @routes.get("/v1/models/{path:path}")
    def model(path: str) -> Response:
        """A model by its name, which may have slashes; `<name>/files` lists its adapter, `<name>/files/<path>` is a file."""
        if found := fleet.model(path):
            return _json(_card(found))
        for name, file in _splits(path):
            if found := fleet.model(name):
                if found.adapter is None:
                    raise NotFound(f"The model `{name}` is a base: only adapters have files here")
                return _file(store, found.adapter, file) if file else _json(_listing(store, found, found.adapter))
        raise NotFound(f"The model `{path}` does not exist. GET /v1/models lists those that do.")

    @routes.get("/v1/engines")
    def engines() -> dict[str, Any]:
        return {"object": "list", "data": [asdict(state) for state in fleet.states()]}

    @routes.get("/v1/usage")
    def used() -> dict[str, Any]:
        """What each key has asked of each model since this gateway started."""
        return {"object": "list", "data": [asdict(each) for each in usage.all()]}

    return routes


def _splits(path: str) -> Iterator[tuple[str, str]]:
    """(name, path of a file or nothing) for every way to read `<name>/files[/<path>]`."""
    parts = path.split("/")
    for place, part in enumerate(parts):
        if part == "files" and place:
            yield "/".join(parts[:place]), "/".join(parts[place + 1 :])


def _listing(store: ArtifactStore, model: Model, adapter: Artifact) -> dict[str, Any]:
    files = [
        {"path": path, "bytes": file.bytes, "sha256": file.sha256}
        for path, file in sorted(store.files(adapter).items())
    ]
    return {"object": "list", "data": files, "model": model.name, "base": model.parent, "digest": adapter.sha256}


def _file(store: ArtifactStore, adapter: Artifact, path: str) -> Response:
    """Only what the manifest names; a part of it when the client asks for a range."""
    file = store.files(adapter).get(path)
    if file is None:
        raise NotFound(f"The adapter has no file `{path}`")
    return FileResponse(store.fetch(adapter) / path, headers={"etag": f'"{file.sha256}"'})


def _card(model: Model) -> dict[str, Any]:
    """OpenAI's model object, with the two fields that vLLM adds."""
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "understudy",
        "root": model.parent or model.name,
        "parent": model.parent,
    }


def _json(content: dict[str, Any]) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
