"""`base` of a recipe becomes a folder or a pinned hub id, or an error with the remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from understudy.bases import PLAIN_TEMPLATE, as_planned, fingerprint, planned, resolve
from understudy.errors import Invalid


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text("{}")
    return tmp_path


def test_a_bundled_name_and_a_folder_are_the_same(models: Path) -> None:
    assert resolve("tiny", models) == resolve(str(models / "tiny"), Path("/nowhere"))
    assert resolve("tiny", models).name == "tiny"


def test_a_base_without_a_template_gets_the_plain_one(models: Path) -> None:
    assert resolve("tiny", models).template == PLAIN_TEMPLATE
    (models / "tiny/tokenizer_config.json").write_text(json.dumps({"chat_template": "x"}))
    assert resolve("tiny", models).template is None


def test_a_hub_id_carries_a_revision(models: Path) -> None:
    base = resolve("owner/name@abc", models)
    assert (base.name, base.path, base.revision) == ("owner/name", "owner/name", "abc")
    with pytest.raises(Invalid, match="no revision"):
        resolve("owner/name", models)


def test_what_does_not_exist_is_named_with_what_does(models: Path) -> None:
    for base in ("huge", "/no/such/folder", "./x", "a/b/c", "x" * 300, "nul\0"):
        with pytest.raises(Invalid, match=r"(?s)no base model.*bundled.*tiny") as caught:
            resolve(base, models)
        assert str(models) not in str(caught.value)
    (models / "empty").mkdir()
    with pytest.raises(Invalid, match=r"no config\.json"):
        resolve("empty", models)


@pytest.mark.parametrize("content", ["", '{"a": ', "[1]", "null", "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_a_damaged_file_is_named_with_the_remedy(models: Path, name: str, content: str) -> None:
    (models / "tiny" / name).write_text(content)
    with pytest.raises(Invalid, match=rf"(?s)Base model `tiny`: its {name} cannot be read .*download it again"):
        planned("tiny", models)


def test_a_base_is_the_one_that_was_planned_or_an_error(models: Path) -> None:
    plan = planned("tiny", models)
    assert as_planned(plan, models) == resolve("tiny", models)
    assert as_planned(planned("owner/name@abc", models), models).revision == "abc", "a revision says it all"
    (models / "tiny/config.json").write_text('{"architectures": []}')
    with pytest.raises(Invalid, match=r"`tiny` was changed since the run was planned.*--fresh"):
        as_planned(plan, models)


def test_a_plan_names_a_folder_by_its_fingerprint_and_a_hub_id_by_its_revision(models: Path) -> None:
    local, hub = planned("tiny", models), planned("owner/name@abc", models)
    assert (local.name, local.reference, local.revision) == ("tiny", "tiny", None)
    assert local.fingerprint == fingerprint(models / "tiny")
    assert (hub.name, hub.reference, hub.revision, hub.fingerprint) == ("owner/name", "owner/name@abc", "abc", None)


def test_a_fingerprint_sees_all_of_the_tokenizer_and_both_ends_of_the_weights(models: Path) -> None:
    folder = models / "tiny"
    large = bytearray(5 << 20)
    for name in ("tokenizer.json", "model.safetensors", "README.md"):
        (folder / name).write_bytes(large)
    seen = [fingerprint(folder)]

    def changed(name: str, place: int) -> bool:
        (folder / name).write_bytes(large[:place] + b"x" + large[place + 1 :])
        seen.append(fingerprint(folder))
        return seen[-1] != seen[-2]

    assert changed("tokenizer.json", 2 << 20), "the middle of a large one too"
    assert changed("model.safetensors", 8)
    assert changed("model.safetensors", len(large) - 1)
    assert not changed("README.md", 8)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert fingerprint(folder) != seen[-1]
