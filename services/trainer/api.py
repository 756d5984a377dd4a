"""The trainer's HTTP resource: every training that a run asked for, as OpenAI's fine-tuning job.

Read-only, and read from the ledger: jobs enter as variants of a run (POST /v1/runs). Cancelling, events and checkpoints
are not here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query

from understudy.belt.folds.runs import Ledger, RunState, Stage
from understudy.service.web import NotFound

STATUS: dict[Stage, str] = {
    "waiting": "queued",
    "training": "running",
    "serving": "running",  # a job has succeeded once its model answers
    "evaluating": "succeeded",
    "scored": "succeeded",
    "failed": "failed",
}


def router(ledger: Ledger) -> APIRouter:
    """The trainer's routes."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs")

    @routes.get("")
    def jobs(after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, Any]:
        found = [job for run in ledger.runs() for job in _jobs(run)]
        if after is not None:
            ids = [job["id"] for job in found]
            if after not in ids:
                raise NotFound(f"after: there is no fine-tuning job `{after}`", "Use the id of the last job you have.")
            found = found[ids.index(after) + 1 :]
        return {"object": "list", "data": found[:limit], "has_more": len(found) > limit}

    @routes.get("/{job_id}")
    def one(job_id: str) -> dict[str, Any]:
        for run in ledger.runs():
            for job in _jobs(run):
                if job["id"] == job_id:
                    return job
        raise NotFound(f"There is no fine-tuning job `{job_id}`", "GET /v1/fine_tuning/jobs lists those that exist.")

    return routes


def _jobs(run: RunState) -> Iterator[dict[str, Any]]:
    """A job per variant of `run` that is trained, with every field of OpenAI's object; null is what is not known."""
    training = run.recipe.training
    hyperparameters = {
        "batch_size": training.batch_size,
        "learning_rate_multiplier": "auto",  # ours is an absolute rate, and stands in the recipe
        "n_epochs": math.ceil(training.epochs),
    }
    for name, variant in run.recipe.trained().items():
        state = run.variants[name]
        first = next(iter(variant.stages()[0]))
        failed = state.stage == "failed"
        yield {
            "id": f"ftjob-{hashlib.sha256(f'{run.id}/{name}'.encode()).hexdigest()[:24]}",
            "object": "fine_tuning.job",
            "created_at": run.created_at,
            "finished_at": None,
            "model": run.recipe.base,
            "fine_tuned_model": state.model,
            "organization_id": "understudy",
            "status": STATUS[state.stage],
            "hyperparameters": hyperparameters,
            "training_file": run.recipe.datasets[first].source,
            "validation_file": None,
            "result_files": [],
            "trained_tokens": None,
            "error": {"code": "failed", "message": state.reason, "param": None} if failed else None,
            "seed": run.recipe.seed,
            "estimated_finish": None,
            "integrations": [],
            "metadata": {"run": run.id, "variant": name},
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        }
