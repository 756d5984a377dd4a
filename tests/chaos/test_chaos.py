"""Whatever is killed of a running stack and whenever: the run ends by itself, with the artifacts of one that nobody disturbed."""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest
from belt import Belt, small_recipe
from chaos import Storm, left_over

KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
"""In all; `make test-chaos` asks for fifty."""
KILLS_OF_A_RUN = 10
SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10_000))
FIRST = 45.0
"""The first kill falls into these seconds of a run: about as long as it takes undisturbed."""

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(1500)]


@pytest.mark.parametrize("number", range(KILLS // KILLS_OF_A_RUN))
def test_random_kills_change_nothing(number: int, tmp_path: Path, undisturbed: tuple[Belt, str]) -> None:
    dice = random.Random(SEED + number)
    storm = Storm(Belt(small_recipe(tmp_path), tmp_path / "data"), dice)
    print(f"\nCHAOS_SEED={SEED + number} CHAOS_KILLS={KILLS_OF_A_RUN}")
    try:
        said = storm.over(KILLS_OF_A_RUN, calm=dice.uniform(2, FIRST))
    finally:
        print("\n".join(storm.killed))
    assert len(storm.killed) == KILLS_OF_A_RUN, "the run was over before"
    assert storm.belt.artifacts() == undisturbed[0].artifacts(), said
    assert not left_over(storm.belt)
