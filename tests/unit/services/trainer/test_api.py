"""Trainings are fine-tuning jobs to the unmodified `openai` SDK."""

from __future__ import annotations

from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from services.trainer.api import router
from understudy.belt import contracts as c
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.runs import Ledger
from understudy.recipe import parse
from understudy.service.web import add_errors

RECIPE = parse(
    {
        "datasets": {"d": {"source": "file-1"}},
        "variants": {"v": {"train": "d"}, "w": {"train": "d"}, "x": {"train": "d"}},
    },
    "r",
)


def belt(variant: str) -> dict[str, object]:
    return {"run": "r", "variant": variant, "recipe": RECIPE, "datasets": {}}


@pytest.fixture
def client(tmp_path: Path) -> openai.OpenAI:
    bus = EmbeddedBus(tmp_path / "bus.sqlite")
    for message in (
        c.RunRequested(run="r", recipe=RECIPE),
        c.TrainingRequested(**belt("base")),  # type: ignore[arg-type]
        c.ModelServed(**belt("v"), model="ft:b:r:v:1", adapter=None),  # type: ignore[arg-type]
        c.TrainingRequested(**belt("w")),  # type: ignore[arg-type]
        c.VariantFailed(**belt("w"), station="trainer", reason="too long"),  # type: ignore[arg-type]
    ):
        bus.publish(message)
    app = FastAPI()
    add_errors(app)
    app.include_router(router(Ledger(bus).load()))
    http: httpx.Client = TestClient(app)
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)


def test_one_job_per_trained_variant_with_its_outcome(client: openai.OpenAI) -> None:
    jobs = {job.metadata["variant"]: job for job in client.fine_tuning.jobs.list() if job.metadata}
    assert {name: job.status for name, job in jobs.items()} == {"v": "succeeded", "w": "failed", "x": "queued"}
    assert jobs["v"].fine_tuned_model == "ft:b:r:v:1"
    assert jobs["w"].error
    assert jobs["w"].error.message == "too long"
    assert jobs["v"].model_dump() == client.fine_tuning.jobs.retrieve(jobs["v"].id).model_dump()


def test_pages_and_unknown_jobs(client: openai.OpenAI) -> None:
    assert len(list(client.fine_tuning.jobs.list(limit=1))) == 3, "the SDK follows has_more with after"
    with pytest.raises(openai.NotFoundError, match="no fine-tuning job"):
        client.fine_tuning.jobs.retrieve("ftjob-0")
