"""`understudy plan`: what a recipe will take, before anything is started.

Puts together what was seen of the data (`sample.py`), the base and the machine (`measure.py`) and what follows from it
(`estimate.py`), and prints it (`plan_view.py`).
Asks no language model, no hub and no server.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from understudy.bases import planned, resolve
from understudy.errors import Invalid
from understudy.metrics import of_classes
from understudy.plan import Item, Plan, make, prompts_dataset
from understudy.recipe import Panel
from understudy.settings import Settings
from understudy_cli import estimate
from understudy_cli.console import output
from understudy_cli.folder import store_of
from understudy_cli.options import BaseOption, DataOption, RecipeArgument, SourceOption
from understudy_cli.plan_view import print_plan
from understudy_cli.prepare import prepare
from understudy_cli.session import data_folder

if TYPE_CHECKING:  # an image has one service; there this command says so, and the others work
    from understudy_cli.measure import Machine
    from understudy_cli.sample import Looked

FORMAT = "understudy.estimate.v1"


def plan(
    recipe: RecipeArgument,
    source: SourceOption = None,
    base: BaseOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: everything below as one object")] = False,
    data: DataOption = None,
) -> None:
    """Say what a recipe will take: rows, steps, tokens, memory, time, money, and what its panels can show.

    \b
    understudy plan recipes/quickstart.yaml
    understudy plan my.yaml --source my-remarks.csv --base ./my-model
    understudy plan my.yaml --json | jq .totals

    Takes seconds, starts nothing, asks nobody. What is estimated says so, and what cannot be known here says why.

    A panel's line says how small a difference between two models its questions can show: with fewer rows than that takes,
    "no clear difference" is the likely outcome.
    """
    models = Settings().models
    planning = make(prepare(recipe, source or (), base, models), lambda reference: planned(reference, models))
    found = compute(planning, data_folder(data))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print_plan(found, output())


def compute(plan: Plan, data: Path) -> dict[str, Any]:
    """Everything that can be said, as plain data."""
    try:
        from services.datagen.tasks import wanted
        from services.trainer.preflight import check_lengths
        from understudy_cli import measure, sample
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "services":
            raise
        raise Invalid(
            f"`understudy plan` reads data as datagen does, and {error.name} is not installed here",
            "Ask where Understudy is installed whole, not in the image of one service.",
        ) from None
    store = store_of(data)
    looked = {each.name: sample.look(each, store) for each in wanted(plan)}
    bases = [resolve(base.reference, Settings().models) for base in plan.bases]
    tokens = cache(lambda index: measure.Tokens(bases[index]))
    shape = cache(lambda index: measure.shape(bases[index]))
    machine = measure.machine()

    @cache
    def lengths(dataset: str, base: int) -> tuple[int, ...]:
        return tuple(tokens(base).lengths(list(looked[dataset].examples(plan.seed))))

    @cache
    def shortest(dataset: str, base: int) -> int:
        return min(tokens(base).lengths(list(looked[dataset].examples(plan.seed, shortest=True))))

    def corpora(item: Item) -> dict[str, estimate.Corpus]:
        assert item.training
        most = item.training.max_length
        names = {name for stage in (*item.stages, *item.budget_stages) for name in stage}
        return {n: estimate.corpus(lengths(n, item.base), looked[n].splits.get("train", 0), most) for n in names}

    def too_long(item: Item, name: str) -> str | None:
        """That no row which was looked at is short enough; raises `Invalid` when that is true of all there are."""
        assert item.training
        most = item.training.max_length
        if min(lengths(name, item.base)) <= most:
            return None
        known = looked[name].whole and tokens(item.base).exact and not looked[name].wanted.task.asked
        if known and shortest(name, item.base) > most:
            check_lengths(name, 0, looked[name].splits.get("train", 0), most)
        return f"dataset `{name}`: none of the first rows has at most {most:,} tokens (`max_length`)"

    for item in plan.items:
        if item.training and (layers := shape(item.base)):
            _check_targets(item, layers)
    items = []
    for item in plan.items:
        about: dict[str, Any] = {"name": item.name, "base": plan.base_of(item).name, "trained_on": item.what}
        if item.training:
            named = {name for stage in (*item.stages, *item.budget_stages) for name in stage}
            dark = [f"dataset `{name}`: {looked[name].unknown}" for name in sorted(named) if looked[name].unknown]
            dark = dark or [why for name in sorted(named) if (why := too_long(item, name))]
            about |= {"unknown": dark[0]} if dark else _training(item, corpora(item), shape(item.base), machine)
        items.append(about)
    return {
        "format": FORMAT,
        "name": plan.name,
        "tokens_counted_by": tokens(0).how,
        "device": {
            "kind": machine.device,
            "memory_bytes": machine.memory,
            "flops_per_second": machine.flops,
            "unknown": machine.why or None,
        },
        "datasets": [_dataset(each, lengths(name, 0)) for name, each in looked.items()],
        "items": items,
        "totals": _totals(items),
        "llm": [_llm(each, plan.seed) for each in looked.values() if each.wanted.task.asked],
        "panels": [
            _panel(name, panel, looked[panel.dataset or prompts_dataset(name)]) for name, panel in plan.panels.items()
        ],
    }


def _check_targets(item: Item, shape: estimate.Shape) -> None:
    """Raises `Invalid` when a LoRA target names no layer of the base."""
    assert item.training
    if unknown := estimate.unknown_targets(shape, item.training):
        raise Invalid(
            f"{item.name}: `training.lora.targets`: the base has no layer called {', '.join(unknown)}",
            f"Choose from {', '.join(sorted({layer.name for layer in shape.linear}))}, or `all-linear`.",
        )


def _dataset(looked: Looked, lengths: tuple[int, ...]) -> dict[str, Any]:
    about: dict[str, Any] = {"name": looked.wanted.name, "source": looked.wanted.source}
    if looked.unknown:
        return about | {"unknown": looked.unknown}
    return about | {
        "rows": looked.rows,
        "estimated": not looked.whole,
        "rejected": looked.rejected,
        "splits": looked.splits,
        "splits_estimated": not looked.sure,
        "tokens_per_row": sum(lengths) / len(lengths),
    }


def _training(
    item: Item, corpora: dict[str, estimate.Corpus], shape: estimate.Shape | None, machine: Machine
) -> dict[str, Any]:
    assert item.training
    work = estimate.work(item.stages, item.budget_stages, item.training, corpora)
    about: dict[str, Any] = {"steps": work.steps, "tokens": work.tokens, "examples": work.examples}
    about["left_out"] = {name: corpus.left_out for name, corpus in corpora.items() if corpus.left_out}
    if shape is None:
        return about | {"unknown": "memory and time: its base is on the hub, where nothing is asked now"}
    memory = estimate.memory(shape, item.training, work.batch_tokens, machine.device)
    about |= {
        "parameters": shape.parameters,
        "adapter_parameters": estimate.lora_parameters(shape, item.training),
        "weights_bytes": memory.weights,
        "memory_bytes": memory.total,
        "fits": _fits(memory, machine.memory),
    }
    if machine.flops is None:
        return about | {"unknown": f"time: {machine.why}"}
    return about | {"seconds": estimate.seconds(work, shape, machine.flops)}


def _fits(memory: estimate.Memory, there: int) -> str:
    """`yes`, `in smaller passes`, or `no` when the base and its adapter alone are too large."""
    if memory.total.high <= there:
        return "yes"
    return "in smaller passes" if memory.total.low - memory.activations.low <= there else "no"


def _totals(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Over the items that are known; `unknown` of them are not."""
    trained = [item for item in items if item["trained_on"]]
    timed = [item["seconds"] for item in trained if "seconds" in item]
    return {
        "items": len(items),
        "trained": len(trained),
        "steps": sum(item.get("steps", 0) for item in trained),
        "tokens": sum(item.get("tokens", 0) for item in trained),
        "seconds": [sum(each[end] for each in timed) for end in (0, 1)] if timed else None,
        "unknown": sum("unknown" in item for item in trained),
    }


