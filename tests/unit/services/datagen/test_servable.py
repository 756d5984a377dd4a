"""What cannot be served, or is not allowed, is refused at the door by the setting that would change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.datagen.servable import Engine, Servable
from services.datagen.tasks.task import Models
from understudy import recipe
from understudy.errors import Invalid
from understudy.llm.providers import Endpoint, Providers

LOCAL = Models(Providers({"local": Endpoint(base_url="http://10.0.0.5:8000/v1")}), tries=3)


def asked(**more: Any) -> recipe.Recipe:
    return recipe.parse({"datasets": {"d": {"source": "file-1"}}, **more}, "the recipe")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("seedling", "../outside"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    return tmp_path / "models"


STRANGE = [
    "../outside",
    "./seedling",
    "seedling/",
    "owner/name@abc",
    "/etc",
    "~",
    "nobody",
    "x" * 1000,
    "..",
    ".",
]


def test_only_what_the_operator_allows_is_a_base(models: Path) -> None:
    some = Servable(models, LOCAL, ("mistralai/*@*",))
    for allowed in ("seedling", "mistralai/Mistral-7B-v0.1@abc"):
        some.check(asked(base=allowed))
    for strange in (*STRANGE, str(models / "seedling"), "mistralai/x", "mistralai/../../etc@abc", "mistralai/x/y@abc"):
        with pytest.raises(Invalid, match="UNDERSTUDY_BASES") as caught:
            some.check(asked(base=["seedling", strange]))
        assert str(models.parent) not in str(caught.value).replace(strange, "")
        Servable(models, LOCAL, ("*",)).check(asked(base=strange))
    with pytest.raises(Invalid, match="UNDERSTUDY_BASES"):
        Servable(models, LOCAL, ("/*",)).check(asked(base="/etc"))
    Servable(models, LOCAL, base="/models/own").check(asked(base="/models/own"))


def test_what_a_remote_engine_cannot_serve_is_not_trained(models: Path) -> None:
    engine = Servable(models, LOCAL, ("*",), base="owner/name@abc", engine=Engine(max_lora_rank=16, max_model_len=1024))
    engine.check(asked(base="owner/name@abc", training={"lora": {"r": 16}}))
    with pytest.raises(Invalid, match="UNDERSTUDY_MAX_LORA_RANK=64"):
        engine.check(asked(base="owner/name@abc", training={"lora": {"r": 64}}))
    own = {"v": {"train": "d", "training": {"lora": {"r": 32}}}}
    with pytest.raises(Invalid, match="`v` has rank 32"):
        engine.check(asked(base="owner/name@abc", variants=own))
    with pytest.raises(Invalid, match=r"the engine serves here, `owner/name@abc`.*set UNDERSTUDY_BASE"):
        engine.check(asked(base="seedling"))
    for tokens, fits in ((1023, True), (1024, False), (4096, False)):
        panels = {"p": {"dataset": "d", "metrics": ["f1"], "max_tokens": tokens}}
        recipe = asked(base="owner/name@abc", evaluation={"panels": panels})
        if fits:
            engine.check(recipe)
        else:
            with pytest.raises(Invalid, match=r"panel `p` .*raise UNDERSTUDY_MAX_MODEL_LEN"):
                engine.check(recipe)
            Servable(models, LOCAL, ("*",)).check(recipe)


def test_where_the_engines_base_lies_is_not_told(models: Path) -> None:
    engine = Servable(models, LOCAL, base="/srv/secret/mine", engine=Engine(16, 1024))
    with pytest.raises(Invalid, match="the engine serves here, `mine`"):
        engine.check(asked(base="seedling"))


def test_a_provider_is_one_that_the_operator_has_set(models: Path) -> None:
    def by(provider: str) -> recipe.Recipe:
        generator = {"kind": "llm", "model": "m", "provider": provider}
        return asked(datasets={"d": {"source": "file-1", "generator": generator}})

    for known in ("openai", "local"):
        Servable(models, LOCAL).check(by(known))
    with pytest.raises(Invalid, match=r"no provider `other` \(known: local, openai\)"):
        Servable(models, LOCAL).check(by("other"))


def test_no_source_is_a_path(models: Path) -> None:
    for source in ("/etc/passwd", "t.csv", "hf:/etc", "hf:owner/name"):
        for more in (
            {"datasets": {"d": {"source": source}}},
            {"evaluation": {"panels": {"p": {"prompts": source, "metrics": []}}}},
        ):
            with pytest.raises(Invalid, match=r"is neither an uploaded file|not of the form|carries no revision"):
                Servable(models, LOCAL).check(asked(**more))
