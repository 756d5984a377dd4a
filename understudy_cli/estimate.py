"""What a plan will take, computed from what was measured: pure functions.

Everything is a range where it can be one, and every constant that is a judgement says so. Looks at nothing (`measure.py`)
and prints nothing (`plan.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from understudy.recipe import Training

DISAGREEMENT = 0.1
"""Share of the rows on which two models are taken to differ in being right."""
Z = 1.959964 + 0.841621
"""Standard normal quantiles at 0.975 and 0.8: found four times out of five, at the usual five in a hundred."""
EFFICIENCY = 0.4, 0.7
"""Judgement: the share of a matrix multiplication's rate that training reaches."""
LAYER_SECONDS = 0.01, 0.05
"""Judgement: of one layer in one step, on a CPU, however little it computes."""
START_SECONDS = 5.0, 30.0
"""Judgement: a training process loads its libraries and the base, and writes the adapter."""
PROGRAM_BYTES = 0.8e9, 1.2e9
"""Judgement: of a training process before it loads a base."""
ACTIVATIONS_SPREAD = 2.0
"""Judgement: how much more than what must be kept for the backward pass is there at the worst moment."""
NF4_BYTES = 0.516
"""Of one weight: four bits, and its share of the doubly quantised constants."""
ADAPTER_BYTES = 16
"""Of one LoRA parameter: itself, its gradient and Adam's two moments, each float32."""
CHARACTERS_PER_TOKEN = 4
"""Judgement, for want of a tokenizer."""
TEMPLATE_TOKENS = 8
"""Judgement: what a chat template adds to an example, for want of one that can be rendered."""
SHORT_ANSWER = 30
"""Judgement: tokens of a language model's answer that is an instruction and a label."""

Device = Literal["cpu", "gpu"]


class Range(NamedTuple):
    """Between these, most likely."""

    low: float
    high: float


class Corpus(NamedTuple):
    """The training rows of one dataset, those left out that are too long."""

    rows: int
    tokens: float
    """Of one row, on average."""
    longest: int
    left_out: float
    """Share of the rows."""


class Work(NamedTuple):
    """One training."""

    examples: int
    tokens: int
    steps: int
    batch_tokens: int
    """Of the largest batch, padding included."""


class Linear(NamedTuple):
    """A weight that a LoRA may sit on."""

    name: str
    """Of its layer, as `training.lora.targets` has it."""
    outputs: int
    inputs: int


class Shape(NamedTuple):
    """Of a base model."""

    parameters: int
    computing: int
    """Parameters that every token is multiplied with: all, without an embedding that is only looked up in."""
    linear: tuple[Linear, ...]
    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    named: bool = False
    """`linear` has every layer by the name that the trainer knows it by."""


class Memory(NamedTuple):
    """Bytes of one training at its worst moment."""

    weights: float
    adapter: float
    activations: Range
    total: Range


class Shows(NamedTuple):
    """The smallest difference between two models that a panel can show."""

    difference: float | None
    """Share of right answers, or standard deviations of the paired difference; None: the rows are too few for any."""
    disagreement: float | None = None
    """Share of the rows on which the two differ in being right, as it was taken to be."""


def shown_of_classes(rows: int) -> Shows:
    """Where answers are right or wrong: of a paired test when models disagree on `DISAGREEMENT` of the rows.

    Two models that disagree on so many rows cannot differ by more than that. Where it would take more, it is the difference
    that shows when every row on which they disagree speaks for the same model: d = Z * sqrt(d / rows).
    """
    if rows * DISAGREEMENT >= Z**2:
        return Shows(Z * math.sqrt(DISAGREEMENT / rows), DISAGREEMENT)
    return Shows(Z**2 / rows if rows >= Z**2 else None)


def shown_of_scores(rows: int) -> Shows:
    """Where every answer has a score, in standard deviations of the difference between the two scores of a row."""
    return Shows(Z / math.sqrt(rows) if rows else None)


def unknown_targets(shape: Shape, training: Training) -> list[str]:
    """LoRA targets that name no layer of the base, as far as its layers' names are known."""
    targets = training.lora.targets
    if isinstance(targets, str) or not shape.named:
        return []
    return sorted(set(targets) - {layer.name for layer in shape.linear})


