"""The life of a run as a list of messages: stations that fail, people who cancel, resume, replay and delete, all by dice.

The closer is played with the real rules (`turns.py`), so that what comes out is what the belt would publish.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from random import Random

from understudy.belt import contracts as c
from understudy.belt import turns
from understudy.belt.bus import Record
from understudy.belt.folds import Fold
from understudy.belt.topics import topic_of
from understudy.belt.turns import Book
from understudy.plan import Item, Plan, PlannedBase

A = c.Artifact(sha256="0" * 64)
PLAN = Plan(
    name="r",
    window=2,
    bases=(PlannedBase(name="seedling", reference="seedling"),),
    items=tuple(
        Item(name=f"i{number}", stages=({"d": 1.0},) if number else (), ends_at="served" if number == 3 else "scored")
        for number in range(5)
    ),
)


class Life:
    """One run, from its request to wherever the dice let it go."""

    def __init__(self, dice: Random, run: str = "r", events: int = 40) -> None:
        self.dice, self.run = dice, run
        self.messages: list[c.Message] = []
        self.book, self.generation = Book(), 0
        self.belt: list[c.Message] = []
        """What stations have before them."""
        self.letters: list[c.OnBelt] = []
        self.ask()
        for _ in range(events):
            self.step()

    def ask(self) -> None:
        self.generation += 1
        about = {"run": self.run, "generation": self.generation}
        for index, item in enumerate(PLAN.items):
            self.publish(c.ItemPlanned(**about, item=item.name, index=index, base="seedling", what=item.what))
        request = c.RunRequested(**about, plan=A, name="r", bases=("seedling",), items=len(PLAN.items))
        self.publish(request)
        self.belt.append(request)

    def step(self) -> None:
        wish = self.dice.random()
        over = turns.closed(self.book, PLAN)
        if wish < 0.04:
            self.control(c.CancelRequested(run=self.run, generation=self.generation))
        elif wish < 0.08:
            item = self.dice.choice(PLAN.items).name
            self.control(c.CancelRequested(run=self.run, generation=self.generation, item=item))
        elif wish < 0.09:
            self.control(c.RunDeleted(run=self.run, generation=self.generation))
            self.ask()
        elif wish < 0.16 and over:
            self.ask()
        elif wish < 0.25 and self.letters:
            letter = self.letters.pop(self.dice.randrange(len(self.letters))).again()
            self.publish(letter)
            self.belt.append(letter)
        elif self.belt:
            self.work(self.belt.pop(self.dice.randrange(len(self.belt))))

    def work(self, message: c.Message) -> None:
        if message.generation <= self.book.deleted:
            return
        about = {"run": self.run, "generation": message.generation, "attempt": message.attempt}
        if isinstance(message, c.RunRequested):
            if message.generation <= self.book.cancelled:
                return
            self.publish(c.Progress(**about, station="datagen", step="reading", at=len(self.messages)))
            if self.dice.random() < 0.1:
                self.publish(c.RunClosed(**about, status="failed", station="datagen", reason="no table"))
            else:
                self.control(c.DatasetsMade(**about, plan=A, datasets=A))
            return
        assert isinstance(message, c.OnBelt)
        if self.book.cancels(message.item, message.generation):
            return
        station = {c.TrainingRequested: "trainer", c.ServingRequested: "inference"}.get(type(message), "evaluator")
        for _ in range(self.dice.randrange(3)):
            step = c.Progress(**about, item=message.item, station=station, step="works", at=len(self.messages))
            self.publish(step)
        if self.dice.random() < 0.15:
            self.letters.append(message)
            self.control(c.ItemFailed(**about, item=message.item, station=station, reason=f"{station} cannot"))
        elif isinstance(message, c.TrainingRequested):
            self.on(c.ServingRequested.following(message, adapter=A))
        elif isinstance(message, c.ServingRequested):
            model = f"ft:{message.item}"
            self.publish(c.ModelServed(**about, item=message.item, model=model, base="seedling", parent="seedling"))
            if PLAN.item(message.item).ends_at == "served":
                self.control(c.ItemServed(**about, item=message.item, model=model))
            else:
                self.on(c.ScoringRequested.following(message, model=model))
        else:
            self.control(c.ItemScored(**about, item=message.item, answers=A, measures=A))

    def on(self, message: c.OnBelt) -> None:
        self.publish(message)
        self.belt.append(message)

    def control(self, message: c.Message) -> None:
        """A message of run-control, and what the closer makes of it."""
        self.publish(message)
        before, self.book = self.book, turns.apply(self.book, message)
        released = {(name, self.book.generation) for name in turns.let_go(self.book, PLAN)}
        released -= {(name, before.generation) for name in turns.let_go(before, PLAN)}
        for name, generation in sorted(released):
            index = [item.name for item in PLAN.items].index(name)
            kind = c.TrainingRequested if PLAN.items[index].stages else c.ServingRequested
            self.on(kind(run=self.run, generation=generation, item=name, index=index, plan=A, datasets=A))
        over = turns.closed(self.book, PLAN)
        if over and (not turns.closed(before, PLAN) or turns.outcome(before) != turns.outcome(self.book)):
            status = "cancelled" if self.book.cancelled >= self.book.reached else "finished"
            self.publish(
                c.RunClosed(
                    run=self.run,
                    generation=self.book.reached,
                    status=status,
                    outcome=turns.outcome(self.book),
                    report=A,
                )
            )

    def publish(self, message: c.Message) -> None:
        self.messages.append(message)


def records(messages: Iterable[c.Message]) -> list[tuple[c.Message, Record]]:
    """As they would lie on the bus, with offsets by topic and a clock that ticks."""
    offsets: defaultdict[str, int] = defaultdict(int)
    lie = []
    for tick, message in enumerate(messages):
        topic = topic_of(message).name
        lie.append((message, Record(topic, 0, offsets[topic], 1000.0 + tick, b"")))
        offsets[topic] += 1
    return lie


def shuffled(lie: list[tuple[c.Message, Record]], dice: Random) -> list[tuple[c.Message, Record]]:
    """Another order of reading: that of each topic is kept, doubles come later in their topic and in time."""
    topics: defaultdict[str, list[tuple[c.Message, Record]]] = defaultdict(list)
    for message, record in lie:
        topics[record.topic].append((message, record))
    for topic, read in topics.items():
        end = len(read)
        doubles = sorted(dice.sample(range(end), dice.randrange(end + 1) // 2)) if topic != "run-control" else []
        for number, place in enumerate(doubles):
            message, record = read[place]
            read.append((message, Record(topic, 0, end + number, record.timestamp + 10_000, b"")))
    mixed = []
    while topics:
        topic = dice.choice(sorted(topics))
        mixed.append(topics[topic].pop(0))
        if not topics[topic]:
            del topics[topic]
    return mixed


def feed(lie: Iterable[tuple[c.Message, Record]], *folds: Fold) -> None:
    """As the reader does."""
    for message, record in lie:
        for fold in folds:
            if record.topic in fold.topics:
                fold.read(message, record)
