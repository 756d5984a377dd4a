"""Proves that the page stands alone, escapes what models wrote, and says in words what the numbers say."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from services.evaluator import figures, page
from services.evaluator.measure import measure, write_answers, write_measures
from services.evaluator.metrics.bleu import Bleu
from services.evaluator.panels import Questionnaire, questionnaire
from services.evaluator.reports import Reports
from understudy import findings as words
from understudy.belt.folds.views import ItemState
from understudy.records import Answered, Prediction, TrainingRecord, write_json
from understudy.report import Inputs, Report, Scored
from understudy.store import keys
from understudy.terms import Gate
from understudy.testing import run_of

World = Any
RUNS = itertools.count(2)
VOID = {"meta", "line", "circle", "polyline", "br", "link", "img"}


class Reader(HTMLParser):
    """Checks that tags close in order, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def predictions(texts: list[str], asked: Questionnaire) -> list[Prediction]:
    return [
        Prediction(id=e.id, text=t, finish_reason="stop", prompt_tokens=9, completion_tokens=3)
        for e, t in zip(asked.examples, texts, strict=True)
    ]


def made(
    world: World,
    asked: Questionnaire,
    answers: dict[str, list[Prediction]],
    after: Callable[[str], object] = str,
    **about: Any,
) -> Report:
    """The report on these answers to one panel; `after` is called with each item that was measured."""
    store = world.store
    run = f"r{next(RUNS)}"
    scored = {}
    for item, said in answers.items():
        whose = Answered(item=item, model=item, decoding={"method": "greedy", "temperature": 0.0, "seed": 17})
        with store.draft() as folder:
            write_answers(folder, whose, {asked.name: said})
            kept = store.put(keys.answers(run, item), folder)
        with store.draft() as folder:
            write_measures(folder, whose, {asked.name: measure(asked, said, folder)})
            if item == "tuned":
                loss = ((1, 3.0), (2, 2.5), (3, 2.0))
                write_json(folder / "training.json", training(steps=3, tokens=12345, loss=loss))
            scored[item] = Scored(answers=kept, measures=store.put(keys.measures(run, item), folder))
        after(item)
    plan = world.plan.model_copy(update={"panels": {asked.name: world.plan.panels[asked.name]}})
    with store.draft() as folder:
        write_json(folder / "plan.json", plan)
        artifact = store.put(keys.plan(run), folder)
    inputs = Inputs(run=run, plan=artifact, datasets=world.made.datasets, scored=scored, **about)
    return Reports(store, world.plans).make(inputs)


def training(**figures: Any) -> TrainingRecord:
    return TrainingRecord.model_validate(figures)


@pytest.fixture
def report(world: World, remarks: Questionnaire) -> Report:
    right = [e.completion for e in remarks.examples]
    base = ["I cannot say <script>alert('x')</script>" if i % 2 else text for i, text in enumerate(right)]
    answers = {"base": predictions(base, remarks), "tuned": predictions(right, remarks)}
    return made(world, remarks, answers, failed=("broad",))


def test_the_page_stands_alone_and_escapes_everything(report: Report) -> None:
    html = page.render(report, run_of(broad=ItemState(stage="failed", reason="Ran out of <b>memory</b>.")))
    reader = Reader()
    reader.feed(html)
    assert not reader.open
    assert not reader.tags & {"script", "link", "img", "iframe", "object"}
    assert reader.links == []
    assert "url(" not in html
    assert "@import" not in html
    assert "<script>alert('x')</script>" in reader.text  # as text
    assert "Ran out of <b>memory</b>." in reader.text


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert page.render(report, run_of()) == page.render(Report.model_validate_json(report.model_dump_json()), run_of())


def test_the_answer_is_given_in_words_with_its_interval(report: Report) -> None:
    assert words.headline(report, "tuned") == "Gained on in-domain"
    (finding,) = words.findings(report, "tuned")
    assert finding.text.startswith("accuracy rose from 50.0 % to 100.0 % (+50.0 points, 95 % interval +3")
    assert finding.text.endswith("precision, recall and F1 better too")
    (opening,) = words.openings(report)
    assert opening.startswith("On in-domain, 20 of 40 answers of the base name no class")
    assert words.caveats(report) == [], "and nothing says that twice"


def test_a_difference_the_data_do_not_show_is_called_so(report: Report, world: World, remarks: Questionnaire) -> None:
    same = predictions([e.completion for e in remarks.examples], remarks)
    level = made(world, remarks, {"base": same, "tuned": same})
    assert words.headline(level, "tuned") == "No clear difference from the base"
    assert "accuracy, precision, recall and F1: no clear difference" in words.findings(level, "tuned")[0].text


def test_without_the_base_there_is_nothing_to_compare(report: Report, world: World, remarks: Questionnaire) -> None:
    alone = predictions([e.completion for e in remarks.examples], remarks)
    report = made(world, remarks, {"tuned": alone})
    assert report.panels[0].metrics[0].cells["tuned"].verdict is None
    html = page.render(report, run_of())
    assert "The base model was not scored" in html


