"""From the `base` of a recipe to a folder or hub id, and to its chat template.

Every station asks here, so trainer, engine and evaluator render a chat alike: a base without a template of its own
gets the pinned plain one. Loads no weights and no tokenizer, but says at once when one of a folder's JSON files is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from understudy.errors import Invalid
from understudy.plan import PlannedBase

PLAIN_TEMPLATE = Path(__file__).with_name("plain.jinja")
_END = 1 << 20
"""Bytes."""
MOST_HEADER = 100_000_000
"""Bytes that safetensors allows the header of a file."""


@dataclass(frozen=True)
class Base:
    """A base model that can be loaded."""

    name: str
    """As users ask for it on the endpoint."""
    path: str
    """Folder, whose last part is the name, or hub id."""
    revision: str | None
    """Of a hub id."""
    template: Path | None
    """Chat template to impose; None when the base brings its own."""


def resolve(base: str, models: Path) -> Base:
    """Find `base`: a folder, a name under `models`, or a hub id `owner/name@revision`.

    Raises `Invalid` when it is none of these, or is a folder without a model or with a damaged config.
    """
    for folder in (models / base, Path(base)):
        if _is_folder(folder):
            if not (folder / "config.json").is_file():
                raise Invalid(f"Base model `{base}` has no config.json", "Give a folder in Hugging Face format.")
            document(folder, "config.json")
            path, called = folder.resolve(), Path(os.path.abspath(folder))  # noqa: PTH100
            if path.name != called.name:  # it is a link; the name is what people ask for
                path = called.parent.resolve() / called.name
            return Base(name=path.name, path=str(path), revision=None, template=_template(folder))
    name, _, revision = base.partition("@")
    if base.startswith(("/", ".")) or name.count("/") != 1:
        known = sorted(path.parent.name for path in models.glob("*/config.json"))
        raise Invalid(
            f"There is no base model `{base}`",
            f"Give a folder, a hub id `owner/name@revision`, or one of those bundled: {', '.join(known) or 'none'}.",
        )
    if not revision:
        raise Invalid(
            f"Base model `{base}` carries no revision", f"Pin it: `{name}@<commit>`, so that the run can be repeated."
        )
    return Base(name=name, path=name, revision=revision, template=None)


def planned(reference: str, models: Path) -> PlannedBase:
    """What a plan says of the base `reference`; raises as `resolve`, and `Invalid` when a folder's files cannot be read."""
    base = resolve(reference, models)
    found = None
    if base.revision is None:
        folder = Path(base.path)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            document(folder, name)
        try:
            found = fingerprint(folder)
        except OSError as error:
            raise damaged(Path(error.filename or folder / "config.json"), str(error.strerror)) from error
    return PlannedBase(name=base.name, reference=reference, revision=base.revision, fingerprint=found)


def as_planned(planned: PlannedBase, models: Path) -> Base:
    """The base that a plan names; raises as `resolve`, and `Invalid` when it is another one than the plan was made with."""
    base = resolve(planned.reference, models)
    if planned.fingerprint and (base.revision or fingerprint(Path(base.path)) != planned.fingerprint):
        raise Invalid(
            f"Base model `{base.name}` was changed since the run was planned",
            "Put back what was there, or start the run anew (`understudy run --fresh`) with what is there now.",
        )
    return base


def tensors(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """What the header of a safetensors file says: tensor -> {dtype, shape, data_offsets}, and the byte at which the data begins.

    Raises OSError, or ValueError and its like where there is no such header. Looks at no weight.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > min(path.stat().st_size - 8, MOST_HEADER):
            raise ValueError(f"its header of {length} bytes is not all there")
        header = json.loads(file.read(length)).items()
    return {name: entry for name, entry in header if name != "__metadata__"}, 8 + length


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


def document(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a model's folder; empty when there is none. Raises `Invalid` when it cannot be read."""
    path = folder / name
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, str(getattr(error, "strerror", None) or error)) from error
    if not isinstance(found, dict):
        raise damaged(path, "it is no object")
    return found


def damaged(path: Path, why: str) -> Invalid:
    """The error for a file of a model's folder that cannot be read. Says no path: who asked for the base may be far away."""
    words = " ".join(why.split())[:300]
    return Invalid(
        f"Base model `{path.parent.name}`: its {path.name} cannot be read ({words})",
        "Is it whole? Copy or download it again.",
    )


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name longer than any can be, a folder that we may not look into
        return False


def _template(folder: Path) -> Path | None:
    if (folder / "chat_template.jinja").is_file():
        return None
    return None if document(folder, "tokenizer_config.json").get("chat_template") else PLAIN_TEMPLATE
