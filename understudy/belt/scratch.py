"""Unfinished work, and how it passes from one replica to the next.

    <data>/work/<station>/<member>/<unit>/      rows, checkpoints, answers: whatever makes a second start cheap

Each replica writes in a folder of its own, so one that was given up but lives on disturbs nobody. Whoever is handed
the message next copies what a replica beside it left, if they share a data folder. What lies there must be fit for
that: it says itself what of it is whole. Does not know what the work is."""

from __future__ import annotations

import secrets
import shutil
from contextlib import suppress
from pathlib import Path


def take_up(work: Path, *unit: str) -> Path:
    """Our folder for `unit`, which need not exist yet; a copy of another replica's when only that has one.

    `work` is `Settings.work(station)`.
    """
    ours, *others = everywhere(work, *unit)
    if not ours.exists():
        for left in sorted(filter(Path.is_dir, others), key=lambda path: path.stat().st_mtime, reverse=True):
            partial = ours.with_name(f".{ours.name}.{secrets.token_hex(4)}")
            try:
                shutil.copytree(left, partial)
                partial.rename(ours)
                break
            except (
                OSError
            ):  # its owner is alive after all, and tidies up; or the disk is full, which work will say better
                shutil.rmtree(partial, ignore_errors=True)
    return ours


def everywhere(work: Path, *unit: str) -> list[Path]:
    """Where `unit` may lie: our folder, then those of the replicas beside us."""
    replicas = sorted(path for path in work.parent.glob("*/") if path != work)
    return [replica.joinpath(*unit) for replica in (work, *replicas)]


def forget(work: Path, *unit: str) -> None:
    """Remove `unit`, once it is finished, wherever it lies, and what it was part of when that has nothing else in it."""
    for path in everywhere(work, *unit):
        shutil.rmtree(path, ignore_errors=True)
        for part_of in list(path.parents)[: len(unit) - 1]:
            with suppress(OSError):  # there is something in it, or nothing was there
                part_of.rmdir()
