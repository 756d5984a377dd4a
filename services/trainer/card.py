"""Writes what people read in an adapter's folder: README.md (the model card) and training.json (the configuration as it was).

Holds no clock, host or path: the same training gives the same bytes everywhere. Timings go to the log.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from services.trainer.data import Corpus, Draw
from services.trainer.job import Job

CURVE_POINTS = 1000
"""The loss curve is thinned to at most about twice as many points."""


def snapshot(
    job: Job, corpora: Mapping[str, Corpus], order: Sequence[Draw], curve: Sequence[tuple[int, float]], device: str
) -> dict[str, Any]:
    """The content of training.json."""
    seen: dict[str, dict[str, int]] = {}
    for name in sorted(job.datasets):
        draws = [draw for draw in order if draw.dataset == name]
        seen[name] = {
            "examples_available": len(corpora[name].rows),
            "examples_too_long": corpora[name].left_out,
            "examples_seen": len(draws),
            "tokens_seen": sum(len(corpora[name].rows[draw.row].ids) for draw in draws),
        }
    return {
        "format": "understudy.training.v1",
        "item": job.item,
        "base": job.base.name,
        "base_revision": job.base.revision,
        "seed": job.seed,
        "training": job.training.model_dump(mode="json"),
        "stages": job.stages,
        "micro_batch": job.micro_batch,
        "device": device,
        "threads": job.threads,
        "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        "datasets": {name: {"sha256": job.datasets[name].sha256, **seen[name]} for name in seen},
        "steps": len(curve),
        "tokens": sum(entry["tokens_seen"] for entry in seen.values()),
        "loss": curve[:: max(1, len(curve) // CURVE_POINTS)],
    }


def write(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write both files into `folder`."""
    (folder / "training.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_readme(facts), encoding="utf-8")


def _readme(facts: Mapping[str, Any]) -> str:
    training, lora = facts["training"], facts["training"]["lora"]
    targets = lora["targets"] if isinstance(lora["targets"], str) else ", ".join(lora["targets"])
    rows = "\n".join(
        f"| {name} | {data['examples_available']} | {data['examples_too_long']} | {data['examples_seen']} | {data['tokens_seen']} |"
        for name, data in facts["datasets"].items()
    )
    stages = " then ".join(
        " + ".join(f"{name} ({weight:g})" for name, weight in stage.items()) for stage in facts["stages"]
    )
    revision = f" at revision `{facts['base_revision']}`" if facts["base_revision"] else ""
    losses = [loss for _, loss in facts["loss"]]
    return f"""---
base_model: {facts["base"]}
library_name: peft
tags: [lora, sft]
---

# {facts["item"]}: a LoRA adapter for {facts["base"]}

Made by Understudy from the base model `{facts["base"]}`{revision}. The loss was taken on the answers only.

## Data

Trained on {stages} (weights count examples).

| dataset | examples | left out as too long | examples seen | tokens seen |
|---|---|---|---|---|
{rows}

## Training

| setting | value |
|---|---|
| LoRA | rank {lora["r"]}, alpha {lora["alpha"]}, dropout {lora["dropout"]:g}, on {targets} |
| base weights | {"NF4, 4 bits" if training["quantize"] == "nf4" else "not quantised"} |
| steps | {facts["steps"]} of {training["batch_size"]} examples |
| tokens | {facts["tokens"]} |
| learning rate | {training["learning_rate"]:g}, {training["schedule"]}, {training["warmup"]:.0%} warm-up |
| longest example | {training["max_length"]} tokens |
| seed | {facts["seed"]} |
| loss | {losses[0]:.3f} at the first step, {losses[-1]:.3f} at the last |

`training.json` has the whole configuration, the loss curve and the digests of the data. `probe.json` has log-probabilities of a few
examples under base and adapter, to check that a server applies this adapter.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("path or name of {facts["base"]}"), "this folder")
```
"""
