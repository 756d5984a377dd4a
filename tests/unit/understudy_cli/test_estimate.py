"""The figures of a plan: by hand where that can be done, against a real training where it was measured."""

from __future__ import annotations

import math
import random
from typing import Literal

import pytest

from services.trainer import data
from understudy.recipe import Lora, Training
from understudy_cli.estimate import (
    Corpus,
    Linear,
    Shape,
    Shows,
    Work,
    corpus,
    lora_parameters,
    memory,
    price,
    seconds,
    shown_of_classes,
    shown_of_scores,
    unknown_targets,
    work,
)

SEEDLING = Shape(
    parameters=4_261_120,
    computing=4_261_120,
    linear=tuple(
        layer
        for _ in range(4)
        for layer in (
            *(Linear(name, 256, 256) for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
            Linear("gate_proj", 704, 256),
            Linear("up_proj", 704, 256),
            Linear("down_proj", 256, 704),
        )
    ),
    layers=4,
    hidden=256,
    intermediate=704,
    vocabulary=4096,
)
REMARKS = Corpus(rows=400, tokens=37.3, longest=50, left_out=0.0)
GENERAL = Corpus(rows=220, tokens=40.0, longest=90, left_out=0.0)


@pytest.mark.parametrize(("rows", "points"), [(200, 6.3), (80, 9.9), (79, 10.0), (20_000, 0.6)])
def test_smallest_difference_by_the_formula(rows: int, points: float) -> None:
    """(1.96 + 0.84) * sqrt(0.1 / n), in points."""
    shows = shown_of_classes(rows)
    assert shows.difference
    assert (round(100 * shows.difference, 1), shows.disagreement) == (points, 0.1)


@pytest.mark.parametrize(("rows", "points"), [(78, 10.1), (24, 32.7), (8, 98.1)])
def test_two_models_that_disagree_on_a_tenth_differ_by_no_more_than_that(rows: int, points: float) -> None:
    """With fewer rows nothing shows at 10 %: what does is a difference all in one direction, (1.96 + 0.84)² / n."""
    shows = shown_of_classes(rows)
    assert shows.difference
    assert (round(100 * shows.difference, 1), shows.disagreement) == (points, None)


@pytest.mark.parametrize("rows", [0, 1, 7])
def test_below_eight_rows_not_even_a_difference_on_every_row_shows(rows: int) -> None:
    assert shown_of_classes(rows) == Shows(None)


def test_scores_are_told_apart_in_standard_deviations() -> None:
    """A difference of Z/sqrt(n) of them, simulated: a z test finds it four times out of five."""
    rows, chance = 30, random.Random(2)
    difference = shown_of_scores(rows).difference
    assert difference == pytest.approx(0.5115, abs=1e-3)
    found = 0
    for _ in range(1000):
        mean = sum(chance.gauss(difference, 1) for _ in range(rows)) / rows
        found += abs(mean) * math.sqrt(rows) > 1.96
    assert 0.76 < found / 1000 < 0.84
    assert shown_of_scores(0) == Shows(None)


def test_smallest_difference_is_what_a_paired_test_finds_four_times_out_of_five() -> None:
    """Two models differ on a tenth of 500 rows, one of them by just that much better: simulated, McNemar's z finds it."""
    rows, chance = 500, random.Random(1)
    difference = shown_of_classes(rows).difference
    assert difference
    better, worse = 0.05 + difference / 2, 0.05 - difference / 2
    found = 0
    for _ in range(1000):
        drawn = [chance.random() for _ in range(rows)]
        gained = sum(each < better for each in drawn)
        lost = sum(better <= each < better + worse for each in drawn)
        found += abs(gained - lost) > 1.96 * (gained + lost) ** 0.5
    assert 0.76 < found / 1000 < 0.88


def test_targets_that_name_no_layer_are_known_only_where_names_are() -> None:
    """Other kinds of models call their layers otherwise once they are loaded."""
    asked = Training(lora=Lora(targets=("q_proj", "c_attn")))
    assert unknown_targets(SEEDLING, asked) == []
    assert unknown_targets(SEEDLING._replace(named=True), asked) == ["c_attn"]
    assert unknown_targets(SEEDLING._replace(named=True), Training()) == []


def test_rows_that_are_too_long_are_left_out_of_rows_and_of_the_mean() -> None:
    assert corpus([10, 20, 30, 100], rows=1000, max_length=50) == Corpus(750, 20.0, 30, 0.25)
    assert corpus([100], rows=10, max_length=50) == Corpus(0, 0.0, 0, 1.0)
    assert corpus([], rows=0, max_length=50).left_out == 0.0


@pytest.mark.parametrize("budget", ["tokens", "epochs"])
@pytest.mark.parametrize("seed", range(5))
def test_steps_are_those_that_the_trainer_makes(seed: int, budget: Literal["tokens", "epochs"]) -> None:
    """Random lengths, a mix and a second stage, drawn by the trainer's own code: the steps agree to 2 %."""
    chance = random.Random(seed)
    lengths = {name: [chance.randint(5, 120) for _ in range(chance.randint(100, 900))] for name in "ab"}
    real = {n: data.Corpus([data.Row((0,) * length, 1) for length in some], 0) for n, some in lengths.items()}
    stages, first = ({"a": 2.0, "b": 1.0}, {"b": 1.0}), ({"a": 1.0},)
    training = Training(epochs=3, batch_size=8, budget=budget)
    if budget == "epochs":
        budgets = [data.budget((stage,), real, 3) for stage in stages]
    else:
        total = data.budget(first, real, 3)
        budgets = [total // 2, total - total // 2]
    drawn = sum(map(len, data.draw(stages, real, budgets, "seed")))
    corpora = {name: corpus(some, len(some), 512) for name, some in lengths.items()}
    found = work(stages, first, training, corpora)
    assert found.tokens == pytest.approx(sum(budgets), abs=2)
    assert found.steps == pytest.approx(drawn / 8, rel=0.02, abs=1)


def test_budgets_follow_the_stages() -> None:
    """By epochs each stage has passes over its own data; by tokens the first variant's are split evenly."""
    corpora = {"remarks": REMARKS, "general": GENERAL}
    stages = ({"remarks": 1.0}, {"general": 1.0})
    own = work(stages, stages, Training(epochs=1, budget="epochs"), corpora)
    assert own.tokens == round(400 * 37.3 + 220 * 40)
    assert own.examples == 620
    shared = work(stages, ({"remarks": 1.0},), Training(epochs=1), corpora)
    assert shared.tokens == round(400 * 37.3)
    assert shared.examples == math.ceil(200 + 200 * 37.3 / 40)


def test_lora_sits_on_all_linear_layers_or_on_those_named() -> None:
    """8 * (in + out), as PEFT counts them."""
    assert lora_parameters(SEEDLING, Training()) == 4 * 8 * (4 * 512 + 3 * 960)
    assert lora_parameters(SEEDLING, Training(lora=Lora(r=16, targets=("q_proj", "v_proj")))) == 4 * 16 * 2 * 512


def test_memory_of_the_demo_is_about_what_was_measured() -> None:
    """The trainer's own peak was 916 MiB; what a bigger batch, four bytes and a GPU change goes in the right direction."""
    here = memory(SEEDLING, Training(), 16 * 50, "cpu")
    assert here.total.low < 916 * 2**20 * 1.05
    assert here.total.high > 916 * 2**20
    assert here.weights == 4 * SEEDLING.parameters
    gpu = memory(SEEDLING, Training(), 16 * 50, "gpu")
    assert gpu.weights == here.weights / 2
    assert gpu.activations.low < here.activations.low
    assert memory(SEEDLING, Training(), 32 * 50, "cpu").activations.low == 2 * here.activations.low


def test_four_bits_are_a_quarter_of_the_linear_weights_and_the_probes_need_the_whole_base() -> None:
    large = Shape(7 * 10**9, 7 * 10**9, (Linear("x", 80_000, 80_000),), 32, 4096, 11_008, 32_000)
    whole = memory(large, Training(), 1, "gpu")
    four = memory(large, Training(quantize="nf4"), 1, "gpu")
    assert four.weights == pytest.approx(0.6e9 * 2 + 6.4e9 * 0.516)
    assert four.total.low > whole.weights + four.weights


def test_time_grows_with_tokens_and_shrinks_with_the_rate_but_never_below_a_start() -> None:
    done = Work(examples=1600, tokens=60_000, steps=100, batch_tokens=800)
    demo = seconds(done, SEEDLING, 330e9)
    assert demo.low < 25 < demo.high, "as measured on the machine with that rate"
    slower = seconds(done, SEEDLING, 33e9)
    assert slower.low > demo.low
    assert seconds(Work(0, 0, 0, 0), SEEDLING, 330e9) == (5.0, 30.0)


def test_price_is_a_range_that_the_budget_ends() -> None:
    """A thousand rows of 500 tokens: one short answer each, or three tries with the longest, each sent back."""
    cheap, dear = price(1000, 500, 256, 3, (0.15, 0.60), None)
    assert cheap == pytest.approx(1000 * (500 * 0.15 + 30 * 0.60) / 1e6)
    assert dear == pytest.approx(1000 * ((3 * 500 + 3 * 256) * 0.15 + 3 * 256 * 0.60) / 1e6)
    assert price(1000, 500, 256, 3, (0.15, 0.60), 0.2) == (pytest.approx(cheap), 0.2)
    assert price(1000, 500, 256, 1, (0.15, 0.60), 0.01) == (0.01, 0.01)
