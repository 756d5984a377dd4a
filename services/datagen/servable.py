"""What of a recipe this installation can serve, and what its operator allows: asked at the door, before anything is paid for.

A base is a bundled one, the operator's own, or one that UNDERSTUDY_BASES names; a provider of language models is one that the operator
has set. Where the engine runs elsewhere it has one base, adapters up to one rank and answers up to one length, so what it cannot serve
is not trained either. Looks at no path that a recipe names, knows no HTTP, starts nothing. What a source may be says
`sources.check`, which the station asks as well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from services.datagen.sources import check
from services.datagen.tasks.task import Models
from understudy.errors import Invalid
from understudy.recipe import Panel, Recipe, Variant

EVERYTHING = "*"
_BUNDLED = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}", re.ASCII)
_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}@[A-Za-z0-9][\w.-]{0,99}", re.ASCII)
SHOWN = 200
"""Characters of a base's name in an error."""


@dataclass(frozen=True)
class Engine:
    """One that runs elsewhere, as it was started."""

    max_lora_rank: int
    max_model_len: int
    """Tokens of a question and its answer."""


@dataclass(frozen=True)
class Servable:
    """`check(recipe)`; raises `Invalid` that names the setting which would allow it."""

    models: Path
    """Folder of bundled bases."""
    language_models: Models
    bases: tuple[str, ...] = ()
    """Patterns of hub ids; `*` alone allows all of them, and folders."""
    base: str = ""
    """The operator's own: it needs no pattern."""
    engine: Engine | None = None
    """It has that base alone. None: engines are started as they are needed."""

    def check(self, recipe: Recipe) -> None:
        """Everything that a recipe names, whether or not it is there."""
        for base in recipe.bases():
            self._check_base(base)
        for dataset in recipe.datasets.values():
            check(dataset.source)
            self.language_models.check(dataset.generator)
        for name, variant in recipe.trained().items():
            self._check_rank(name, recipe, variant)
        for name, panel in recipe.evaluation.panels.items():
            if panel.prompts is not None:
                check(panel.prompts)
            self._check_length(name, panel)

    def _check_base(self, base: str) -> None:
        if self.engine and base != self.base:
            served = self.base if _HUB.fullmatch(self.base) else Path(self.base).name
            raise Invalid(
                f"The base `{base[:SHOWN]}` is not the one that the engine serves here, `{served}`",
                "Take that one, or have whoever runs the engine set UNDERSTUDY_BASE to yours.",
            )
        bundled = _BUNDLED.fullmatch(base) and (self.models / base / "config.json").is_file()
        if not bundled and base != self.base and not any(_allows(pattern, base) for pattern in self.bases):
            raise Invalid(
                f"The base `{base[:SHOWN]}` is not allowed here",
                "Take a bundled one, or have whoever runs this add it to UNDERSTUDY_BASES.",
            )

    def _check_rank(self, name: str, recipe: Recipe, variant: Variant) -> None:
        rank = recipe.training_of(variant).lora.r
        if self.engine and rank > self.engine.max_lora_rank:
            raise Invalid(
                f"The variant `{name}` has rank {rank}, and the engine takes adapters up to {self.engine.max_lora_rank}",
                f"Lower `lora.r`, or have whoever runs the engine set UNDERSTUDY_MAX_LORA_RANK={rank}.",
            )

    def _check_length(self, name: str, panel: Panel) -> None:
        """A question has a token at least, so no answer can be as long as both may be together."""
        if self.engine and panel.max_tokens >= self.engine.max_model_len:
            raise Invalid(
                f"The panel `{name}` asks for answers of up to {panel.max_tokens:,} tokens, and the engine takes "
                f"{self.engine.max_model_len:,} of question and answer together",
                "Lower its `max_tokens`, or have whoever runs the engine raise UNDERSTUDY_MAX_MODEL_LEN.",
            )


def _allows(pattern: str, base: str) -> bool:
    """A pattern is about models of the hub, at a revision; only `*` is about folders as well."""
    return pattern == EVERYTHING or (_HUB.fullmatch(base) is not None and fnmatchcase(base, pattern))
