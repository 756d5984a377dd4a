"""The gate: an adapter is served only if the engine computes with it what the trainer computed.

Three questions, each about log-probabilities of whole prompts: does the engine's base agree with the base that the
adapter was trained on, does the adapter change anything, does the engine's adapter agree with the trainer's? They find
an adapter on the wrong base, one that the engine loads but ignores, another chat template's tokens, mixed-up scaling.
Says nothing about quality (the evaluator does).

Measured, engine against trainer: float32 on both sides differs by 1e-6 nats per token on average and 2e-6 at most;
bfloat16 in the engine alone by 0.010 to 0.013 on average; another adapter's weights by 1.06. Hence a tolerance of 0.05:
loose enough for a 16-bit engine, and far below what an ignored or misread adapter costs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, Field, ValidationError, model_validator

from understudy.errors import Invalid

NOISE = 1e-4
"""Nats; an adapter that changes no token's log-probability by more than this changes nothing."""
MAX_PROBE_BYTES = 16 * 1024**2
BUILT_IN = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what do you think of this? Answer: it is",
    "Once upon a time there was a",
)
"""Prompts for an adapter that brings no probes."""


class Probe(BaseModel):
    """One prompt and what the trainer measured on it; logprobs are of tokens 1..n-1, in nats."""

    token_ids: list[int] = Field(min_length=2)
    base_logprobs: list[float]
    adapter_logprobs: list[float]

    @model_validator(mode="after")
    def _one_per_token(self) -> Probe:
        if not len(self.base_logprobs) == len(self.adapter_logprobs) == len(self.token_ids) - 1:
            raise ValueError("a probe needs one log-probability for each token but the first")
        return self


class Probes(BaseModel):
    """`probe.json` of an adapter."""

    probes: list[Probe] = Field(min_length=1, max_length=64)


class Prober(Protocol):
    """What the gate needs of an engine; `EngineClient` has it."""

    def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
        """Log-probabilities of every prompt's tokens 1..n-1."""


def read_probes(folder: Path) -> list[Probe] | None:
    """The probes of the adapter in `folder`; None when it brings none."""
    path = folder / "probe.json"
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_PROBE_BYTES:
            raise Invalid(f"probe.json of the adapter is larger than {MAX_PROBE_BYTES} bytes", "Train the item again.")
        return Probes.model_validate(json.loads(path.read_text(encoding="utf-8"))).probes
    except (ValidationError, ValueError) as error:
        raise Invalid(f"probe.json of the adapter is malformed: {error}", "Train the item again.") from error


def check(engine: Prober, base: str, adapter: str, folder: Path, *, tolerance: float, max_len: int) -> None:
    """Raise `Invalid` when `adapter`, loaded from `folder` beside `base`, must not be served.

    Prompts are cut to `max_len` - 1 tokens, what the engine can take with one token to answer.
    """
    probes = read_probes(folder)
    prompts: list[list[int] | str] = (
        [*BUILT_IN] if probes is None else [probe.token_ids[: max_len - 1] for probe in probes]
    )
    before = engine.prompt_logprobs(base, prompts)
    after = engine.prompt_logprobs(adapter, prompts)
    if probes is not None:
        off = _mean_difference(before, (probe.base_logprobs for probe in probes))
        if not off <= tolerance:  # NaN is no agreement
            raise Invalid(
                f"The base `{base}` gives other log-probabilities in the engine than in training, by {off:.3f} nats"
                f" on average (tolerance {tolerance:g}): `{adapter}` was trained on another base or precision",
                "Train on the base that is served.",
            )
    if not max(abs(a - b) for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)) > NOISE:
        raise Invalid(
            f"The adapter `{adapter}` answers exactly like its base `{base}`: it learnt nothing, or the engine ignores it",
            "Raise `training.epochs` or `training.learning_rate`, and check `training.lora.targets`.",
        )
    if probes is not None:
        off = _mean_difference(after, (probe.adapter_logprobs for probe in probes))
        if not off <= tolerance:
            raise Invalid(
                f"The engine computes with the adapter `{adapter}` otherwise than training did, by {off:.3f} nats on"
                f" average (tolerance {tolerance:g})",
                "Train the item again; if that does not help, this engine does not support the adapter's layers.",
            )


def _mean_difference(served: Iterable[Sequence[float]], trained: Iterable[Sequence[float]]) -> float:
    """Mean absolute difference over all tokens of all prompts; the served ones may be cut shorter."""
    pairs = [pair for s, t in zip(served, trained, strict=True) for pair in zip(s, t[: len(s)], strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)
