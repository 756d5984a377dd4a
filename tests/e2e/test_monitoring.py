"""A real run under a real Prometheus: every panel of the dashboard has data, and no rule fires."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from belt import ROOT, UNDERSTUDY, Belt, small_recipe

from understudy.service.ports import free_ports

prometheus = shutil.which("prometheus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(prometheus is None, reason="prometheus is not installed"),
]
DASHBOARD = json.loads((ROOT / "monitoring/grafana/dashboards/understudy.json").read_text())


@pytest.fixture
def belt(tmp_path: Path) -> Iterator[Belt]:
    """A stack that is up."""
    belt = Belt(small_recipe(tmp_path), tmp_path / "data")
    (port,) = free_ports(1)
    up = subprocess.Popen([str(UNDERSTUDY), "up", "--port", str(port), "--data", str(belt.data)])
    try:
        wait(lambda: (belt.data / "stack.json").exists(), 120)
        yield belt
    finally:
        up.terminate()
        up.wait(60)


@pytest.fixture
def targets(belt: Belt) -> Path:
    """The file that tells Prometheus whom to ask."""
    return belt.data / "targets.json"


@pytest.fixture
def query(belt: Belt, targets: Path) -> Iterator[Callable[..., list[dict[str, Any]]]]:
    """Asks a Prometheus with our own settings, but for the place where it finds its targets."""
    settings = yaml.safe_load((ROOT / "monitoring/prometheus.yml").read_text())
    settings["rule_files"] = [str(ROOT / "monitoring/rules.yml")]
    where = {"files": [str(targets)], "refresh_interval": "1s"}
    settings["scrape_configs"] = [{"job_name": "understudy", "file_sd_configs": [where]}]
    (belt.data / "prometheus.yml").write_text(yaml.safe_dump(settings))
    (port,) = free_ports(1)
    command = [str(prometheus), f"--config.file={belt.data}/prometheus.yml", f"--storage.tsdb.path={belt.data}/metrics"]
    process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"])
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:

        def ask(path: str, **parameters: object) -> list[dict[str, Any]]:
            answer = client.get(f"/api/v1/{path}", params=parameters).json()
            assert answer["status"] == "success", answer
            return list(answer["data"]["result"])

        yield ask
    process.terminate()
    process.wait(30)


def wait(until: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := until()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def engine_port(belt: Belt) -> str | None:
    lines = [line.split() for line in belt.processes().values() if "--served-model-name" in line]
    return next((line[line.index("--port") + 1] for line in lines), None)


def has_value(series: dict[str, Any]) -> bool:
    return any(not math.isnan(float(value)) for _, value in series.get("values") or [series["value"]])


def test_every_panel_has_data_and_no_rule_fires(
    belt: Belt, targets: Path, query: Callable[..., list[dict[str, Any]]]
) -> None:
    ports = json.loads((belt.data / "stack.json").read_text())["ports"]
    began = time.time()
    run = belt.start()
    ports["engine"] = wait(lambda: engine_port(belt), 120)
    groups = [{"targets": [f"127.0.0.1:{port}"], "labels": {"job": job}} for job, port in ports.items()]
    targets.write_text(json.dumps(groups))
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said

    ask = {"model": "seedling", "messages": [{"role": "user", "content": "Good?"}], "max_tokens": 8, "stream": True}
    for _ in range(3):
        answer = httpx.post(f"http://127.0.0.1:{ports['inference']}/v1/chat/completions", json=ask, timeout=60)
        assert answer.text.endswith("data: [DONE]\n\n")
    time.sleep(12)  # two more scrapes

    empty = []
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$__rate_interval", "20s").replace("$__range", "30m")
            if target.get("instant"):
                found = query("query", query=expression)
            else:
                found = query("query_range", query=expression, start=began, end=time.time(), step=5)
            if not any(map(has_value, found)):
                empty.append(f"{panel['title']}: {target['legendFormat']}")
    # Names of alerts that fire; and nothing is in hand any more.
    assert empty == ["Progress of what is in hand: {{station}} {{instance}}", "Alerts firing: {{alertname}}"]
    during = query("query_range", query="understudy_progress_done", start=began, end=time.time(), step=5)
    assert {series["metric"]["station"] for series in during} >= {"trainer", "evaluator"}
    [done] = query("query", query='sum(understudy_message_attempts_total{outcome!="done"})')
    assert float(done["value"][1]) == 0