def test_rows_to_read_show_disagreement_first_and_then_chance(report: Report) -> None:
    picked = [shown.picked for shown in report.panels[0].examples]
    assert picked == ["answers differ most"] * 6 + ["at random"] * 6
    assert all(s.answers["base"].right != s.answers["tuned"].right for s in report.panels[0].examples[:6])
    assert len({s.id for s in report.panels[0].examples}) == 12


def test_confusion_counts_answers_without_a_class_apart(report: Report) -> None:
    assert report.panels[0].confusion == {"base": ((20, 0, 0), (0, 0, 20)), "tuned": ((20, 0, 0), (0, 20, 0))}


def test_right_of_the_middle_is_better_also_where_lower_is_better(report: Report) -> None:
    row = report.panels[0].metrics[0]
    (whisker,) = figures.forest(row)
    assert 50 < whisker.low < whisker.at < whisker.high == 50 + figures.REACH
    (flipped,) = figures.forest(row.model_copy(update={"higher_is_better": False}))
    assert (flipped.low, flipped.high) == pytest.approx((100 - whisker.high, 100 - whisker.low))


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0, 300, [0, 100, 200, 300]), (0.94, 3.2, [0, 1, 2, 3, 4]), (2, 2, [2, 2.0000005])]
)
def test_ticks_are_round_and_enclose_the_data(low: float, high: float, expected: list[float]) -> None:
    found = figures.ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert found[:2] == pytest.approx(expected[:2], abs=1e-5)
    assert len(found) <= 8


def test_a_loss_curve_is_thinned_to_means(report: Report) -> None:
    long = training(loss=tuple((step, 5.0 if step % 2 else 3.0) for step in range(1, 1001)))
    drawn = figures.curves({"tuned": long})
    assert drawn
    assert len(drawn.lines["tuned"].split()) <= figures.POINTS
    assert figures.curves({"tuned": training()}) is None


def test_long_answers_are_clipped_on_the_page_only() -> None:
    assert page.clip("x" * 2000).endswith("(500 more characters)")
    assert page.clip("short") == "short"


def test_what_was_cancelled_is_called_so(report: Report) -> None:
    reader = Reader()
    reader.feed(
        page.render(
            report.model_copy(
                update={"inputs": report.inputs.model_copy(update={"failed": (), "cancelled": ("broad",)})}
            ),
            run_of(),
        )
    )
    assert "broad was cancelled." in reader.text


@pytest.fixture
def two_bases(tmp_path: Path, world_of: type[World]) -> tuple[World, Questionnaire, Report]:
    """The first base gets half of the answers right, the second all; each of their variants does the opposite."""
    world = world_of(tmp_path / "two", base=("seedling", "tiny"))
    asked = questionnaire(world.store, world.plan, "in-domain", world.datasets)
    right = [e.completion for e in asked.examples]
    half = [text if i % 2 else "positive" for i, text in enumerate(right)]
    said = {"base@seedling": half, "tuned@seedling": right, "base@tiny": right, "tuned@tiny": half}
    answers = {name: predictions(texts, asked) for name, texts in said.items()}
    return world, asked, made(world, asked, answers)


def test_each_variant_is_held_against_its_own_base(two_bases: tuple[World, Questionnaire, Report]) -> None:
    _, _, report = two_bases
    accuracy = report.panels[0].metrics[0]
    assert [accuracy.cells[f"base@{base}"].delta for base in ("seedling", "tiny")] == [None, None]
    assert accuracy.cells["tuned@seedling"].delta == -(accuracy.cells["tuned@tiny"].delta or 0) == 0.5
    assert words.headline(report, "tuned@seedling") == "Gained on in-domain"
    assert words.headline(report, "tuned@tiny") == "Lost on in-domain"
    assert words.findings(report, "tuned@tiny")[0].text.startswith("accuracy fell from 100.0 % to 50.0 %")
    reader = Reader()
    reader.feed(page.render(report, run_of()))
    assert not reader.open
    assert "2 fine-tuned variants and 2 untouched bases on seedling and tiny" in " ".join(reader.text.split())
    assert "tuned@tiny on tiny" in reader.text, "which base it has"
    assert "Difference from its base" in reader.text


def test_a_base_that_was_not_scored_takes_the_differences_from_its_own_variants_only(
    two_bases: tuple[World, Questionnaire, Report],
) -> None:
    world, asked, report = two_bases
    right = predictions([e.completion for e in asked.examples], asked)
    report = made(world, asked, dict.fromkeys(("base@seedling", "tuned@seedling", "tuned@tiny"), right))
    lost = report.panels[0]
    assert lost.metrics[0].cells["tuned@seedling"].verdict
    assert lost.metrics[0].cells["tuned@tiny"].verdict is None
    assert words.caveats(report) == ["base@tiny was not scored, so there is nothing to hold tuned@tiny against."]
    assert words.headline(report, "tuned@seedling") == "No clear difference from base@seedling"
    assert report.compared == ("tuned@seedling",)
    page.render(report, run_of())


