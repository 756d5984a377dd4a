"""datagen's HTTP resources: /v1/files as OpenAI has it, and /v1/runs, where a recipe becomes a run.

Holds no state: files are in the artifact store (`files.py`), runs on the bus (`runs.py`). Everything that touches files
or waits runs in a worker thread, never on the event loop.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, TypeVar, get_args

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect

from services.datagen.files import FileCard, Files, Purpose
from services.datagen.form import OVERHEAD, Form
from services.datagen.runs import Desk
from understudy.belt.folds.views import RunState
from understudy.errors import Invalid
from understudy.recipe import MAX_RECIPE_BYTES
from understudy.service.audit import audited
from understudy.service.web import Limit, Order, owner_of, page, page_of

PIECE = 1 << 20
"""Bytes of a file that are written at once."""
MAX_BODY = 2 * MAX_RECIPE_BYTES
B = TypeVar("B", bound=BaseModel)


class RunCreate(BaseModel):
    """Body of POST /v1/runs."""

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]
    fresh: str = Field(default="", max_length=64)
    """Sets apart a run that shall start anew although the same recipe ran before."""


class RunCancel(BaseModel):
    """Body of POST /v1/runs/{run}/cancel; may be missing."""

    model_config = ConfigDict(extra="forbid")

    item: str | None = Field(default=None, max_length=200)
    """None: the whole run."""


def router(files: Files, desk: Desk) -> APIRouter:
    """The routes, on these collaborators."""
    api = APIRouter(prefix="/v1")

    @api.post("/files")
    async def upload(request: Request) -> FileCard:
        if (length := request.headers.get("content-length", "")).isdecimal():
            files.check_size(int(length[:20]) - OVERHEAD)
        with files.arriving() as arriving:
            form = Form(request.headers.get("content-type", ""), arriving.begin)
            pieces: list[bytes] = []
            received = 0
            async for chunk in _stream(request):
                received += len(chunk)
                files.check_size(received - OVERHEAD)
                pieces += form.feed(chunk)
                if sum(map(len, pieces)) >= PIECE:
                    await run_in_threadpool(arriving.write, pieces)
                    pieces = []
            await run_in_threadpool(arriving.write, pieces)
            form.end()
            if (purpose := form.fields.get("purpose")) not in get_args(Purpose):
                given = f"`{purpose[:50]}`" if purpose else "there is none, it"
                raise Invalid(f"purpose: {given} is not one of {', '.join(get_args(Purpose))}", "Use `fine-tune`.")
            return await run_in_threadpool(arriving.keep, str(purpose))

    @api.get("/files")
    def list_files(
        after: str | None = None, limit: Limit = 10_000, order: Order = "desc", purpose: str | None = None
    ) -> dict[str, Any]:
        return page_of([card for card in files.all() if purpose in (None, card.purpose)], after, limit, order)

    @api.get("/files/{file_id}")
    def get_file(file_id: str) -> FileCard:
        return files.get(file_id)

    @api.get("/files/{file_id}/content")
    def get_content(file_id: str) -> FileResponse:
        path = files.path(file_id)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @api.delete("/files/{file_id}")
    def delete_file(file_id: str, request: Request) -> dict[str, Any]:
        with audited(request, "file.delete", file_id):
            files.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @api.post("/runs")
    async def create_run(request: Request) -> RunState:
        body = await _body(request, RunCreate, 'Send {"recipe": {...}}.')
        return await run_in_threadpool(desk.begin, body.recipe, body.fresh, owner_of(request))

    @api.post("/runs/{run}/cancel")
    async def cancel_run(run: str, request: Request) -> RunState:
        body = await _body(request, RunCancel, 'Send nothing, or {"item": "..."}.', nothing=RunCancel())
        return await run_in_threadpool(desk.cancel, run, body.item, owner_of(request))

    @api.delete("/runs/{run}")
    def delete_run(run: str, request: Request) -> dict[str, Any]:
        with audited(request, "run.delete", run):
            freed = desk.delete(run, owner_of(request))
        return {"id": run, "object": "run", "freed_bytes": freed, "deleted": True}

    @api.get("/runs")
    def list_runs(after: str | None = None, limit: Limit = 100, order: Order = "desc") -> dict[str, Any]:
        return page(*desk.page(after, limit, newest_first=order == "desc"))

    @api.get("/runs/{run}")
    def get_run(run: str) -> RunState:
        return desk.get(run)

    @api.get("/runs/{run}/logs")
    def get_logs(run: str, item: str | None = None) -> PlainTextResponse:
        return PlainTextResponse(desk.logs(run, item))

    return api


async def _stream(request: Request) -> AsyncIterator[bytes]:
    """The body as it arrives."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Invalid("The request was broken off", "Send it again.") from None


async def _body(request: Request, kind: type[B], remedy: str, nothing: B | None = None) -> B:
    """What the body says; `nothing` is what an empty one or `null` means."""
    body = bytearray()
    async for chunk in _stream(request):
        body += chunk
        if len(body) > MAX_BODY:
            raise Invalid(
                f"The request has more than {MAX_BODY:,} bytes",
                "Upload the data as files and name their ids in the recipe.",
            )
    try:
        document = json.loads(body) if body.strip() or nothing is None else None
        return nothing if nothing is not None and document is None else kind.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))[:200]
        raise Invalid(f"{place}: {first['msg']}" if place else first["msg"], remedy) from None
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The request is not JSON: {error}", remedy) from None
