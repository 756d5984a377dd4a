"""HTTP resources of inference that are not hot: the list of models, and how the engines are doing.

Completions do not come through here (`gateway.py`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from services.inference.fleet import Fleet, Model
from understudy.service.web import NotFound


def router(fleet: Fleet) -> APIRouter:
    """Inference's routes."""
    routes = APIRouter()

    @routes.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_card(model) for model in fleet.models()]}

    @routes.get("/v1/models/{name:path}")  # a path: hub names have slashes
    def model(name: str) -> dict[str, Any]:
        for model in fleet.models():
            if model.name == name:
                return _card(model)
        raise NotFound(f"The model `{name}` does not exist")

    @routes.get("/v1/engines")
    def engines() -> dict[str, Any]:
        return {"object": "list", "data": [asdict(state) for state in fleet.states()]}

    return routes


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
