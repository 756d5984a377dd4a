"""Writes what people read in an adapter's folder: README.md (the model card) and training.json (the configuration as it was).

Holds no clock, host or path: the same training gives the same bytes everywhere. Timings go to the log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.trainer.data import Corpus, Draw
from services.trainer.job import Job
from services.trainer.validation import Watched
from understudy.records import TrainedOn, TrainingRecord, write_json

CURVE_POINTS = 1000
"""The training loss is thinned to at most about twice as many points."""


def record(
    job: Job,
    corpora: Mapping[str, Corpus],
    order: Sequence[Draw],
    watched: Watched | None,
    history: Sequence[Mapping[str, Any]],
    kept: int | None,
    device: str,
) -> TrainingRecord:
    """The content of training.json, from what transformers wrote into its history; `kept` is the step whose weights the adapter has."""
    curve = [(entry["step"], round(entry["loss"], 6)) for entry in history if "loss" in entry]
    validation = [entry for entry in history if "validation_loss" in entry]
    losses: dict[str, float] = next(
        (entry["by_dataset"] for entry in reversed(validation) if kept in (None, entry["step"])), {}
    )
    datasets = {}
    for name in sorted(job.datasets):
        draws = [draw for draw in order if draw.dataset == name]
        datasets[name] = TrainedOn(
            sha256=job.datasets[name].sha256,
            examples_available=len(corpora[name].rows),
            examples_too_long=corpora[name].left_out,
            examples_seen=len(draws),
            tokens_seen=sum(len(corpora[name].rows[draw.row].ids) for draw in draws),
            validation_rows=len(watched.rows.get(name, ())) if watched else 0,
            validation_loss=losses.get(name),
        )
    return TrainingRecord(
        item=job.item,
        base=job.base.name,
        base_revision=job.base.revision,
        seed=job.seed,
        training=job.training.model_dump(mode="json"),
        stages=job.stages,
        micro_batch=job.micro_batch,
        device=device,
        threads=job.threads,
        versions={name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        datasets=datasets,
        steps=len(curve),
        tokens=sum(each.tokens_seen for each in datasets.values()),
        loss=tuple(curve[:: max(1, len(curve) // CURVE_POINTS)]),
        validation=tuple((entry["step"], entry["validation_loss"]) for entry in validation),
        kept_step=kept,
    )


def write(folder: Path, facts: TrainingRecord) -> None:
    """Write both files into `folder`."""
    write_json(folder / "training.json", facts)
    (folder / "README.md").write_text(_readme(facts), encoding="utf-8")


def _readme(facts: TrainingRecord) -> str:
    training, lora = facts.training, facts.training["lora"]
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    rows = "\n".join(
        f"| {name} | {data.examples_available} | {data.examples_too_long} | {data.examples_seen} | {data.tokens_seen} "
        f"| {data.validation_rows} | {'' if data.validation_loss is None else f'{data.validation_loss:.3f}'} |"
        for name, data in facts.datasets.items()
    )
    stages = " then ".join(
        " + ".join(f"{name} ({weight:g})" for name, weight in stage.items()) for stage in facts.stages
    )
    revision = f" at revision `{facts.base_revision}`" if facts.base_revision else ""
    losses, validation = [loss for _, loss in facts.loss], ""
    if facts.validation:
        (first, begin), (last, end) = facts.validation[0], facts.validation[-1]
        validation = f"\n| validation loss | {begin:.3f} at step {first}, {end:.3f} at step {last} |"
    if facts.kept_step is not None:
        validation += f"\n| weights kept | those of step {facts.kept_step}, which has the lowest validation loss |"
    return f"""---
base_model: {facts.base}
library_name: peft
tags: [lora, sft]
---

# {facts.item}: a LoRA adapter for {facts.base}

Made by Understudy from the base model `{facts.base}`{revision}. The loss was taken on the answers only.

## Data

Trained on {stages} (weights count examples).

| dataset | examples | left out as too long | examples seen | tokens seen | validation rows watched | loss on them |
|---|---|---|---|---|---|---|
{rows}

## Training

| setting | value |
|---|---|
| LoRA | rank {lora["r"]}, alpha {lora["alpha"]}, dropout {lora["dropout"]:g}, on {targets} |
| base weights | {"NF4, 4 bits" if training["quantize"] == "nf4" else "not quantised"} |
| steps | {facts.steps} of {training["batch_size"]} examples |
| tokens | {facts.tokens} |
| learning rate | {training["learning_rate"]:g}, {training["schedule"]}, {training["warmup"]:.0%} warm-up |
| longest example | {training["max_length"]} tokens |
| seed | {facts.seed} |
| loss | {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last |{validation}

`training.json` has the whole configuration, the loss curves and the digests of the data. `probe.json` has log-probabilities of a few
examples under base and adapter, to check that a server applies this adapter.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("path or name of {facts.base}"), "this folder")
```
"""
