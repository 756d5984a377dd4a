"""What tests of several services need. Imported by tests and benches only."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from understudy.belt.contracts import Message, Progress
from understudy.belt.folds.views import ItemState, RunState
from understudy.metrics import METRICS
from understudy.plan import Plan
from understudy.report import Cell, Inputs, MetricRow, PanelReport, Report, Scored
from understudy.store import keys
from understudy.store.artifacts import ArtifactStore, FsspecArtifactStore
from understudy.terms import Artifact


def local_store(folder: Path) -> FsspecArtifactStore:
    """A real artifact store in `folder`."""
    return FsspecArtifactStore((folder / "artifacts").resolve().as_uri(), folder / "cache")


def uploaded(store: ArtifactStore, name: str, content: bytes) -> str:
    """The id of a file that lies in the store as if it had been uploaded."""
    file_id = f"file-{hashlib.sha256(name.encode() + b'|' + content).hexdigest()[:24]}"
    with store.draft() as folder:
        (folder / name).write_bytes(content)
        store.put(keys.file(file_id), folder)
    return file_id


def drain(outputs: Iterable[Message]) -> list[Message]:
    """Run a handler to its end; what it yielded apart from progress."""
    return [message for message in outputs if not isinstance(message, Progress)]


def processes(data: Path) -> dict[int, str]:
    """Pid -> command line of everything alive that belongs to a data folder, by its environment or its log; without this process."""
    folder, found = str(data.resolve()), {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            log = str((entry / "fd/1").readlink())  # the engine's core overwrites its environment with its title
        except OSError:
            continue
        ours = f"UNDERSTUDY_DATA={folder}".encode() in environment or log.startswith(f"{folder}/")
        if command and ours and int(entry.name) != os.getpid():
            found[int(entry.name)] = command
    return found


def run_of(run: str = "r-1", **items: ItemState) -> RunState:
    """The state of a run that is over, with these items."""
    return RunState(
        id=run,
        name=run,
        status="finished",
        generation=1,
        created_at=0,
        bases=("seedling",),
        stages={},
        plan=Artifact(sha256="0"),
        items=items,
    )


def report_of(
    plan: Plan,
    cells: Mapping[str, Cell],
    *,
    run: str = "r-1",
    metric: str = "accuracy",
    panel: str = "in-domain",
    n: int = 100,
    unread: Mapping[str, int] | None = None,
    failed: Iterable[str] = (),
    cancelled: Iterable[str] = (),
) -> Report:
    """A report on one metric of one panel, with these cells."""
    nothing = Artifact(sha256="0" * 64)
    scored = {item: Scored(answers=nothing, measures=nothing) for item in cells}
    inputs = Inputs(run=run, plan=nothing, scored=scored, failed=tuple(failed), cancelled=tuple(cancelled))
    up = METRICS[metric].higher_is_better
    row = MetricRow(metric=metric, signature=metric, higher_is_better=up, cells=dict(cells))
    return Report(
        inputs=inputs,
        plan=plan,
        items=tuple(cells),
        models={item: item for item in cells},
        compared_with={item: other for item in cells if (other := plan.item(item).compared_with)},
        panels=(
            PanelReport(
                name=panel,
                source="data",
                n=n,
                max_tokens=8,
                labels=(),
                metrics=(row,),
                not_computed={},
                parse_failures=dict(unread or {}),
                refused=dict.fromkeys(cells, 0),
                cut=dict.fromkeys(cells, 0),
                confusion={},
                examples=(),
            ),
        ),
        training={},
        datasets={},
        decoding={"method": "greedy", "temperature": 0.0, "seed": 17},
        versions={},
    )