def _llm(looked: Looked, seed: int) -> dict[str, Any]:
    """What the instructions of a dataset cost."""
    from services.datagen.settings import DatagenSettings

    asked = looked.wanted.task.asked
    assert asked
    generator = asked.generator
    about: dict[str, Any] = {"dataset": looked.wanted.name, "provider": generator.provider, "model": generator.model}
    if looked.unknown:
        return about | {"unknown": looked.unknown, "budget_usd": generator.budget_usd}
    rows = sum(looked.splits.values())
    usd = estimate.price(
        rows,
        looked.asking(asked, seed),
        asked.max_tokens,
        DatagenSettings().llm_tries,
        generator.usd_per_million_tokens,
        generator.budget_usd,
    )
    return about | {"rows": rows, "usd": usd, "budget_usd": generator.budget_usd}


def _panel(name: str, panel: Panel, looked: Looked) -> dict[str, Any]:
    if looked.unknown:
        return {"name": name, "unknown": looked.unknown}
    rows, classes = looked.splits["test"], bool(of_classes(panel.metrics))
    shows = estimate.shown_of_classes(rows) if classes else estimate.shown_of_scores(rows)
    return {
        "name": name,
        "rows": rows,
        "estimated": not looked.sure,
        "measured_in": "share of right answers" if classes else "standard deviations of the paired difference",
        "smallest_difference": shows.difference,
        "disagreement": shows.disagreement,
    }
