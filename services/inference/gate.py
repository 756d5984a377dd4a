"""The gate: an adapter is served only if the engine computes with it what the trainer computed.

For every token of the probes the trainer measured log-probabilities with and without the adapter, and so does the engine,
without it twice. What counts is the adapter's *effect*, the difference of the two. It must be the trainer's: once and whole
(the slope of one on the other is 1) and token by token (their difference is small relative to the effect). How certain the
slope is, its residuals say, and what differs without any adapter (between two evaluations of the engine, and between engine
and trainer): one that is certainly another is refused, and so is one of which too little is known, with that reason. That
finds an adapter on the wrong base, one that the engine ignores, applies in part or twice or with the wrong sign, and other
weights. Says nothing about quality (the evaluator does).

Measured with a 5.6M-parameter base on the CPU and twelve adapters of 6 to 188 steps, 108 to 181 tokens each, root mean
squares in nats: effects 0.48 to 1.77; engine against trainer without adapter 2e-6 in float32 and 0.013 to 0.019 with a
bfloat16 engine; slopes 0.994 to 1.007 and differences of the effects up to 4.3 % there, at most 1.9 times what differs
without the adapter. With half of the adapter slopes of 0.33 to 0.75 and differences of 32 % or more, with twice of it 52 %
or more, with a fiftieth slopes up to 0.05.

Simulated with Gaussian noise in the engine of so many nats, three hundred times each: 100 tokens with an effect of 0.35 and
noise of 0.06 are enough for the right adapter to pass (99 %) and for 0.7 or 1.3 of it never to; of 0.8 one in six passes, because
the margin is added to the tolerance. 30 tokens with 0.4 and 0.06, or 15 with 0.6 and 0.09, are too few to tell, as a rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from understudy.errors import Invalid
from understudy.records import Probe, Probes
from understudy.terms import Gate

LARGE = 5.0
"""Times the noise that an effect must have to be told from it, where there are no probes to compare it with."""
SMALL = 2.0
"""Times the noise: where too little is known of a smaller effect, that is because it is small, and not for want of tokens."""
CERTAIN = 3.0
"""Standard errors within which the slope is taken to lie."""
LEAST = 1e-4
"""Nats; an adapter that changes less than this changes nothing, however quiet the engine is."""
OTHER_BASE = 0.1
"""Nats between engine and trainer without adapter: more is another base, not another precision."""
MAX_PROBE_BYTES = 16 * 1024**2
BUILT_IN = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what do you think of this? Answer: it is",
    "Once upon a time there was a",
)
"""Prompts for an adapter that brings no probes."""

Logprobs = Sequence[Sequence[float]]
"""Of every prompt's tokens 1..n-1."""


class Prober(Protocol):
    """What the gate needs of an engine; `EngineClient` has it."""

    def prompt_logprobs(self, model: str, prompts: Sequence[Sequence[int] | str]) -> list[list[float]]:
        """Log-probabilities of every prompt's tokens 1..n-1."""


def read_probes(folder: Path) -> tuple[Probe, ...] | None:
    """The probes of the adapter in `folder`; None when it brings none. Raises `Invalid` when they cannot be read."""
    path = folder / "probe.json"
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > MAX_PROBE_BYTES:
            raise Invalid(f"probe.json of the adapter is larger than {MAX_PROBE_BYTES} bytes", "Train the item again.")
        return Probes.model_validate_json(path.read_bytes()).probes
    except ValidationError as error:
        raise Invalid(f"probe.json of the adapter is malformed: {error}", "Train the item again.") from error


def check(engine: Prober, base: str, adapter: str, folder: Path, *, tolerance: float, max_len: int) -> Gate:
    """What was measured of `adapter`, the name of what lies in `folder`; raises `Invalid` when it must not be served.

    `tolerance` is relative to the effect. Prompts are cut to `max_len` - 1 tokens, what the engine can take with one to answer.
    """
    probes = read_probes(folder)
    prompts: list[list[int] | str] = [*BUILT_IN]
    if probes is not None:
        prompts = [[*probe.token_ids[: max_len - 1]] for probe in probes]
    after = engine.prompt_logprobs(adapter, prompts)
    twice = engine.prompt_logprobs(base, prompts + prompts[::-1])  # in other places of a batch, as they are in service
    before, again = twice[: len(prompts)], twice[len(prompts) :][::-1]
    return judge(before, after, again, probes, tolerance)


