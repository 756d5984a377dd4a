"""What of a recipe this installation can serve, and what its operator allows: asked at the door, before anything is paid for.

A base is a bundled one, or one that UNDERSTUDY_BASES names. Where the engine runs elsewhere it has one base, adapters up to one
rank and one length, so what it cannot serve is not trained either. Knows no HTTP and starts nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from understudy.errors import Invalid
from understudy.recipe import Recipe

EVERYTHING = "*"


@dataclass(frozen=True)
class Servable:
    """`check(recipe)`; raises `Invalid` that names the setting which would allow it."""

    models: Path
    """Folder of bundled bases."""
    bases: tuple[str, ...] = (EVERYTHING,)
    """Patterns; `*` alone allows folders too."""
    engine_base: str = ""
    """The one base of an engine that runs elsewhere; empty: engines are started as they are needed."""
    max_lora_rank: int = 0
    """Of such an engine."""

    def check(self, recipe: Recipe) -> None:
        """Every base, and every adapter on it."""
        for base in recipe.bases():
            self._check_base(base)
        if not self.engine_base:
            return
        for name, variant in recipe.trained().items():
            if (rank := recipe.training_of(variant).lora.r) > self.max_lora_rank:
                raise Invalid(
                    f"The variant `{name}` has rank {rank}, and the engine takes adapters up to {self.max_lora_rank}",
                    f"Whoever runs it sets UNDERSTUDY_MAX_LORA_RANK={rank}.",
                )

    def _check_base(self, base: str) -> None:
        if self.engine_base and base != self.engine_base:
            raise Invalid(
                f"The base `{base[:200]}` is not the one that the engine serves here, `{self.engine_base}`",
                "Whoever runs it sets UNDERSTUDY_BASE.",
            )
        bundled = "/" not in base and not base.startswith(".") and (self.models / base / "config.json").is_file()
        if not bundled and base != self.engine_base and not any(self._allows(pattern, base) for pattern in self.bases):
            raise Invalid(
                f"The base `{base[:200]}` is not allowed here",
                "Take a bundled one, or have whoever runs this add it to UNDERSTUDY_BASES.",
            )

    @staticmethod
    def _allows(pattern: str, base: str) -> bool:
        """A pattern is about models of the hub; only `*` is about folders as well."""
        folder = base.startswith(("/", ".", "~")) or "/../" in base
        return pattern == EVERYTHING or (not folder and fnmatchcase(base, pattern))
