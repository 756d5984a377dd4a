"""HTTP resources of the evaluator: the reports, as a page and as JSON, against any item."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, HTMLResponse, Response

from services.evaluator import page
from services.evaluator.reports import FILE, Reports
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.views import RunState
from understudy.errors import NotFound
from understudy.store import keys
from understudy.terms import Artifact

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page holds text that models wrote: nothing in it may run, load or send anything."""
HEADERS = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}


def router(reports: Reports, runs: Runs) -> APIRouter:
    """The evaluator's routes; `runs` knows the newest report of each run."""
    routes = APIRouter(prefix="/v1/reports")
    one_at_a_time = asyncio.Lock()

    def find(run: str) -> tuple[RunState, Artifact]:
        state = runs.get(run)
        if state is None:
            raise NotFound(f"There is no run `{run}`", "`understudy runs` lists those there are.")
        if state.report is None:
            raise NotFound(f"Run `{run}` has no report yet", f"See how far it is: `understudy watch {run}`.")
        return state, state.report

    def against(run: str, report: Artifact, baseline: str) -> Artifact:
        made = reports.against(report, baseline)
        if runs.get(run) is None:  # deleted meanwhile, and this came after
            reports.store.delete_all(keys.run(run))
            raise NotFound(f"Run `{run}` was deleted")
        return made

    async def wanted(run: str, baseline: str | None) -> tuple[RunState, Artifact]:
        state, report = find(run)
        if baseline is not None:
            async with one_at_a_time:  # adding up takes a core and memory; who waits holds no thread
                report = await run_in_threadpool(against, run, report, baseline)
        return state, report

    @routes.get("/{run}.json")
    async def report_json(run: str, baseline: str | None = None) -> FileResponse:
        """The newest report as data (`understudy/report.py`), with all items held against `baseline` if that is given."""
        _, artifact = await wanted(run, baseline)
        folder = await run_in_threadpool(reports.store.fetch, artifact)
        return FileResponse(folder / FILE, media_type="application/json", headers=HEADERS)

    @routes.get("/{run}")
    async def report_page(run: str, baseline: str | None = None) -> Response:
        """The newest report as one self-contained page."""
        state, artifact = await wanted(run, baseline)
        html = await run_in_threadpool(lambda: page.render(reports.read(artifact), state))
        return HTMLResponse(html, headers=HEADERS)

    return routes
