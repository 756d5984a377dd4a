"""Proves that the page stands alone, escapes what models wrote, and says in words what the numbers say."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from services.evaluator import figures, page, words
from services.evaluator.panels import Questionnaire
from services.evaluator.report import Report, Training, compare, versions
from understudy.records import Prediction

World = Any
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


def predictions(world: World, texts: list[str], asked: Questionnaire) -> list[Prediction]:
    return asked.label(
        [
            Prediction(id=e.id, text=t, finish_reason="stop", prompt_tokens=9, completion_tokens=3)
            for e, t in zip(asked.examples, texts, strict=True)
        ]
    )


@pytest.fixture
def report(world: World, remarks: Questionnaire) -> Report:
    right = [e.completion for e in remarks.examples]
    base = ["I cannot say <script>alert('x')</script>" if i % 2 else text for i, text in enumerate(right)]
    answers = {"base": predictions(world, base, remarks), "tuned": predictions(world, right, remarks)}
    return Report(
        run="r1",
        recipe=world.recipe.model_dump(mode="json"),
        variants=("base", "tuned"),
        models={"base": "seedling", "tuned": "ft:tuned"},
        failed={"broad": "Ran out of <b>memory</b>."},
        panels=(compare(world.recipe, remarks, answers),),
        training={"tuned": Training(steps=3, tokens=12345, loss=((1, 3.0), (2, 2.5), (3, 2.0)))},
        datasets={},
        decoding={"method": "greedy", "temperature": 0.0, "seed": 17},
        versions=versions(),
    )


def test_the_page_stands_alone_and_escapes_everything(report: Report) -> None:
    html = page.render(report)
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
    assert page.render(report) == page.render(Report.model_validate_json(report.model_dump_json()))


def test_the_answer_is_given_in_words_with_its_interval(report: Report) -> None:
    assert words.headline(report, "tuned") == "Gained on in-domain"
    (finding,) = words.findings(report, "tuned")
    assert finding.text.startswith("accuracy rose from 50.0 % to 100.0 % (+50.0 points, 95 % interval +3")
    assert finding.text.endswith("precision, recall and F1 better too")
    assert "base: no class could be read from 20 of 40 answers on in-domain; they count as wrong." in words.caveats(
        report
    )


def test_a_difference_the_data_do_not_show_is_called_so(report: Report, world: World, remarks: Questionnaire) -> None:
    same = predictions(world, [e.completion for e in remarks.examples], remarks)
    level = report.model_copy(update={"panels": (compare(world.recipe, remarks, {"base": same, "tuned": same}),)})
    assert words.headline(level, "tuned") == "No clear difference from the base"
    assert "accuracy, precision, recall and F1: no clear difference" in words.findings(level, "tuned")[0].text


def test_without_the_base_there_is_nothing_to_compare(report: Report, world: World, remarks: Questionnaire) -> None:
    alone = predictions(world, [e.completion for e in remarks.examples], remarks)
    panel = compare(world.recipe, remarks, {"tuned": alone})
    assert panel.metrics[0].cells["tuned"].verdict is None
    html = page.render(report.model_copy(update={"variants": ("tuned",), "panels": (panel,)}))
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
    long = Training(loss=tuple((step, 5.0 if step % 2 else 3.0) for step in range(1, 1001)))
    drawn = figures.curves({"tuned": long})
    assert drawn
    assert len(drawn.lines["tuned"].split()) <= figures.POINTS
    assert figures.curves({"tuned": Training()}) is None


def test_long_answers_are_clipped_on_the_page_only() -> None:
    assert page.clip("x" * 2000).endswith("(500 more characters)")
    assert page.clip("short") == "short"
