"""A provider's buckets in simulated time: what is allowed gets used and hardly anything is refused, whatever the provider says."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import count

import pytest

from understudy.llm.limits import Limits, Sent


@dataclass
class Provider:
    """Token buckets per minute that hold `burst` seconds of their rate."""

    requests: float | None = None
    tokens: float | None = None
    burst: float = 60.0
    headers: bool = True
    levels: dict[str, float] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)
    at: float = 0.0

    def __post_init__(self) -> None:
        limits = {"requests": self.requests, "tokens": self.tokens}
        self.limits = {name: limit for name, limit in limits.items() if limit}
        self.levels = {name: limit / 60 * self.burst for name, limit in self.limits.items()}
        self.used = dict.fromkeys(self.limits, 0.0)

    def ask(self, now: float, tokens: float) -> tuple[float, dict[str, str]]:
        """Seconds to wait (0: it was taken), and headers."""
        costs = {"requests": 1.0, "tokens": tokens}
        for name, limit in self.limits.items():
            self.levels[name] = min(limit / 60 * self.burst, self.levels[name] + limit / 60 * (now - self.at))
        self.at = now
        short = max((costs[name] - self.levels[name]) / (limit / 60) for name, limit in self.limits.items())
        if short <= 1e-9:
            for name in self.limits:
                self.levels[name] -= costs[name]
                self.used[name] += costs[name]
        return max(0.0, short), self.said()

    def said(self) -> dict[str, str]:
        if not self.headers:
            return {}
        return {
            key: value
            for name, limit in self.limits.items()
            for key, value in {
                f"x-ratelimit-limit-{name}": f"{limit:.0f}",
                f"x-ratelimit-remaining-{name}": f"{max(0, int(self.levels[name]))}",
                f"x-ratelimit-reset-{name}": f"{(limit / 60 * self.burst - self.levels[name]) / (limit / 60):.3f}s",
            }.items()
        }

    def allowed(self, name: str, seconds: float) -> float:
        return self.limits[name] / 60 * (self.burst + seconds)


def simulate(provider: Provider, seconds: float, workers: int = 64, latency: float = 0.3) -> tuple[int, int]:
    """`workers` ask for so long, each again when it has its answer; (requests, refusals)."""
    now, dice, number = [0.0], random.Random(1), count()
    limits = Limits(clock=lambda: now[0])
    events: list[tuple[float, int, Callable[[], None]]] = []
    line: deque[int] = deque()
    asked = refused = 0

    def at(when: float, what: Callable[[], None]) -> None:
        heapq.heappush(events, (when, next(number), what))

    def join() -> None:
        line.append(dice.randint(100, 900))
        if len(line) == 1:
            turn()

    def turn() -> None:
        nonlocal asked
        while line:
            sent = limits.take(line[0])
            if isinstance(sent, float):
                at(now[0] + min(1.0, sent) + 1e-6, turn)
                return
            asked += 1
            tokens = line.popleft()
            short, headers = provider.ask(now[0] + 0.001, tokens)
            took = 0.02 if short else latency * dice.uniform(0.5, 2)  # answers overtake one another
            at(now[0] + took, partial(answer, sent, short, headers))

    def answer(sent: Sent, short: float, headers: Mapping[str, str]) -> None:
        nonlocal refused
        if not short:
            limits.answered(sent, headers)
            return join()
        refused += 1
        wait = max(
            limits.refused(sent, headers, f"limit of {'tokens' if provider.tokens else 'requests'}"), int(short) + 1
        )
        limits.pause(wait)
        return at(now[0] + wait, join)

    for worker in range(workers):
        at(latency * (worker > 0), join)  # the first goes ahead
    while events[0][0] < seconds:
        now[0], _, what = heapq.heappop(events)
        what()
    return asked, refused


@pytest.mark.parametrize(
    "provider",
    [
        Provider(requests=3000),
        Provider(requests=3000, burst=1),
        Provider(tokens=600_000, burst=5),
        Provider(requests=3000, tokens=600_000, burst=5),
        Provider(requests=3000, tokens=6_000_000, burst=5),
    ],
    ids=lambda provider: f"{provider.requests}-{provider.tokens}-{provider.burst}",
)
def test_what_headers_allow_is_used_and_not_more(provider: Provider) -> None:
    asked, refused = simulate(provider, 120)
    assert max(used / provider.allowed(name, 120) for name, used in provider.used.items()) >= 0.97
    assert refused <= 0.005 * asked


@pytest.mark.parametrize(
    "provider", [Provider(requests=3000, burst=2, headers=False), Provider(tokens=600_000, burst=5, headers=False)]
)
def test_who_only_says_429_is_measured(provider: Provider) -> None:
    asked, refused = simulate(provider, 600, workers=32)
    assert max(used / provider.allowed(name, 600) for name, used in provider.used.items()) >= 0.97
    assert refused <= 0.005 * asked


def test_a_limit_of_the_day_is_no_limit_of_the_minute() -> None:
    now = [0.0]
    limits = Limits(clock=lambda: now[0])
    sent = limits.take(10)
    assert isinstance(sent, Sent)
    limits.answered(
        sent,
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14370",
            "x-ratelimit-reset-requests": "2m59.56s",
        },
    )
    assert limits.requests.rate == pytest.approx(14400 / 86400, rel=0.01)
    assert isinstance(limits.take(10), Sent), "14,370 are left"


def test_others_who_share_the_limit_are_noticed() -> None:
    now = [0.0]
    limits = Limits(clock=lambda: now[0])
    for remaining in (599, 300):  # somebody else took 298 meanwhile
        sent = limits.take(10)
        assert isinstance(sent, Sent)
        limits.answered(sent, {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": str(remaining)})
    assert limits.requests.level == 300


def test_a_crowd_that_goes_away_is_forgotten() -> None:
    """Two 429s in a row, then none for five minutes: as fast as before."""
    now = [0.0]
    limits = Limits(clock=lambda: now[0])
    rates = []
    for second in range(1, 400):
        sent = 0
        for _ in range(50):
            now[0] += 0.02
            going = limits.take(10)
            if isinstance(going, Sent):
                sent += 1
                if second in (5, 7) and sent == 5:
                    limits.refused(going, {}, "too many")
                    limits.pause(0.5)
                else:
                    limits.answered(going, {})
        rates.append(sent)
    assert rates[0] == 50
    assert min(rates[10:60]) < 45
    assert rates[-1] == 50


def test_nonsense_in_headers_never_stops_the_asking_for_good() -> None:
    now = [100.0]
    limits = Limits(clock=lambda: now[0])
    sent = limits.take(10)
    assert isinstance(sent, Sent)
    for limit, remaining in (("nan", "1"), ("-5", "1"), ("many", "few"), ("1e-300", "0")):
        limits.answered(sent, {"x-ratelimit-limit-tokens": limit, "x-ratelimit-remaining-tokens": remaining})
    assert isinstance(limits.take(10), float)
    now[0] += 61
    assert isinstance(limits.take(10), Sent), "one goes to see"
