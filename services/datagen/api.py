"""datagen's HTTP resources: /v1/files as OpenAI has it, and /v1/runs, where a recipe becomes a run.

A recipe is looked at before it is accepted, so that what is wrong with it is heard at once. Holds no state: files are
in the artifact store, runs are in the ledger. Everything that touches files runs in a worker thread, never on the
event loop.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from services.datagen.files import FileCard, Files, Purpose
from services.datagen.pools import Pools, wanted
from understudy import bases as models
from understudy import recipe
from understudy.belt.bus import Bus
from understudy.belt.contracts import RunRequested
from understudy.belt.folds.runs import Ledger, RunState
from understudy.errors import Invalid, Transient
from understudy.service.web import NotFound

FORM_OVERHEAD = 64 * 1024
"""Bytes of a multipart body that are not the file."""
MAX_BODY = 2 * recipe.MAX_RECIPE_BYTES
Limit = Annotated[int, Query(ge=1, le=10_000)]
Order = Literal["asc", "desc"]
T = TypeVar("T", FileCard, RunState)


class RunCreate(BaseModel):
    """Body of POST /v1/runs."""

    model_config = ConfigDict(extra="forbid")

    recipe: dict[str, Any]
    attempt: str = Field(default="", max_length=64)
    """Sets apart a run that shall start afresh although the same recipe ran before."""


def router(files: Files, pools: Pools, bus: Bus, ledger: Ledger, models_folder: Path) -> APIRouter:
    """The routes, on these collaborators."""
    api = APIRouter(prefix="/v1")

    @api.post("/files")
    async def upload(request: Request) -> FileCard:
        if (length := request.headers.get("content-length", "")).isdigit():
            files.check_size(int(length) - FORM_OVERHEAD)
        parser = MultiPartParser(request.headers, _bounded(request, files), max_files=1, max_fields=20)
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            raise Invalid(
                f"The upload is not a multipart form: {error}", "Send `file` and `purpose` as form fields."
            ) from None
        try:
            file, purpose = form.get("file"), form.get("purpose")
            if not isinstance(file, UploadFile):
                raise Invalid("The upload has no `file`", "Send the file as the form field `file`, with its name.")
            if purpose not in Purpose.__args__:  # type: ignore[attr-defined]
                raise Invalid(f"purpose: `{purpose}` is not one of {', '.join(Purpose.__args__)}", "Use `fine-tune`.")  # type: ignore[attr-defined]
            return await run_in_threadpool(files.add, file.filename or "", file.file, str(purpose))
        finally:
            await form.close()

    @api.get("/files")
    def list_files(
        after: str | None = None, limit: Limit = 10_000, order: Order = "desc", purpose: str | None = None
    ) -> dict[str, Any]:
        return _page([card for card in files.all() if purpose in (None, card.purpose)], after, limit, order)

    @api.get("/files/{file_id}")
    def get_file(file_id: str) -> FileCard:
        return files.get(file_id)

    @api.get("/files/{file_id}/content")
    def get_content(file_id: str) -> FileResponse:
        path = files.path(file_id)
        return FileResponse(path, media_type="application/octet-stream", filename=path.name)

    @api.delete("/files/{file_id}")
    def delete_file(file_id: str) -> dict[str, Any]:
        files.delete(file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @api.post("/runs")
    async def create_run(request: Request) -> RunState:
        return await run_in_threadpool(create, await _body(request))

    def create(body: RunCreate) -> RunState:
        if not ledger.caught_up:  # else a run of earlier would be put on the bus once more
            raise Transient("This service is still reading the log", "Try again in a moment.")
        parsed = recipe.parse(body.recipe, "the recipe")
        run = parsed.run_id(body.attempt)
        if state := ledger.run(run):
            return state
        models.resolve(parsed.base, models_folder)
        for each in wanted(parsed):
            pools.check(each)
        bus.publish(RunRequested(run=run, recipe=parsed))
        return ledger.run(run) or RunState.queued(run, parsed, time.time())

    @api.get("/runs")
    def list_runs(after: str | None = None, limit: Limit = 100, order: Order = "desc") -> dict[str, Any]:
        return _page(ledger.runs(), after, limit, order)

    @api.get("/runs/{run}")
    def get_run(run: str) -> RunState:
        if state := ledger.run(run):
            return state
        raise NotFound(f"There is no run `{run}`", "GET /v1/runs lists those that exist.")

    return api


def _page(newest_first: Sequence[T], after: str | None, limit: int, order: Order) -> dict[str, Any]:
    """OpenAI's list object: at most `limit` items after the one whose id is `after`."""
    items = list(newest_first) if order == "desc" else list(reversed(newest_first))
    if after is not None:
        ids = [item.id for item in items]
        if after not in ids:
            raise NotFound(f"after: there is nothing with the id `{after}`", "Use the `last_id` of the page before.")
        items = items[ids.index(after) + 1 :]
    page = items[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(items) > limit,
    }


async def _bounded(request: Request, files: Files) -> AsyncGenerator[bytes, None]:
    """The body as it arrives; raises `Invalid` as soon as it is larger than a file may be, whatever its headers say."""
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        files.check_size(size - FORM_OVERHEAD)
        yield chunk


async def _body(request: Request) -> RunCreate:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Invalid(
                f"The request has more than {MAX_BODY:,} bytes",
                "Upload the data as files and name their ids in the recipe.",
            )
    try:
        return RunCreate.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors()[0]
        raise Invalid(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 'Send {"recipe": {...}}.') from None
    except (ValueError, RecursionError) as error:
        raise Invalid(f"The request is not JSON: {error}", 'Send {"recipe": {...}}.') from None
