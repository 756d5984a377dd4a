"""The dashboard and the rules name only metrics that exist, and the files that carry them fit together."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

import services.datagen.build
import services.datagen.generate
import services.inference.engine
import services.inference.meter  # noqa: F401 (their metrics register with the import)
from understudy.belt.bus.embedded import EmbeddedBus
from understudy.belt.telemetry import Lag, Outcome

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/understudy.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = yaml.safe_load((MONITORING / "rules.yml").read_text())["groups"][0]["rules"]
EXPRESSIONS = {f"{p['title']} {t['refId']}": t["expr"] for p in PANELS for t in p["targets"]} | {
    rule["alert"]: rule["expr"] for rule in RULES
}
NAMES = re.compile(r"\b(?:understudy_|vllm:|process_)\w+")
promtool = shutil.which("promtool")


def samples(collector: Collector) -> set[str]:
    """Names as they stand in /metrics, of metrics with or without a value."""
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {f.name + end for f in collector.describe() for end in ends.get(f.type, ("",))}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every metric of ours, of Python's client, and of the installed engine."""
    ours = set().union(*(samples(c) for c in REGISTRY._collector_to_names if hasattr(c, "describe")))
    lag = samples(Lag(EmbeddedBus(tmp_path_factory.mktemp("bus") / "bus.sqlite"), "trainer", ["trainer"]))
    said = {"done", "total"}  # and the figures that services put into Progress
    for path in (ROOT / "services").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Dict):
                said |= {key.value for key in node.keys if isinstance(key, ast.Constant) and isinstance(key.value, str)}
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    source = (Path(spec.origin).parent / "v1/metrics/loggers.py").read_text()
    engine = {
        name + end
        for name in re.findall(r'"(vllm:\w+)"', source)
        for end in ("", "_total", "_bucket", "_sum", "_count")
    }
    return ours | lag | engine | {f"understudy_progress_{name}" for name in said} | {"process_resident_memory_bytes"}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_metric_that_is_asked_for_exists(name: str, exported: set[str]) -> None:
    asked = set(NAMES.findall(EXPRESSIONS[name]))
    assert asked or re.search(r"\b(up|ALERTS)\b", EXPRESSIONS[name])
    assert asked <= exported


def test_outcomes_are_spelt_as_in_the_code() -> None:
    spelt = set(re.findall(r'outcome!?="(\w+)"', " ".join(EXPRESSIONS.values())))
    assert spelt
    assert spelt <= set(get_args(Outcome))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 30
    assert panel["fieldConfig"]["defaults"]["unit"]
    source = yaml.safe_load((MONITORING / "grafana/datasources/prometheus.yml").read_text())["datasources"][0]["uid"]
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert target["datasource"]["uid"] == source


def test_panels_neither_overlap_nor_leave_the_screen() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24, place
        assert place["y"] + place["h"] <= 24, "more than one screen"
    for one, other in itertools.combinations(places, 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y, (one, other)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)


def test_the_files_fit_together() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    asked = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    source = yaml.safe_load((MONITORING / "grafana/datasources/prometheus.yml").read_text())["datasources"][0]
    ports = {name: look["port"] for look in asked["scrape_configs"][0]["dns_sd_configs"] for name in look["names"]}
    assert ports == {"datagen": 8000, "trainer": 8000, "inference": 8001, "evaluator": 8000, "engine": 8000}
    assert set(ports) == set(compose) - {"kafka", "prometheus", "grafana"}
    for name in ports:
        assert set(compose[name]["networks"]) & set(compose["prometheus"]["networks"]), name
    assert source["jsonData"]["timeInterval"] == asked["global"]["scrape_interval"]
    for name in ("prometheus", "grafana"):
        assert compose[name]["profiles"] == ["monitoring"]
        mounted = [v.split(":")[0] for v in compose[name]["volumes"] if v.startswith(".")]
        assert mounted
        assert all((ROOT / path).is_dir() for path in mounted)


def test_every_rule_is_tested_to_fire_and_to_be_silent() -> None:
    cases = yaml.safe_load((MONITORING / "rules_test.yml").read_text())["tests"]
    tested = [(case["alertname"], bool(case.get("exp_alerts"))) for test in cases for case in test["alert_rule_test"]]
    assert set(tested) == {(rule["alert"], fires) for rule in RULES for fires in (True, False)}


@pytest.mark.skipif(promtool is None, reason="promtool is not installed")
@pytest.mark.parametrize("check", [("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")])
def test_promtool_agrees(check: tuple[str, ...]) -> None:
    done = subprocess.run([str(promtool), *check], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
