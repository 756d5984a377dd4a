"""`store.json` at a store's root: in which form the store is.

Written with the first name of a new store. Does not convert a store of another form; it is refused.
"""

from __future__ import annotations

import json
import re

from understudy.errors import Fatal
from understudy.store.place import Place

MARKER = "store.json"
KIND, VERSION = "understudy.store", 2


class Version:
    """Whether this version of us can use the store at a place. Looks once; `url` is for messages."""

    def __init__(self, place: Place, url: str) -> None:
        self._place = place
        self._url = url
        self._looked = self._marked = False

    def check(self) -> None:
        """Raise `Fatal` when the store is of another form; one that holds nothing will do."""
        if self._looked:
            return
        if not self._is_marked() and self._place.below("refs") and not self._is_marked():  # twice: one may just begin
            raise Fatal(
                f"The artifact store {self._url} was written by an Understudy before version 0.2",
                "Choose another one with UNDERSTUDY_ARTIFACTS (or another data folder), or remove this one.",
            )
        self._looked = True

    def mark(self) -> None:
        """`check`, and mark a store that holds nothing as ours."""
        self.check()
        if not self._marked:
            self._place.create(MARKER, json.dumps({"format": f"{KIND}.v{VERSION}"}).encode())
            self._is_marked()  # perhaps somebody else was first, and newer

    def _is_marked(self) -> bool:
        for content in self._place.read_all([MARKER]).values():
            self._compare(content)
            self._marked = True
        return self._marked

    def _compare(self, content: bytes) -> None:
        try:
            found = str(json.loads(content)["format"])
        except (ValueError, KeyError, TypeError):
            found = ""
        number = re.fullmatch(rf"{re.escape(KIND)}\.v(\d{{1,6}})", found)
        if number is None:
            raise Fatal(
                f"{MARKER} of the artifact store {self._url} does not say in which form it is",
                "Correct UNDERSTUDY_ARTIFACTS, or remove what is there.",
            )
        if int(number[1]) != VERSION:
            age = "a newer" if int(number[1]) > VERSION else "an older"
            raise Fatal(
                f"The artifact store {self._url} was written by {age} Understudy: it is {found}, and this one reads "
                f"{KIND}.v{VERSION}",
                "Use that version, or choose another store with UNDERSTUDY_ARTIFACTS.",
            )
