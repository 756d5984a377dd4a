"""Word of progress: at the end always, and before that only as often as is due."""

from __future__ import annotations

import pytest

from services.datagen import pace


def test_all_is_done_and_the_count_comes_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    monkeypatch.setattr(pace, "PULSE", 60)
    assert list(pace.paced(range(1000), done.append)) == [1000]
    assert done == list(range(1000))
    assert list(pace.paced([], done.append)) == [0]


def test_what_is_slow_is_told_about_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "PULSE", 0)
    assert list(pace.paced("ab", lambda _: None)) == [1, 2, 2]
