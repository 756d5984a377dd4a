"""The whole belt, started by the command a user types: complete, resumable, and unmoved by kill -9 of any of its processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from belt import UNDERSTUDY, Belt, small_recipe

from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.folds.control import Control
from understudy.belt.folds.reader import Reader
from understudy.belt.folds.runs import Runs
from understudy.belt.folds.views import RunState
from understudy.belt.topics import TABLE

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def messages(belt: Belt) -> dict[str, int]:
    """Topic -> messages on the bus, apart from progress."""
    bus = EmbeddedBus(belt.data / "bus.sqlite")
    return {topic.name: sum(1 for r in bus.replay([topic.name]) if r) for topic in TABLE if topic.name != "progress"}


def state(belt: Belt) -> RunState | None:
    if not (belt.data / "bus.sqlite").exists():
        return None
    bus = EmbeddedBus(belt.data / "bus.sqlite")
    control = Control()
    runs = Runs(control)
    Reader(bus, [control, runs]).load()
    bus.close()
    page = runs.page(None, 1)
    return runs.get(page[0][0].id) if page and page[0] else None


def test_a_run_ends_with_a_table_and_a_page(undisturbed: tuple[Belt, str]) -> None:
    belt, said = undisturbed
    for panel in ("in-domain", "general", "out-of-sample"):
        assert panel in said
    assert re.search(r"\[\s*\d", said), "no intervals in the table"
    [page] = (belt.data / "reports").glob("*.html")
    text = page.read_text()
    assert "<svg" in text
    assert not re.search(r"""(src|href)=["']?https?://""", text), "the page must work without a network"
    assert not belt.processes()