def test_a_base_that_cannot_say_how_likely_a_reference_is_takes_nothing_from_the_others(
    two_bases: tuple[World, Questionnaire, Report],
) -> None:
    world, _, report = two_bases
    asked = questionnaire(world.store, world.plan, "general", world.datasets)
    heard = [
        Prediction(
            id=e.id,
            text=e.completion,
            finish_reason="stop",
            prompt_tokens=9,
            completion_tokens=3,
            reference_logprob=-4.0,
            reference_tokens=4,
        )
        for e in asked.examples
    ]
    silent = [p.model_copy(update={"reference_logprob": None, "reference_tokens": None}) for p in heard]
    answers = {name: silent if name.endswith("tiny") else heard for name in report.items}
    report = made(world, asked, answers)
    perplexity = report.panels[0].metrics[0]
    assert (perplexity.metric, perplexity.n, set(perplexity.cells)) == (
        "perplexity",
        len(heard),
        {"base@seedling", "tuned@seedling"},
    )
    html = page.render(report, run_of())
    assert "<td>–</td>" in html
    assert "Perplexity depends on the tokenizer" in html


def test_perplexity_of_another_base_is_shown_and_not_compared(
    two_bases: tuple[World, Questionnaire, Report],
) -> None:
    """It is per token, and another base has other tokens; the other metrics are compared with any item."""
    world, _, report = two_bases
    asked = questionnaire(world.store, world.plan, "general", world.datasets)
    said = [
        p.model_copy(update={"reference_logprob": -4.0, "reference_tokens": 4})
        for p in predictions([e.completion for e in asked.examples], asked)
    ]
    against = made(world, asked, dict.fromkeys(report.items, said), baseline="base@tiny")
    perplexity, bleu = against.panels[0].row("perplexity"), against.panels[0].row("bleu")
    assert perplexity
    assert bleu
    assert perplexity.cells["tuned@tiny"].verdict == "no clear difference"
    assert perplexity.cells["base@seedling"].verdict is None
    assert perplexity.cells["base@seedling"].value == perplexity.cells["base@tiny"].value
    assert bleu.cells["base@seedling"].verdict == "no clear difference"


def test_what_was_measured_otherwise_is_left_out_and_says_so(world: World, remarks: Questionnaire) -> None:
    """A package that computes anew must not be compared with one that computed before, and the old is no worse for it."""
    asked = questionnaire(world.store, world.plan, "general", world.datasets)
    said = predictions([e.completion for e in asked.examples], asked)
    answers = {"base": said, "tuned": said, "broad": said}
    signature = Bleu.signatures
    Bleu.signatures = lambda self: {"bleu": f"bleu|{len(measured)}"}  # type: ignore[method-assign]
    measured: list[str] = []
    try:
        report = made(world, asked, answers, after=lambda item: measured.append("x") if item == "tuned" else None)
    finally:
        Bleu.signatures = signature  # type: ignore[method-assign]
    row = report.panels[0].row("bleu")
    assert row
    assert row.signature == "bleu|0"
    assert set(row.cells) == {"base", "tuned"}
    assert report.panels[0].not_computed["bleu of broad"].startswith("it was measured by another version")
    assert "BLEU of broad on general was not computed" in " ".join(words.caveats(report))


def test_settings_that_differ_between_variants_are_named_with_them(report: Report, world: World) -> None:
    (alike,) = words.trainings(report)
    assert alike[0] == ""
    other = [
        item.model_copy(update={"training": item.training.model_copy(update={"learning_rate": 0.001})})
        if item.name == "broad"
        else item
        for item in world.plan.items
    ]
    plan = world.plan.model_copy(update={"items": tuple(other)})
    both = report.model_copy(update={"items": ("base", "tuned", "broad"), "plan": plan})
    assert [(names, training.learning_rate) for names, training in words.trainings(both)] == [
        ("tuned", 2e-4),
        ("broad", 0.001),
    ]


def test_the_loss_on_validation_rows_is_drawn_and_the_kept_step_named(report: Report) -> None:
    watched = training(
        steps=3, tokens=9, loss=((1, 3.0), (2, 2.5), (3, 2.0)), validation=((2, 2.75), (3, 2.8)), kept_step=2
    )
    html = page.render(report.model_copy(update={"training": {"tuned": watched}}), run_of())
    assert 'class="v1 watched" points="' in html
    assert "kept: step 2, 2.750" in html


def test_what_the_gate_measured_is_told(report: Report) -> None:
    gate = Gate(
        tokens=321, effect_nats=0.52, noise_nats=0.00002, trained_effect_nats=0.51, slope=1.01, disagreement=0.02
    )
    reader = Reader()
    reader.feed(page.render(report, run_of(tuned=ItemState(stage="scored", gate=gate))))
    assert "changes 321 tokens by 0.52 nats (in training 0.51, slope 1.010)" in " ".join(reader.text.split())
