"""HTTP resources of the evaluator: the reports, as a page and as JSON, against any item."""

from __future__ import annotations

import threading

from fastapi import APIRouter
from fastapi.responses import FileResponse, HTMLResponse, Response

from services.evaluator import page
from services.evaluator.reports import FILE, Reports
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.views import RunState
from understudy.errors import NotFound
from understudy.terms import Artifact

PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page holds text that models wrote: nothing in it may run, load or send anything."""
HEADERS = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}


def router(reports: Reports, runs: Runs) -> APIRouter:
    """The evaluator's routes; `runs` knows the newest report of each run."""
    routes = APIRouter(prefix="/v1/reports")
    one_at_a_time = threading.Lock()

    def find(run: str, baseline: str | None) -> tuple[RunState, Artifact]:
        state = runs.get(run)
        if state is None:
            raise NotFound(f"There is no run `{run}`", "`understudy runs` lists those there are.")
        if state.report is None:
            raise NotFound(f"Run `{run}` has no report yet", f"See how far it is: `understudy watch {run}`.")
        if baseline is None:
            return state, state.report
        with one_at_a_time:  # adding up takes a core, and the same one may be asked for twice
            return state, reports.against(state.report, baseline)

    @routes.get("/{run}.json")
    def report_json(run: str, baseline: str | None = None) -> FileResponse:
        """The newest report as data (`understudy/report.py`), with all items held against `baseline` if that is given."""
        _, artifact = find(run, baseline)
        return FileResponse(reports.store.fetch(artifact) / FILE, media_type="application/json", headers=HEADERS)

    @routes.get("/{run}")
    def report_page(run: str, baseline: str | None = None) -> Response:
        """The newest report as one self-contained page."""
        state, artifact = find(run, baseline)
        return HTMLResponse(page.render(reports.read(artifact), state), headers=HEADERS)

    return routes
