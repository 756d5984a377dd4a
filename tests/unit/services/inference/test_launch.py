"""How vLLM is started: command line, environment, working directory."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from services.inference.guard import KEY
from services.inference.launch import become, command, environment, log_file, working_directory
from services.inference.settings import InferenceSettings
from understudy.bases import PLAIN_TEMPLATE, Base, resolve
from understudy.errors import Invalid
from understudy.service.token import internal_token


def test_the_command_line_follows_base_and_settings(settings: InferenceSettings) -> None:
    base = resolve("tiny", settings.models)
    line = command(base, settings, 1234, 32)
    option = dict(itertools.pairwise(line))
    assert option["--max-model-len"] == "512", "bounded by what the base can"
    assert option["--max-lora-rank"] == "32"
    assert "--chat-template" not in line, "the base has one of its own"
    assert "lm_head" not in line
    hub = Base(name="owner/name", path="owner/name", revision="abc", template=PLAIN_TEMPLATE)
    option = dict(itertools.pairwise(command(hub, settings, 1234, 16)))
    assert (option["--revision"], option["--tokenizer-revision"]) == ("abc", "abc")
    assert option["--chat-template"] == str(PLAIN_TEMPLATE)
    assert option["--max-model-len"] == "1024"


def test_on_a_gpu_the_engine_is_ready_for_adapters_and_nothing_holds_it_back(settings: InferenceSettings) -> None:
    base = resolve("tiny", settings.models)
    gpu = settings.model_copy(update={"engine_device": "cuda", "engine_dtype": "auto"})
    on_cpu, on_gpu = (command(base, each, 1234, 16) for each in (settings, gpu))

    def lora(line: list[str]) -> list[str]:
        return line[line.index("--enable-lora") : line.index("--lora-target-modules") + 20]

    assert lora(on_cpu) == lora(on_gpu)
    assert "--enforce-eager" in on_cpu
    assert "--enforce-eager" not in on_gpu
    assert dict(itertools.pairwise(on_gpu))["--gpu-memory-utilization"] == "0.45"
    assert environment(base, settings)["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in environment(base, gpu)


def test_an_engine_of_its_own_has_the_options_of_ours_and_answers_other_machines(
    settings: InferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[tuple[str, list[str], dict[str, str]]] = []
    went: list[Path] = []
    monkeypatch.setattr(os, "execve", lambda *call: became.append(call))
    monkeypatch.setattr(os, "chdir", went.append)
    become(settings.model_copy(update={"base": "tiny", "host": "0.0.0.0", "port": 8000, "max_lora_rank": 20}))
    [(program, line, env)] = became
    assert program == line[0] == sys.executable
    assert line == command(resolve("tiny", settings.models), settings, 8000, 32, host="0.0.0.0")
    assert went == [settings.models.resolve()]
    assert env.items() >= environment(resolve("tiny", settings.models), settings).items()
    assert settings.adapters().is_dir(), "it may be the first to start"
    with pytest.raises(Invalid, match="UNDERSTUDY_BASE is not set"):
        become(settings)
    (settings.data / "file").touch()
    with pytest.raises(Invalid, match="Mount there what inference writes"):
        become(settings.model_copy(update={"base": "tiny", "data": settings.data / "file"}))


def test_an_engine_of_its_own_asks_for_a_key_if_the_operator_set_one(
    settings: InferenceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever is in its network may ask: a file of its own would be a token that nobody else knows."""
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(os, "execve", lambda *call: environments.append(call[2]))
    monkeypatch.setattr(os, "chdir", lambda _: None)
    monkeypatch.delenv(KEY, raising=False)
    open_one = settings.model_copy(update={"base": "tiny"})
    for each in (open_one, open_one.model_copy(update={"internal_token": SecretStr("what-both-were-told")})):
        become(each)
    assert [env.get(KEY) for env in environments] == [None, "what-both-were-told"]


def test_no_key_is_on_the_command_line(settings: InferenceSettings) -> None:
    """Which everybody on the machine can read, and vLLM writes to its log."""
    token = internal_token(settings)
    assert token not in " ".join(command(resolve("tiny", settings.models), settings, 1234, 16))


def test_a_hub_name_makes_one_log_file(settings: InferenceSettings) -> None:
    hub = Base(name="owner/name", path="owner/name", revision="abc", template=None)
    assert log_file(settings, hub).name == "engine-owner--name.log"


def test_the_model_is_the_bases_name_wherever_it_lies(
    settings: InferenceSettings, make_base: Callable[..., Base], tmp_path: Path
) -> None:
    """An adapter says by name which base it belongs to, and the engine takes only those that name its --model."""
    elsewhere = make_base("mine", tmp_path / "elsewhere")
    (tmp_path / "linked").symlink_to(elsewhere.path)
    for base in (elsewhere, resolve("tiny", settings.models), resolve(str(tmp_path / "linked"), settings.models)):
        option = dict(itertools.pairwise(command(base, settings, 1234, 16)))
        assert option["--model"] == option["--served-model-name"] == base.name
        assert ((working_directory(base) or Path()) / option["--model"] / "config.json").is_file()
    hub = Base(name="owner/name", path="owner/name", revision="abc", template=None)
    assert dict(itertools.pairwise(command(hub, settings, 1234, 16)))["--model"] == "owner/name"
    assert working_directory(hub) is None
    assert environment(hub, settings)["VLLM_LORA_RESOLVER_CACHE_DIR"] == str(settings.adapters())


@pytest.mark.parametrize("url", ["https://host", "http://host/v1", "host:80"])
def test_an_engine_url_that_would_not_work_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(ValueError, match="engine_url"):
        InferenceSettings(engine_url=url)
