"""The nearest word to one that is not known, as half a sentence for an error. Its one home."""

from __future__ import annotations

import difflib
from collections.abc import Collection

MOST_NAMED = 20
"""Words that an error lists; with more it says how many there are."""
MOST_SEARCHED = 500
"""Words that are looked through: a search takes time, and somebody waits for it."""
LONGEST = 200
"""Characters of a word that may be meant for another."""


def meant(word: str, known: Collection[str]) -> str:
    """` (did you mean `x`?)`, whatever its case; empty when no known word is near, it is too long, or there are too many."""
    if len(known) > MOST_SEARCHED or len(word) > LONGEST:
        return ""
    folded = {name.casefold(): name for name in known}
    close = difflib.get_close_matches(word.casefold(), folded, n=1)
    return f" (did you mean `{folded[close[0]]}`?)" if close else ""


def nearest(word: str, known: Collection[str]) -> str:
    """What is meant, or what there is."""
    if near := meant(word, known):
        return near
    if len(known) > MOST_NAMED:
        return f" ({len(known):,} are known)"
    return f" (known: {', '.join(sorted(known)) or 'none'})"
