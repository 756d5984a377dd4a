"""The trainer's HTTP resource: every training that a run asked for, as OpenAI's fine-tuning job.

Read-only: jobs enter as items of a run (POST /v1/runs). Cancelling, events and checkpoints are not here.
"""

from __future__ import annotations

from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Query

from services.trainer.tunings import Settings, Training, Tunings
from understudy.belt.folds.run import Stage
from understudy.errors import NotFound
from understudy.service.web import page

STATUS: dict[Stage, str] = {
    "waiting": "queued",
    "training": "running",
    "serving": "running",  # a job has succeeded once its model answers
    "evaluating": "succeeded",
    "served": "succeeded",
    "scored": "succeeded",
    "failed": "failed",
    "cancelled": "cancelled",
}


def router(tunings: Tunings) -> APIRouter:
    """The trainer's routes."""
    routes = APIRouter(prefix="/v1/fine_tuning/jobs")

    @routes.get("")
    def newest_first(after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20) -> dict[str, Any]:
        found = list(islice(tunings.newest_first(after), limit + 1))
        return page([_job(training, tunings.settings(training)) for training in found[:limit]], len(found) > limit)

    @routes.get("/{job_id}")
    def one(job_id: str) -> dict[str, Any]:
        training = tunings.get(job_id)
        if training is None:
            raise NotFound(
                f"There is no fine-tuning job `{job_id}`", "GET /v1/fine_tuning/jobs lists those that exist."
            )
        return _job(training, tunings.settings(training))

    return routes


def _job(training: Training, settings: Settings | None) -> dict[str, Any]:
    """Every field of OpenAI's object; null is what is not known."""
    run, state = training.run, training.state
    hyperparameters = {
        "batch_size": settings.batch_size if settings else None,
        "learning_rate_multiplier": "auto",  # ours is an absolute rate, and stands in the plan
        "n_epochs": settings.epochs if settings else None,
    }
    stage, reason = state.stage, state.reason
    if run.status == "failed" and stage == "waiting":  # it never began, and nobody comes for it
        stage, reason = "failed", run.reason
    return {
        "id": training.id,
        "object": "fine_tuning.job",
        "created_at": run.created_at,
        "finished_at": None,
        "model": state.base,
        "fine_tuned_model": state.model,
        "organization_id": "understudy",
        "status": STATUS[stage],
        "hyperparameters": hyperparameters,
        "training_file": settings.source if settings else None,
        "validation_file": None,
        "result_files": [],
        "trained_tokens": None,
        "error": {"code": "failed", "message": reason, "param": None} if stage == "failed" else None,
        "seed": settings.seed if settings else None,
        "estimated_finish": None,
        "integrations": [],
        "metadata": {"run": run.id, "item": training.item},
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
    }
