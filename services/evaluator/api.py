"""HTTP resources of the evaluator: the reports, as a page and as JSON."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from understudy.belt.folds.runs import Runs
from understudy.errors import NotFound
from understudy.store.artifacts import ArtifactStore

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page holds text that models wrote: nothing in it may run, load or send anything."""


def router(store: ArtifactStore, runs: Runs) -> APIRouter:
    """The evaluator's routes, answered from `store`; `runs` knows the newest report of each run."""
    routes = APIRouter(prefix="/v1/reports")

    def file(run: str, name: str, media_type: str) -> FileResponse:
        state = runs.get(run)
        if state is None:
            raise NotFound(f"There is no run `{run}`", "`understudy runs` lists those there are.")
        if state.report is None:
            raise NotFound(f"Run `{run}` has no report yet", f"See how far it is: `understudy watch {run}`.")
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return FileResponse(store.fetch(state.report) / name, media_type=media_type, headers=headers)

    @routes.get("/{run}.json")
    def report_json(run: str) -> FileResponse:
        """The newest report as data (`report.Report`)."""
        return file(run, "report.json", "application/json")

    @routes.get("/{run}")
    def report_page(run: str) -> FileResponse:
        """The newest report as one self-contained page."""
        return file(run, "report.html", "text/html; charset=utf-8")

    return routes
