"""What cannot be served, or is not allowed, is refused at the door by the setting that would change it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.datagen.servable import Servable
from understudy import recipe
from understudy.errors import Invalid


def asked(**more: Any) -> recipe.Recipe:
    return recipe.parse({"datasets": {"d": {"source": "file-1"}}, **more}, "the recipe")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name in ("seedling", "../outside"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.json").write_text("{}")
    return tmp_path / "models"


def test_only_what_the_operator_allows_is_a_base(models: Path) -> None:
    some = Servable(models, ("mistralai/*@*",))
    for allowed in ("seedling", "mistralai/Mistral-7B-v0.1@abc"):
        some.check(asked(base=allowed))
    for strange in (str(models / "seedling"), "../outside", "./seedling", "owner/name@abc", "/etc", "nobody"):
        with pytest.raises(Invalid, match="UNDERSTUDY_BASES"):
            some.check(asked(base=["seedling", strange]))
        Servable(models).check(asked(base=strange))
    with pytest.raises(Invalid, match="UNDERSTUDY_BASES"):
        Servable(models, ("/*",)).check(asked(base="/etc"))


def test_what_a_remote_engine_cannot_serve_is_not_trained(models: Path) -> None:
    engine = Servable(models, (), engine_base="owner/name@abc", max_lora_rank=16)
    engine.check(asked(base="owner/name@abc", training={"lora": {"r": 16}}))
    with pytest.raises(Invalid, match="UNDERSTUDY_MAX_LORA_RANK=64"):
        engine.check(asked(base="owner/name@abc", training={"lora": {"r": 64}}))
    own = {"v": {"train": "d", "training": {"lora": {"r": 32}}}}
    with pytest.raises(Invalid, match="`v` has rank 32"):
        engine.check(asked(base="owner/name@abc", variants=own))
    with pytest.raises(Invalid, match="sets UNDERSTUDY_BASE"):
        engine.check(asked(base="seedling"))