def test_nothing_is_doubled_on_the_bus(undisturbed: tuple[Belt, str]) -> None:
    assert messages(undisturbed[0]) == {
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


def test_the_same_command_again_shows_the_result_at_once(undisturbed: tuple[Belt, str]) -> None:
    belt, _ = undisturbed
    before = belt.artifacts()
    began = time.monotonic()
    again = subprocess.run(belt.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert again.returncode == 0, again.stdout
    assert time.monotonic() - began < 60
    assert "in-domain" in again.stdout
    assert belt.artifacts() == before
    assert messages(belt)["training-requested"] == 2


def test_the_report_says_what_was_measured(undisturbed: tuple[Belt, str]) -> None:
    belt, _ = undisturbed
    key = next(key for key in belt.artifacts() if "/reports/" in key)
    manifest = belt.data / "artifacts/manifests" / f"{belt.artifacts()[key]}.json"
    files = json.loads(manifest.read_text())
    report: dict[str, Any] = json.loads((belt.data / "artifacts/blobs" / files["report.json"]["sha256"]).read_text())
    panels = {panel["name"]: panel for panel in report["panels"]}
    assert [panel["n"] for panel in panels.values()] == [40, 12, 24]
    for panel in panels.values():
        for metric in panel["metrics"]:
            assert set(metric["cells"]) == {"base", "remarks-only", "remarks+general"}
            for cell in metric["cells"].values():
                assert cell["low"] <= cell["value"] <= cell["high"]


def kill(belt: Belt, pattern: str) -> bool:
    """SIGKILL the one process whose command matches; False while there is none."""
    for pid, command in belt.processes().items():
        if re.search(pattern, command) and "child.py" not in command:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


@pytest.mark.long
def test_kill_9_of_every_process_leaves_the_same_artifacts(tmp_path: Path, undisturbed: tuple[Belt, str]) -> None:
    belt = Belt(small_recipe(tmp_path), tmp_path / "data")

    def at(station: str, done: int) -> Callable[[RunState], bool]:
        """While `station` is at work on some item, and has done that much."""

        def holds(run: RunState) -> bool:
            words = [v.progress for v in run.items.values()]
            return any(p and p.station == station and p.done >= done for p in words)

        return holds

    # What to kill, and when; the names are of the command lines.
    plan: list[tuple[str, str, Callable[[RunState], bool]]] = [
        ("datagen", r"-m services\.datagen", lambda run: True),
        ("trainer", r"-m services\.trainer$|-m services\.trainer ", at("trainer", 4)),
        ("training", r"services\.trainer\.train ", at("trainer", 7)),
        ("inference", r"-m services\.inference", lambda run: any(v.stage == "serving" for v in run.items.values())),
        ("evaluator", r"-m services\.evaluator", at("evaluator", 1)),
        (
            "engine",
            r"vllm\.entrypoints|VLLM::EngineCore",
            lambda run: sum(v.stage == "evaluating" for v in run.items.values()) > 0,
        ),
    ]
    killed: list[str] = []
    process = belt.start()
    deadline = time.monotonic() + 540
    try:
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            run = state(belt)
            for name, pattern, due in plan:
                if run and name not in killed and due(run) and kill(belt, pattern):
                    killed.append(name)
        said, _ = process.communicate(timeout=10)
    finally:
        process.kill()
    assert process.returncode == 0, said
    assert sorted(killed) == sorted(name for name, *_ in plan), f"killed only {killed}: {said}"
    assert belt.artifacts() == undisturbed[0].artifacts()
    assert messages(belt) == messages(undisturbed[0])
    assert not belt.processes()


def until(belt: Belt, process: subprocess.Popen[str], holds: Callable[[RunState], bool]) -> None:
    """Wait while the run is not there yet."""
    deadline = time.monotonic() + 240
    while not ((run := state(belt)) and holds(run)):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.long
def test_ctrl_c_and_kill_9_of_the_command_end_everything_and_it_resumes(
    tmp_path: Path, undisturbed: tuple[Belt, str]
) -> None:
    belt = Belt(small_recipe(tmp_path), tmp_path / "data")

    def training(run: RunState) -> bool:
        return any(v.stage == "training" and v.progress and v.progress.done >= 3 for v in run.items.values())

    process = belt.start()
    until(belt, process, training)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "same command" in said
    assert not belt.processes()

    process = belt.start()
    until(belt, process, lambda run: any(v.stage == "evaluating" for v in run.items.values()))
    process.kill()
    process.communicate()
    gone = time.monotonic() + 10
    while belt.processes() and time.monotonic() < gone:
        time.sleep(0.1)
    assert not belt.processes(), "orphans"

    done = subprocess.run(belt.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400)
    assert done.returncode == 0, done.stdout
    assert belt.artifacts() == undisturbed[0].artifacts()


def test_a_full_disk_is_said_in_a_paragraph_and_nothing_is_lost(tmp_path: Path) -> None:
    belt = Belt(small_recipe(tmp_path), tmp_path / "data")
    belt.data.mkdir()
    small = ["mount", "-t", "tmpfs", "-o", "size=900k", "none", str(belt.data)]
    if subprocess.run(small, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        done = subprocess.run(belt.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
        assert done.returncode == 1, done.stdout
        assert re.search(r"full\. Free some space .*same command: it resumes", done.stdout)
        assert "Traceback" not in done.stdout
        assert not belt.processes()
        subprocess.run(["mount", "-o", "remount,size=50m", str(belt.data)], check=True)
        run = state(belt)
        assert run
        assert run.status != "failed"
    finally:
        subprocess.run(["umount", "-l", str(belt.data)], check=True)


def test_the_openai_sdk_talks_to_base_and_adapters(undisturbed: tuple[Belt, str]) -> None:
    """`understudy up` on the finished data folder: its models are served again, from the log alone."""
    import openai

    belt, _ = undisturbed
    command = [str(UNDERSTUDY), "up", "--data", str(belt.data), "--port", "18473"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = openai.OpenAI(base_url="http://127.0.0.1:18473/v1", api_key="none", max_retries=0, timeout=180)
        deadline = time.monotonic() + 60
        while True:
            try:
                models = [model.id for model in client.models.list()]
                break
            except (openai.APIConnectionError, httpx.HTTPError, openai.InternalServerError):
                assert time.monotonic() < deadline
                time.sleep(0.5)
        assert len(models) == 3
        question: Any = [{"role": "user", "content": "Is this positive or negative? Broke after a week."}]
        for model in models:
            answer = client.chat.completions.create(model=model, messages=question, max_tokens=8, temperature=0)
            whole = answer.choices[0].message.content
            parts = client.chat.completions.create(
                model=model, messages=question, max_tokens=8, temperature=0, stream=True
            )
            assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="nobody", messages=question)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) is not None
    assert not belt.processes()
