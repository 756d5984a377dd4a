"""compose.yaml as a user starts it: the same belt between real containers, and unmoved by the death of any of them.

Needs Docker and takes minutes, so it is not part of `make test`: `make test-compose`.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from belt import UNDERSTUDY, small_recipe
from compose_stack import ROOT, SERVICES, ComposeStack

from understudy.belt.folds.views import RunState
from understudy.errors import UnderstudyError
from understudy_cli.client import Gateway

pytestmark = pytest.mark.timeout(3600)

RECIPE = ROOT / "recipes/quickstart.yaml"
ONE_OF_EACH = {
    "item-planned": 3,
    "run-requested": 1,
    "run-control": 4,
    "training-requested": 2,
    "serving-requested": 3,
    "scoring-requested": 3,
    "report-requested": 1,
    "model-served": 3,
    "run-closed": 1,
    "keys": 0,
    "dead-letters": 0,
}


@pytest.fixture(scope="module")
def stack() -> Iterator[ComposeStack]:
    """The stack, freshly built, on empty volumes."""
    stack = ComposeStack()
    stack.build()
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def command(stack: ComposeStack, folder: Path) -> subprocess.Popen[str]:
    """The quickstart, as a user runs it against a server."""
    line = [str(UNDERSTUDY), "run", str(RECIPE), "--server", stack.url, "--data", str(folder)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def latest(gateway: Gateway) -> RunState | None:
    """The latest run, if there is one and the gateway can be asked."""
    try:
        runs = gateway.runs()
        return gateway.run(runs[0].id) if runs else None
    except UnderstudyError:
        return None


@pytest.fixture(scope="module")
def undisturbed(stack: ComposeStack, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, str]]:
    """A quickstart that nobody disturbed: its id, and the digests of its artifacts."""
    process = command(stack, tmp_path_factory.mktemp("undisturbed"))
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said + stack.logs()
    assert "in-domain" in said
    with Gateway(stack.url) as gateway:
        run = latest(gateway)
    assert run
    return run.id, stack.artifacts(run.id)


def test_the_quickstart_runs_on_the_server(stack: ComposeStack, undisturbed: tuple[str, dict[str, str]]) -> None:
    run, artifacts = undisturbed
    assert {key.split("/")[1] for key in artifacts} >= {"datasets", "adapters", "answers", "measures", "reports"}
    assert stack.messages(run) == ONE_OF_EACH
    assert all(stack.restarts(service) == 0 for service in SERVICES)


def test_the_openai_sdk_brings_files_starts_a_run_and_talks_to_its_models(stack: ComposeStack, tmp_path: Path) -> None:
    client = openai.OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, timeout=180)
    recipe: dict[str, Any] = yaml.safe_load(small_recipe(tmp_path).read_text())

    def uploaded(path: str) -> str:
        return client.files.create(file=Path(path), purpose="user_data").id

    for dataset in recipe["datasets"].values():
        dataset["source"] = uploaded(dataset["source"])
    prompts = recipe["evaluation"]["panels"]["out-of-sample"]
    prompts["prompts"] = uploaded(prompts["prompts"])

    run: Any = client.post("/runs", body={"recipe": recipe}, cast_to=object)
    deadline = time.monotonic() + 600
    while run["status"] not in ("finished", "failed"):
        assert time.monotonic() < deadline, run
        time.sleep(1)
        run = client.get(f"/runs/{run['id']}", cast_to=object)
    assert run["status"] == "finished", run
    assert stack.messages(run["id"]) == ONE_OF_EACH

    served = [item["model"] for item in run["items"].values()]
    assert len(set(served)) == 3
    assert {model.id for model in client.models.list()} >= set(served)
    for model in served:
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Is this positive or negative? Broke after a week."}],
            max_tokens=8,
            temperature=0,
        )
        assert answer.choices[0].message.content


def test_the_death_of_any_container_loses_nothing_and_doubles_nothing(
    stack: ComposeStack, undisturbed: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    stack.down()
    stack.up()

    def at(station: str, done: int) -> Callable[[RunState], bool]:
        """While `station` is at work on some item, and has done that much."""

        def holds(run: RunState) -> bool:
            words = [item.progress for item in run.items.values()]
            return any(word and word.station == station and word.done >= done for word in words)

        return holds

    # Whom to kill, and when; in this order, so that each has come back to work before the next dies.
    plan: list[tuple[str, Callable[[RunState], bool]]] = [
        ("datagen", lambda run: run.status != "finished"),
        ("kafka", at("trainer", 10)),
        ("trainer", at("trainer", 30)),
        ("inference", lambda run: any(v.stage in ("serving", "evaluating") for v in run.items.values())),
        ("evaluator", at("evaluator", 20)),
        ("engine", at("evaluator", 1)),
    ]
    process = command(stack, tmp_path)
    deadline = time.monotonic() + 1500
    with Gateway(stack.url) as gateway:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            if plan and (run := latest(gateway)) and plan[0][1](run):
                service, _ = plan.pop(0)
                stack.kill(service)
    process.kill()
    said, _ = process.communicate()
    assert process.returncode == 0, said + stack.logs()
    assert not plan, f"not killed: {[service for service, _ in plan]}: {said}"
    assert {service: stack.restarts(service) for service in SERVICES} == dict.fromkeys(SERVICES, 1), stack.logs()
    run_id, artifacts = undisturbed
    assert stack.messages(run_id) == ONE_OF_EACH
    assert stack.artifacts(run_id) == artifacts
