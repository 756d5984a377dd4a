"""From the recipe file to the recipe that is sent: sources and base replaced as asked, local files checked and uploaded.

Everything that can be wrong on this side is found before anything is started. Keys that the user did not write stay unset,
because a run's id follows from what was written. Does not look inside data files (datagen does).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from understudy.errors import Invalid
from understudy.hints import meant
from understudy.recipe import FILE_ID, HUB, Recipe, load


def prepare(path: Path, sources: Sequence[str] = (), base: str | None = None, models: Path | None = None) -> Recipe:
    """The recipe at `path` with `--source` and `--base` applied and every local path absolute and readable.

    `models` is the folder of bundled bases: a name found there stays a name. Raises `Invalid` naming file and remedy.
    """
    recipe = load(path)
    changes: dict[str, Any] = {}
    if sources:
        changes["datasets"] = dict(recipe.datasets)
        for given in sources:
            name, file = _named(given, recipe)
            absolute = str(Path(file).expanduser().absolute())
            changes["datasets"][name] = changes["datasets"][name].model_copy(update={"source": absolute})
    if base:
        changes["base"] = _base(base, Path(), models)
    elif "base" in recipe.model_fields_set:
        found = tuple(_base(each, path.parent, models) for each in recipe.bases())
        changes["base"] = found[0] if isinstance(recipe.base, str) else found
    recipe = recipe.model_copy(update=changes)
    return map_files(recipe, lambda source, where: str(_checked(path.parent, source, where)))


def upload(recipe: Recipe, send: Callable[[Path], str]) -> Recipe:
    """The recipe with every local file replaced by the id that `send` gave for it."""
    ids: dict[str, str] = {}
    return map_files(recipe, lambda source, _: ids.get(source) or ids.setdefault(source, send(Path(source))))


def map_files(recipe: Recipe, change: Callable[[str, str], str]) -> Recipe:
    """`recipe` with `change(path, where)` in the place of every local path; hub names and file ids stay."""

    def changed(source: str, where: str) -> str:
        return source if source.startswith(HUB) or FILE_ID.fullmatch(source) else change(source, where)

    changes: dict[str, Any] = {
        "datasets": {
            name: dataset.model_copy(update={"source": changed(dataset.source, f"datasets.{name}.source")})
            for name, dataset in recipe.datasets.items()
        }
    }
    if recipe.evaluation.panels:
        panels = {
            name: panel.model_copy(update={"prompts": changed(panel.prompts, f"evaluation.panels.{name}.prompts")})
            if panel.prompts
            else panel
            for name, panel in recipe.evaluation.panels.items()
        }
        changes["evaluation"] = recipe.evaluation.model_copy(update={"panels": panels})
    return recipe.model_copy(update=changes)


def _named(given: str, recipe: Recipe) -> tuple[str, str]:
    """(dataset, file) of one --source: `FILE` means the first `classify` dataset, `NAME=FILE` the one named."""
    name, equals, file = given.partition("=")
    if equals and name in recipe.datasets:
        return name, file
    if equals and not Path(given).exists():
        raise Invalid(f"--source {given}: the recipe has no dataset `{name}`", f"It has: {', '.join(recipe.datasets)}.")
    first = next((name for name, dataset in recipe.datasets.items() if dataset.has_classes), None)
    if first is None:
        raise Invalid(
            f"--source {given}: the recipe has no `classify` dataset", "Name the one to replace: --source NAME=FILE."
        )
    return first, given


def _checked(folder: Path, source: str, where: str) -> Path:
    path = folder / Path(source).expanduser()
    try:
        if path.is_dir():
            raise Invalid(f"{where}: {path} is a folder", "Name one CSV, JSON, JSONL or Parquet file.")
        with path.open("rb") as file:
            if not file.read(1):
                raise Invalid(f"{where}: {path} is empty", "Give a file with a header and rows.")
    except FileNotFoundError:
        beside = [each.name for each in path.parent.iterdir()] if os.access(path.parent, os.R_OK) else []
        raise Invalid(
            f"{where}: there is no file {path}{meant(path.name, beside)}",
            "Paths in a recipe start at its folder; hub data is `hf:owner/name@revision`.",
        ) from None
    except OSError as error:
        raise Invalid(f"{where}: cannot read {path}: {error.strerror}", "Check its permissions.") from None
    return path.absolute()


def _base(base: str, folder: Path, models: Path | None) -> str:
    """A base given as a folder, absolute, because services run elsewhere; anything else as it is."""
    if models and (models / base).is_dir():
        return base
    path = folder / Path(base).expanduser()
    return str(path.resolve()) if path.is_dir() else base
