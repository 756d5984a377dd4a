"""The views: what a person reads while a run goes on, and at its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from understudy.belt.contracts import Progress
from understudy.belt.folds.views import ItemState, RunState, RunSummary
from understudy.errors import NotFound
from understudy_cli import watch as module
from understudy_cli.client import Deleted, Unreachable
from understudy_cli.folder import Folder
from understudy_cli.watch import changes, counts, view, watch


def state(status: str = "running", **items: ItemState) -> RunState:
    stages = [item.stage for item in items.values()]
    return RunState.model_validate(
        {
            "id": "r-1",
            "name": "r",
            "status": status,
            "generation": 1,
            "created_at": 0,
            "bases": ["seedling"],
            "stages": {stage: stages.count(stage) for stage in stages},
            "plan": {"sha256": "0"},
            "items": items,
        }
    )


def training(done: int, total: int = 100, **figures: float) -> ItemState:
    progress = Progress(
        run="r-1", item="mine", station="trainer", step="training", done=done, total=total, figures=figures
    )
    return ItemState(stage="training", progress=progress)


def turn(place: int) -> ItemState:
    return ItemState(place=place, reason=f"waits for its turn: {place} of this run before it")


class Script(Folder):
    """A source that answers, or raises, one thing after another."""

    def __init__(self, *answers: RunState | Exception) -> None:
        self._answers = list(answers)

    def run(self, run: str) -> RunState:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVERY", 0.001)


def plain() -> Console:
    return Console(file=io.StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_output_has_one_line_per_change_and_not_one_per_look() -> None:
    """100 looks at one training become at most one line per fifth of it, then the end of each item."""
    looks = [state(mine=training(done)) for done in range(100)]
    console = plain()
    end = watch(Script(*looks, state("finished", mine=ItemState(stage="scored"))), looks[0], console)
    assert end.status == "finished"
    lines = text(console).splitlines()
    assert len(lines) == 6
    assert lines[0].endswith("mine: trainer: training 0/100")
    assert lines[-1].endswith("mine: scored")


def test_gateway_that_restarts_is_waited_for() -> None:
    """Silence, then a gateway that has not read its log yet, then the run again: said once each, and the watch goes on."""
    console = plain()
    source = Script(
        Unreachable("gone"),
        Unreachable("gone"),
        NotFound("not yet"),
        state("finished", mine=ItemState(stage="scored")),
    )
    assert watch(source, state(mine=training(1)), console).status == "finished"
    assert text(console).count("reconnecting") == 1
    assert text(console).count("answers again") == 1


def test_silence_beyond_patience_is_an_error() -> None:
    """A gateway that is gone for good does not hold us for ever."""
    with pytest.raises(Unreachable):
        watch(Script(Unreachable("gone")), state(mine=training(1)), plain(), patience=0.05)


def test_a_run_that_is_deleted_meanwhile_ends_the_watch_at_once() -> None:
    """There is nothing to wait for, and nobody reconnects."""
    console = plain()
    with pytest.raises(Deleted, match="was deleted"):
        watch(Script(state(mine=training(2)), Deleted("Run `r-1` was deleted")), state(mine=training(1)), console)
    assert "reconnecting" not in text(console)


def test_live_view_has_a_row_per_item_with_stations_and_figures() -> None:
    """Where each item is, how far, how fast, and why one left."""
    console = plain()
    failed = ItemState(stage="failed", reason="no tokens left")
    console.print(
        view(
            state(
                mine=training(50, loss=1.5, validation_loss=1.25, tokens_per_second=1234.5, eta_seconds=75),
                other=failed,
            ),
            65,
            False,
        )
    )
    lines = text(console).splitlines()
    (row,) = [number for number, line in enumerate(lines) if "mine" in line]
    assert "datagen ✓ → trainer ● → inference · → evaluator ·" in lines[row]
    for part in ("training 50/100", "loss 1.500", "validation 1.250", "1,234 tokens/s", "1:15 left"):
        assert part in lines[row + 1]
    assert "no tokens left" in text(console)
    assert "running · 1:05" in text(console)
    console.print(view(state(), 1, True))
    assert "reconnecting" in text(console)


def test_progress_without_a_total_is_shown_without_one() -> None:
    """Unknown totals divide nothing."""
    assert changes(state(mine=training(3, total=0)))["mine"][1] == "trainer: training"


def test_every_waiting_item_says_what_for_and_how_many_go_before_it() -> None:
    """In the live view always as it is now; in plain lines once, and again when it waits for something else."""
    queued = ItemState(stage="training", place=2, reason="waits for the trainer: 2 before it")
    console = plain()
    console.print(view(state(a=turn(0), b=turn(1), c=queued), 1, False))
    lines = text(console).splitlines()
    assert "waits for its turn: 1 of this run before it" in next(line for line in lines if " b " in line)
    (row,) = [number for number, line in enumerate(lines) if " c " in line]
    assert "datagen ✓ → trainer ●" in lines[row]
    assert "waits for the trainer: 2 before it" in lines[row + 1]
    console = plain()
    looks = [state(b=turn(3)), state(b=turn(2)), state(b=turn(1)), state(b=queued), state(b=training(0))]
    watch(Script(*looks[1:], state("finished", b=ItemState(stage="scored"))), looks[0], console)
    assert [line.split(" ", 1)[1] for line in text(console).splitlines()] == [
        "b: waits for its turn: 3 of this run before it",
        "b: waits for the trainer: 2 before it",
        "b: trainer: training 0/100",
        "b: scored",
    ]


def test_a_run_that_is_cancelled_elsewhere_ends_the_watch_with_that_word() -> None:
    console = plain()
    items = {"a": ItemState(stage="scored"), "b": ItemState(stage="cancelled")}
    assert watch(Script(state("cancelled", **items)), state(a=training(1), b=turn(0)), console).status == "cancelled"
    said = [line.split(" ", 1)[1] for line in text(console).splitlines()]
    assert said[-3:] == ["run: cancelled", "a: scored", "b: cancelled"]
    console.print(view(state("cancelled", **items), 1, False))
    assert "cancelled · 0:01" in text(console)


def test_of_a_large_run_what_ended_is_counted_and_what_failed_is_shown() -> None:
    """Hundreds of rows would hide those that matter: the failed, those at work, and those that wait."""
    items = {f"done{number}": ItemState(stage="scored") for number in range(40)}
    items |= {"bad": ItemState(stage="failed", reason="no luck"), "busy": training(5), "next": turn(0)}
    console = plain()
    console.print(view(state(**items), 1, False))
    assert "1 waiting, 1 training, 40 scored, 1 failed" in text(console)
    for name, shown in (("done7", False), ("bad", True), ("busy", True), ("next", True)):
        assert (name in text(console)) is shown
    assert counts(RunSummary(**dict(state(**items)))) == "1 waiting, 1 training, 40 scored, 1 failed"
