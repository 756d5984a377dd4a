"""One engine of ours kept alive, against a stub that is a real process, and which of its deaths make a failure."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from services.inference.fleet import Fleet
from services.inference.launch import log_file
from services.inference.local import PATIENCE, Deaths, Local
from services.inference.settings import InferenceSettings
from understudy.bases import Base
from understudy.belt.contracts import ModelServed
from understudy.errors import Transient
from understudy.service.child import Child
from understudy.service.log import MOST_BYTES
from understudy.terms import Artifact

Eventually = Callable[..., None]
Served = Callable[..., ModelServed]
Put = Callable[..., Artifact]
OWN = "Its last words: SafetensorError: incomplete metadata"
SERVER = "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
CORE = "(EngineCore pid=1) ERROR 11-25 02:08:14 [core.py:1] SafetensorError: incomplete metadata"


def kill(process: Child) -> None:
    """Kill the command under the keeper, as the kernel would when memory runs out."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)


@pytest.mark.usefixtures("keeper")
def test_a_killed_engine_comes_back_and_needs_nothing(
    fleet: Fleet, base: Base, served: Served, processes: list[Child], put: Put, eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 8)
    served("ft:one", put("one"))
    fleet.want("ft:one")
    eventually(lambda: fleet.route("ft:one"))
    kill(processes[0])
    eventually(lambda: len(processes) == 2)
    assert engine.wait_ready(10)
    assert engine.failure is None
    assert fleet.route("ft:one") == engine.url
    with engine.client() as client:
        assert client.prompt_logprobs("ft:one", [[1, 2]]) == [[-2.0]]


