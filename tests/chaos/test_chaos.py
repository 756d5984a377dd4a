"""Whatever is killed of a running stack and whenever: the run ends by itself, with the artifacts of one that nobody disturbed."""

from __future__ import annotations

import itertools
import os
import random
import secrets
from pathlib import Path

import pytest
from belt import Belt, small_recipe
from chaos import Storm, left_over

KILLS = int(os.environ.get("CHAOS_KILLS", "10"))
"""In all, over as many runs as it takes; `make test-chaos` asks for fifty."""
KILLS_OF_A_RUN = 10
LATEST = 0.7
"""When the first kill may come, of the time that an undisturbed run takes; ten from there reach its end, and seldom need a second run."""
SEED = int(os.environ.get("CHAOS_SEED") or secrets.randbelow(10_000))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600 + 90 * KILLS)]


def test_random_kills_change_nothing(tmp_path: Path, undisturbed: tuple[Belt, str]) -> None:
    calm, killed = undisturbed[0], 0
    for seed in itertools.count(SEED):
        dice = random.Random(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        storm = Storm(Belt(small_recipe(folder), folder / "data"), dice)
        print(f"\nCHAOS_SEED={seed} CHAOS_KILLS={min(KILLS_OF_A_RUN, KILLS - killed)}")
        try:
            said = storm.over(min(KILLS_OF_A_RUN, KILLS - killed), calm=dice.uniform(2, LATEST * calm.seconds))
        finally:
            print("\n".join(storm.killed))
        assert storm.belt.artifacts() == calm.artifacts(), said
        assert not left_over(storm.belt)
        if (killed := killed + len(storm.killed)) == KILLS:
            return
