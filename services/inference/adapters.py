"""Which adapters one engine shall have, against which it has.

An engine forgets its adapters when it restarts, so nothing here reacts to events: `reconcile` asks what is loaded, drops
what shall go and loads what is missing. Names are immutable, one for one content, hence never `load_inplace`: the
engine's prefix cache is keyed by name and would go on answering for the old weights. Does not decide whether an adapter
is good (`gate.py`), nor which are wanted (`fleet.py`).
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from services.inference.client import SECONDS, EngineClient
from understudy.errors import Transient, UnderstudyError
from understudy.interrupt import held
from understudy.terms import Artifact

log = logging.getLogger(__name__)

LOOK_AGAIN = 10.0
"""Seconds after which an adapter that could not be loaded is tried once more."""


def model_name(base: str, run: str, item: str, adapter: Artifact) -> str:
    """`ft:<base>:<run name>:<item>:<first 8 of the digest>`, without characters that URLs or engines trip over."""
    parts = (base, run, item, adapter.sha256[:8])
    return ":".join(["ft", *(re.sub(r"[^A-Za-z0-9._/+@-]", "-", part) for part in parts)])


@dataclass(frozen=True)
class LeftOut:
    """An adapter that is wanted and could not be loaded."""

    reason: str
    until: float
    """On the monotonic clock: not tried again before."""


class Adapters:
    """The adapters of one engine. `serving` and `left_out` may be read from any thread."""

    def __init__(
        self,
        base: str,
        wanted: Callable[[], Mapping[str, Artifact]],
        gone: Callable[[str], bool],
        folder: Callable[[Artifact], Path],
        changed: Callable[[], object] = lambda: None,
    ) -> None:
        """`changed` is called when there is something to reconcile."""
        self.serving: frozenset[str] = frozenset()
        """The base and every loaded adapter; empty while the engine does not answer."""
        self.left_out: dict[str, LeftOut] = {}
        self._base, self._wanted, self._gone = base, wanted, gone
        self._folder, self._changed = folder, changed
        self._books = threading.Lock()
        """Around the three below; never held for long."""
        self._tried: Counter[str] = Counter()
        self._passed: dict[str, Artifact] = {}
        """Tried with success, and perhaps not known to anybody yet."""
        self._dropped: dict[str, float] = {}
        """Tried without: when."""
        self._change = threading.Lock()
        """Around a decision about an adapter and the call that carries it out."""

    @contextmanager
    def trying(self, engine: EngineClient, name: str, adapter: Artifact, folder: Path) -> Iterator[None]:
        """`adapter` loaded under `name`. Left by an error, it is given up, unless it is served anyway; else it stays.

        Raises as `EngineClient.load`. Several may try the same.
        """
        with self._books:
            self._tried[name] += 1
        passed = False
        try:
            with held(self._change):
                engine.load(name, folder)
                self.serving = engine.models()
            yield
            passed = True
        finally:
            with self._books:
                self._tried[name] -= 1
                if passed:
                    self._passed[name] = adapter
                    self._dropped.pop(name, None)
                else:
                    self._dropped[name] = time.monotonic()
            if not passed:
                self._changed()

    def reconcile(self, engine: EngineClient) -> None:
        """Drop and load. Raises `Transient` when the engine does not answer.

        An adapter that cannot be loaded is left out: it must not keep the others from being served.
        """
        present = engine.models() - {self._base}
        wanted = self._shall_have()
        for name in sorted(present - wanted.keys()):
            self._drop(engine, name)
        for name, adapter in wanted.items():
            if name not in present and not self._left_out(name):
                self._load(engine, name, adapter)
        with held(self._change):
            self.serving = engine.models()

    @property
    def unsettled(self) -> bool:
        """Whether another look is due although nothing has changed."""
        return bool(self.left_out or self._dropped)

    def forget(self) -> None:
        """The engine has ended."""
        self.serving = frozenset()
        self.left_out.clear()
        with self._books:
            self._dropped.clear()

    def _shall_have(self) -> Mapping[str, Artifact]:
        wanted, now = self._wanted(), time.monotonic()
        with self._books:
            # What did not pass may still be on its way into the engine, when its trial was cut short.
            self._dropped = {name: at for name, at in self._dropped.items() if now - at < SECONDS}
            self._passed = {
                name: adapter for name, adapter in self._passed.items() if name not in wanted and not self._gone(name)
            }
            wanted = {**wanted, **self._passed}
        for name in self.left_out.keys() - wanted.keys():
            self.left_out.pop(name, None)
        return wanted

    def _drop(self, engine: EngineClient, name: str) -> None:
        """Unload what was given up or is gone; not what nobody knows: another replica may be trying it."""
        with held(self._change):
            with self._books:
                going = not self._tried[name] and (name in self._dropped or self._gone(name))
            if going:
                engine.unload(name)

    def _load(self, engine: EngineClient, name: str, adapter: Artifact) -> None:
        try:
            folder = self._folder(adapter)
        except UnderstudyError as error:
            return self._leave_out(name, error)
        with held(self._change):
            try:
                engine.load(name, folder)
                self.left_out.pop(name, None)
            except Transient:
                raise
            except UnderstudyError as error:
                self._leave_out(name, error)

    def _left_out(self, name: str) -> bool:
        left_out = self.left_out.get(name)
        return left_out is not None and time.monotonic() < left_out.until

    def _leave_out(self, name: str, error: UnderstudyError) -> None:
        before = self.left_out.get(name)
        if before is None or before.reason != str(error):
            log.error("adapter %s is not served: %s", name, error)
        self.left_out[name] = LeftOut(str(error), time.monotonic() + LOOK_AGAIN)