def corpus(lengths: Sequence[int], rows: int, max_length: int) -> Corpus:
    """What `rows` rows become, of which some have these lengths in tokens."""
    kept = [length for length in lengths if length <= max_length]
    if not kept:
        return Corpus(0, 0.0, 0, 1.0 if lengths else 0.0)
    share = len(kept) / len(lengths)
    return Corpus(round(rows * share), sum(kept) / len(kept), max(kept), 1 - share)


def work(
    stages: Sequence[Mapping[str, float]],
    budget_stages: Sequence[Mapping[str, float]],
    training: Training,
    corpora: Mapping[str, Corpus],
) -> Work:
    """How much one variant is trained, by the trainer's own rule: every stage has its tokens, drawn by weight."""

    def passes(over: Sequence[Mapping[str, float]]) -> float:
        names = {name for stage in over for name in stage}
        return training.epochs * sum(corpora[name].rows * corpora[name].tokens for name in names)

    if training.budget == "epochs":
        budgets = [passes([stage]) for stage in stages]
    else:
        budgets = [passes(budget_stages) / len(stages)] * len(stages)
    examples = 0.0
    for stage, tokens in zip(stages, budgets, strict=True):
        mean = sum(weight * corpora[name].tokens for name, weight in stage.items()) / sum(stage.values())
        examples += tokens / mean if mean else 0.0
    longest = max(corpora[name].longest for stage in stages for name in stage)
    return Work(
        examples=math.ceil(examples),
        tokens=round(sum(budgets)),
        steps=math.ceil(examples / training.batch_size),
        batch_tokens=training.batch_size * longest,
    )


def lora_parameters(shape: Shape, training: Training) -> int:
    """Of the adapter: on every linear layer, or on those that are named."""
    targets = training.lora.targets
    chosen = [layer for layer in shape.linear if isinstance(targets, str) or layer.name in targets]
    return training.lora.r * sum(layer.inputs + layer.outputs for layer in chosen)


def memory(shape: Shape, training: Training, batch_tokens: int, device: Device) -> Memory:
    """Of one training, with its whole batch in one pass; the trainer takes smaller passes when that does not fit."""
    width = 2 if device == "gpu" else 4
    weights: float = shape.parameters * width
    if training.quantize == "nf4":
        quantised = sum(layer.inputs * layer.outputs for layer in shape.linear)
        weights -= quantised * (width - NF4_BYTES)
    adapter = lora_parameters(shape, training) * ADAPTER_BYTES
    # What each layer keeps of a token for the backward pass: ten vectors of the hidden size, four of the inner one; and
    # the scores over the vocabulary, once as they are and twice in float32.
    kept = shape.layers * (10 * shape.hidden + 4 * shape.intermediate) * width + shape.vocabulary * (width + 8)
    activations = Range(float(batch_tokens * kept), float(batch_tokens * kept) * ACTIVATIONS_SPREAD)
    low, high = (weights + adapter + part + program for part, program in zip(activations, PROGRAM_BYTES, strict=True))
    if training.quantize == "nf4":  # its probes are measured on the unquantised base, beside the quantised one
        probing = weights + shape.parameters * width
        low, high = max(low, probing + PROGRAM_BYTES[0]), max(high, probing + PROGRAM_BYTES[1])
    return Memory(weights, adapter, activations, Range(low, high))


def seconds(done: Work, shape: Shape, flops: float) -> Range:
    """How long one training takes on a CPU that multiplies matrices at `flops` a second.

    A token costs four operations for each parameter: two forward, two to pass the error back; the base's weights are not
    updated.
    """
    computing = 4.0 * shape.computing * done.tokens / flops
    layers = done.steps * shape.layers
    return Range(
        START_SECONDS[0] + computing / EFFICIENCY[1] + layers * LAYER_SECONDS[0],
        START_SECONDS[1] + computing / EFFICIENCY[0] + layers * LAYER_SECONDS[1],
    )


def price(
    rows: int, prompt: float, longest_answer: int, tries: int, usd: tuple[float, float], budget: float | None
) -> Range:
    """US dollars for the instructions of so many rows, whose prompts have `prompt` tokens on average.

    From one short answer to every row, to all tries with the longest answers, each sent back with the next; never beyond
    the budget.
    """
    per_prompt, per_answer = (each / 1e6 for each in usd)
    low = rows * (prompt * per_prompt + SHORT_ANSWER * per_answer)
    resent = longest_answer * tries * (tries - 1) / 2
    high = rows * ((tries * prompt + resent) * per_prompt + tries * longest_answer * per_answer)
    most = math.inf if budget is None else budget
    return Range(min(low, most), min(high, most))
