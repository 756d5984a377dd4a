"""The nearest word to one that is not known, as half a sentence for an error. Its one home."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MOST_NAMED = 20
"""Words that an error lists; with more it says how many there are."""
MOST_SEARCHED = 500
"""Words that are looked through: a search takes time, and somebody waits for it."""


def nearest(word: str, known: Collection[str]) -> str:
    """` (did you mean `x`?)`, or what there is."""
    if len(known) <= MOST_SEARCHED and (close := difflib.get_close_matches(word, known, n=1)):
        return f" (did you mean `{close[0]}`?)"
    if len(known) > MOST_NAMED:
        return f" ({len(known):,} are known)"
    return f" (known: {', '.join(sorted(known)) or 'none'})"
