"""From the `base` of a recipe to a folder or hub id, and to its chat template.

Every station asks here, so trainer, engine and evaluator render a chat alike: a base without a template of its own
gets the pinned plain one. Loads no weights and no tokenizer."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from understudy.errors import Invalid
from understudy.plan import PlannedBase

PLAIN_TEMPLATE = Path(__file__).with_name("plain.jinja")
_END = 1 << 20
"""Bytes."""


@dataclass(frozen=True)
class Base:
    """A base model that can be loaded."""

    name: str
    """As users ask for it on the endpoint."""
    path: str
    """Folder, or hub id."""
    revision: str | None
    """Of a hub id."""
    template: Path | None
    """Chat template to impose; None when the base brings its own."""


def resolve(base: str, models: Path) -> Base:
    """Find `base`: a folder, a name under `models`, or a hub id `owner/name@revision`.

    Raises `Invalid` when it is none of these, or is a folder without a model.
    """
    for folder in (models / base, Path(base)):
        if _is_folder(folder):
            if not (folder / "config.json").is_file():
                raise Invalid(
                    f"Base model `{base}`: {folder} has no config.json", "Give a folder in Hugging Face format."
                )
            return Base(name=folder.name, path=str(folder.resolve()), revision=None, template=_template(folder))
    name, _, revision = base.partition("@")
    if base.startswith(("/", ".")) or name.count("/") != 1:
        known = sorted(path.parent.name for path in models.glob("*/config.json"))
        raise Invalid(
            f"There is no base model `{base}`",
            f"Give a folder, a hub id `owner/name@revision`, or one of those bundled in {models}: {', '.join(known) or 'none'}.",
        )
    if not revision:
        raise Invalid(
            f"Base model `{base}` carries no revision", f"Pin it: `{name}@<commit>`, so that the run can be repeated."
        )
    return Base(name=name, path=name, revision=revision, template=None)


def planned(reference: str, models: Path) -> PlannedBase:
    """What a plan says of the base `reference`; raises as `resolve`."""
    base = resolve(reference, models)
    local = base.revision is None
    return PlannedBase(
        name=base.name,
        reference=reference,
        revision=base.revision,
        fingerprint=fingerprint(Path(base.path)) if local else None,
    )


def as_planned(planned: PlannedBase, models: Path) -> Base:
    """The base that a plan names; raises as `resolve`, and `Invalid` when it is another one than the plan was made with."""
    base = resolve(planned.reference, models)
    if planned.fingerprint and (base.revision or fingerprint(Path(base.path)) != planned.fingerprint):
        raise Invalid(
            f"Base model `{base.name}` in {base.path} was changed since the run was planned",
            "Put back what was there, or start the run anew (`understudy run --fresh`) with what is there now.",
        )
    return base


def fingerprint(folder: Path) -> str:
    """Tells two models in folders apart in milliseconds: config and tokenizer whole, of the weights name, size and both ends."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model") and path.is_file():
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                if path.suffix == ".safetensors" and size > 2 * _END:
                    digest.update(file.read(_END))
                    file.seek(-_END, 2)
                digest.update(file.read())
    return digest.hexdigest()


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than any can be, a folder that we may not look into
        return False


def _template(folder: Path) -> Path | None:
    if (folder / "chat_template.jinja").is_file():
        return None
    config = folder / "tokenizer_config.json"
    if config.is_file() and json.loads(config.read_text(encoding="utf-8")).get("chat_template"):
        return None
    return PLAIN_TEMPLATE