def judge(before: Logprobs, after: Logprobs, again: Logprobs, probes: Sequence[Probe] | None, tolerance: float) -> Gate:
    """`check`, from what the engine gave: without the adapter, with it, and without it once more."""
    effect, noise = _differences(after, before), _rms(_differences(again, before))
    if probes is None:
        _large_enough(_rms(effect), LARGE * noise, noise, "learnt next to nothing, or the engine ignores it")
        return Gate(tokens=len(effect), effect_nats=_figure(_rms(effect)), noise_nats=_figure(noise))
    off = _rms(_differences(before, (probe.base_logprobs for probe in probes)))
    if not off <= OTHER_BASE:  # NaN is no agreement
        raise Invalid(
            f"The base gives other log-probabilities in the engine than in training, by {off:.3f} nats (at most"
            f" {OTHER_BASE:g}): the adapter was trained on another base",
            "Train on the base that is served.",
        )
    measured = [probe.adapter_logprobs[: len(served)] for probe, served in zip(probes, after, strict=True)]
    trained = _differences(measured, (probe.base_logprobs for probe in probes))
    noise, size = max(noise, off), _rms(trained)
    _large_enough(size, 0.0, noise, "learnt next to nothing")
    squares = sum(t * t for t in trained)
    slope = sum(e * t for e, t in zip(effect, trained, strict=True)) / squares
    difference = _rms([e - t for e, t in zip(effect, trained, strict=True)])
    # The standard error of the slope of a regression through the origin. Residuals of few tokens may be small by chance, so their
    # scatter counts as no less than what differs without the adapter.
    residuals = sum((e - slope * t) ** 2 for e, t in zip(effect, trained, strict=True))
    scatter = max(math.sqrt(residuals / max(len(trained) - 1, 1)), noise)
    margin = CERTAIN * scatter / math.sqrt(squares)
    about = (
        f"{slope:.2f} times the adapter (± {margin:.2f}; 1 ± {tolerance:g} is right), whose effect on a token's log-probability,"
        f" {_rms(effect):.3g} nats, differs from training's, {size:.3g} nats, by {difference:.3g} nats"
    )
    if not (abs(slope - 1) - margin <= tolerance and difference <= tolerance * size + 2 * noise):
        raise Invalid(
            f"The engine computes with the adapter otherwise than training did: it applies {about}",
            "Train the item again; if that does not help, this engine does not support the adapter's layers.",
        )
    if margin > tolerance:
        _large_enough(size, SMALL * noise, noise, "learnt next to nothing")
        raise Invalid(
            f"Whether the engine computes with the adapter as training did cannot be told from {len(trained)} tokens: it applies"
            f" {about}; without the adapter {noise:.2g} nats differ",
            "Raise `training.epochs` or `training.learning_rate` for a larger effect, or train on longer answers for more tokens.",
        )
    return Gate(
        tokens=len(effect),
        effect_nats=_figure(_rms(effect)),
        noise_nats=_figure(noise),
        trained_effect_nats=_figure(size),
        slope=_figure(slope),
        disagreement=_figure(difference / size),
    )


def _large_enough(effect: float, least: float, noise: float, why: str) -> None:
    if not effect >= max(least, LEAST):
        raise Invalid(
            f"The adapter {why}: it changes a token's log-probability by {effect:.2g} nats, and without it {noise:.2g} nats differ",
            "Raise `training.epochs` or `training.learning_rate`, and check `training.lora.targets`.",
        )


def _differences(some: Iterable[Sequence[float]], others: Iterable[Sequence[float]]) -> list[float]:
    """Over all tokens of all prompts; the first ones may be cut shorter."""
    return [a - b for x, y in zip(some, others, strict=True) for a, b in zip(x, y[: len(x)], strict=True)]


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(sum(value * value for value in values) / len(values))


def _figure(value: float) -> float:
    """Three digits are plenty for people, and keep messages small."""
    return float(f"{value:.3g}")