def test_a_dead_engine_is_not_routed_to(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    assert fleet.route("tiny") == engine.url
    kill(processes[0])
    eventually(lambda: fleet.route("tiny") is None)


def test_one_whose_core_has_died_is_started_again_before_its_server_has_noticed(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 8)
    assert engine.wait_ready(10)
    with engine.client() as client, pytest.raises(Transient):
        client.answers("lose the core")
    eventually(lambda: len(processes) == 2, 4)
    assert engine.wait_ready(10)
    assert engine.failure is None


def test_an_engine_that_keeps_dying_by_itself_says_why_and_is_given_up(
    settings: InferenceSettings, make_base: Callable[..., Base], launch: Callable[..., Child], eventually: Eventually
) -> None:
    base = make_base("broken")
    seen: list[tuple[str | None, str | None]] = []

    def launched(base: Base, settings: InferenceSettings, port: int, rank: int) -> Child:
        seen.append((engine.trouble, engine.failure))
        return launch(base, settings, port, rank)

    engine = Local(base, settings, launch=launched, pause=0.01, patience=0.5)
    engine.start()
    try:
        eventually(lambda: engine.failure)
        assert seen[0] == (None, None)
        assert seen[1][1] is None, "the first may have been bad luck"
        assert "SafetensorError" in str(seen[1][0]), "but it is told"
        assert engine.failure
        assert "SafetensorError: incomplete metadata" in engine.failure
        assert str(log_file(settings, base)) in engine.failure
        eventually(lambda: not engine.alive)
        tries = len(seen)
        time.sleep(0.5)
        assert len(seen) == tries
    finally:
        engine.close()


def test_an_engine_that_is_killed_while_it_starts_is_no_failure(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    """As often as in a second, for longer than one that dies by itself is given."""
    engine = fleet.ensure(base, 8)
    until, killed = time.monotonic() + 1.5, 0
    while killed < 4 or time.monotonic() < until:
        eventually(lambda count=killed: len(processes) > count)
        try:
            kill(processes[killed])
        except (IndexError, FileNotFoundError, ProcessLookupError):  # not there yet, or gone
            continue
        killed += 1
    assert engine.failure is None
    assert engine.wait_ready(10)


def died(
    deaths: Deaths, *at: float, why: str = OWN, killed: bool = False, served: float = 0.0, used: bool = False
) -> list[bool]:
    """Whether each of these deaths, at so many seconds, made a failure; every life was ten seconds long."""
    return [deaths.add(now - 10, now, served, used, killed, why)[0] for now in at]


def test_one_that_dies_by_itself_fails_after_a_minute_of_the_same() -> None:
    assert died(Deaths(PATIENCE), 10, 20, 30, 50, 71) == [False, False, False, False, True]
    assert died(Deaths(PATIENCE), 100) == [False], "one death is none"
    deaths = Deaths(PATIENCE)
    words = [f"port {n} pid={n * 7} at 0x7f{n}: cannot be read" for n in range(5)]
    assert [died(deaths, 20.0 * n, why=each)[0] for n, each in enumerate(words)][-1], "numbers are no other cause"
    deaths = Deaths(PATIENCE)
    assert not any(died(deaths, 20.0 * n, why=each)[0] for n, each in enumerate("abcdefgh")), "each of another cause"


def test_one_that_is_killed_is_given_five_minutes() -> None:
    times = [3.0 * n for n in range(90)]
    assert not any(died(Deaths(PATIENCE), *times, killed=True))
    assert died(Deaths(PATIENCE), *times, 330, killed=True)[-1], "short of memory at every start"


@pytest.mark.parametrize(("said", "chance"), [([SERVER], True), ([CORE, SERVER], False)])
def test_a_core_that_was_killed_is_told_from_one_that_ended_by_itself(
    base: Base, settings: InferenceSettings, eventually: Eventually, said: list[str], chance: bool
) -> None:
    """Either way the server ends by itself, with the same words."""

    def launch(base: Base, settings: InferenceSettings, port: int, rank: int) -> Child:
        lives.append(port)
        lines = said if len(lives) > 1 else [CORE]
        return Child(["sh", "-c", 'printf "%s\\n" "$@"; exit 1', "sh", *lines], log=log_file(settings, base))

    lives: list[int] = []
    engine = Local(base, settings, launch=launch, pause=0.01, patience=0.5)
    engine.start()
    try:
        eventually(lambda: len(lives) > 4 if chance else engine.failure)
        assert bool(engine.failure) is not chance
    finally:
        engine.close()


def test_the_last_words_of_a_life_whose_log_was_put_aside_at_its_start_are_known(
    base: Base, settings: InferenceSettings
) -> None:
    log = log_file(settings, base)
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"a line\n" * (MOST_BYTES // 7 + 1))

    def launch(base: Base, settings: InferenceSettings, port: int, rank: int) -> Child:
        return Child(["sh", "-c", f"echo '{CORE}'; echo '{SERVER}'; exit 1"], log=log)

    why, killed, _ = Local(base, settings, launch=launch)._live(16)
    assert log.stat().st_size < 1000
    assert CORE in why
    assert not killed


def test_what_was_well_meanwhile_begins_anew_and_chance_does_not_excuse_a_base_that_cannot_come_up() -> None:
    deaths = Deaths(PATIENCE)
    died(deaths, 10, 30, 50)
    assert died(deaths, 5000, served=4000) == [False]
    assert died(deaths, 5020, 5040, 5070) == [False, False, True]
    deaths = Deaths(PATIENCE)
    for now in (10, 30, 50):
        died(deaths, now)
        died(deaths, now + 5, killed=True)
    assert died(deaths, 71) == [True]


def test_one_that_comes_up_each_time_and_dies_of_what_it_is_asked_has_not_failed() -> None:
    """An adapter or a request that ends it must not take those with it that wait: whoever is measured counts."""
    assert not any(died(Deaths(PATIENCE), *(20.0 * n for n in range(1, 60)), served=5, used=True))
    assert not any(died(Deaths(PATIENCE), *(90.0 * n for n in range(1, 30)), served=70)), "it served well meanwhile"


def test_one_that_comes_up_and_dies_before_anybody_asked_fails_after_five_minutes() -> None:
    times = [20.0 * n for n in range(1, 16)]
    assert not any(died(Deaths(PATIENCE), *times, served=0.5))
    assert died(Deaths(PATIENCE), *times, 350, served=0.5)[-1]
    deaths = Deaths(PATIENCE)
    died(deaths, *times, served=0.5)
    died(deaths, 310, served=5, used=True)
    assert died(deaths, 350, served=0.5) == [True], "a request between does not excuse it"


def test_an_engine_that_is_waited_for_ends_at_once(
    settings: InferenceSettings, make_base: Callable[..., Base], launch: Callable[..., Child]
) -> None:
    engine = Local(make_base("slow"), settings, launch=launch)
    engine.start()
    assert not engine.wait_ready(0.5)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 2


def test_one_that_is_never_healthy_is_ended_and_says_so(
    settings: InferenceSettings, make_base: Callable[..., Base], launch: Callable[..., Child], eventually: Eventually
) -> None:
    impatient = settings.model_copy(update={"engine_timeout": 0.5})
    engine = Local(make_base("slow"), impatient, launch=launch, pause=0.01, patience=1.0)
    engine.start()
    try:
        eventually(lambda: engine.failure)
        assert "was not healthy after 0 s" in str(engine.failure)
    finally:
        engine.close()


def test_a_larger_rank_restarts_the_engine_once(
    fleet: Fleet, base: Base, processes: list[Child], eventually: Eventually
) -> None:
    engine = fleet.ensure(base, 16)
    assert engine.wait_ready(10)
    engine.require(8)
    engine.require(16)
    time.sleep(0.5)
    assert len(processes) == 1
    engine.require(20)
    assert engine.rank == 32
    eventually(lambda: len(processes) == 2)
    assert engine.wait_ready(10)
    assert engine.failure is None
