"""`understudy pull`: an adapter's files into a folder, whole or not at all.

They are gathered beside the folder under a partial name, each checked by its sha256, and the folder gets its name when all
are there. Files that are whole are not fetched twice. Does not fetch the base model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from understudy.errors import Invalid, Transient, disk_full
from understudy.store.folder import digest
from understudy_cli.client import ModelFile, Source
from understudy_cli.console import errors, output, size
from understudy_cli.options import DataOption, KeyOption, ServerOption
from understudy_cli.session import data_folder, interruptible, lookup

CARD = "README.md"


def pull(
    model: Annotated[str, typer.Argument(help="Name of a trained model on the endpoint", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make", show_default=False)],
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Fetch a trained adapter: a folder that PEFT and vLLM load as it is.

    \b
    understudy pull ft:my-base:quickstart:remarks-only:90df24b8 ./my-adapter
    understudy pull ft:my-base:quickstart:remarks-only:90df24b8 ./my-adapter --server http://gpu-box:8000

    Every file is checked against its digest. Interrupted, the same command fetches only what is missing.
    """
    target, err = folder.expanduser().absolute(), errors()
    note = "Interrupted. The same command goes on with what is missing."
    with interruptible(note), lookup(server, data_folder(data), key) as source:
        files = source.files(model)
        fetch(source, model, files, target, err)
    out = output()
    out.print(f"{model} is in {target}: {len(files)} files, {size(sum(file.bytes for file in files))}.")
    if (target / CARD).is_file():
        out.print(f"Its card: {target / CARD}")


def fetch(source: Source, model: str, files: Sequence[ModelFile], target: Path, console: Console) -> None:
    """Make `target` with these files; raises `Invalid` when it is there already, a path leads out of it, or it cannot be made."""
    for file in files:
        check(file, model)
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise Invalid(f"{target} is there already", "Name a folder that is not there yet.")
        _gather(source, model, files, target, console)
    except OSError as error:
        raise disk_full(error, target) or Invalid(
            f"Cannot make {target}: {error.filename or target}: {error.strerror}",
            "Name another folder, or see what is in the way.",
        ) from error


def _gather(source: Source, model: str, files: Sequence[ModelFile], target: Path, console: Console) -> None:
    partial = target.with_name(f".{target.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        task = progress.add_task(model, total=sum(file.bytes for file in files))
        for file in files:
            path = partial / file.path
            if path.is_file() and path.stat().st_size == file.bytes and digest(path) == file.sha256:
                progress.advance(task, file.bytes)
            else:
                _fetch(source, model, file, path, lambda count: progress.advance(task, count))
    for path in set(partial.rglob("*")) - {partial / file.path for file in files}:
        if path.is_file():  # of another model that was to come here
            path.unlink()
    partial.rename(target)


def _fetch(source: Source, model: str, file: ModelFile, path: Path, advance: Callable[[int], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half, sha, count = path.with_name(f"{path.name}.half"), hashlib.sha256(), 0
    with half.open("wb") as output:
        for piece in source.content(model, file):
            count += len(piece)
            if count > file.bytes:
                break
            sha.update(piece)
            output.write(piece)
            advance(len(piece))
    if count != file.bytes or sha.hexdigest() != file.sha256:
        half.unlink()
        raise Transient(f"{file.path} of {model} did not arrive as it was sent", "The same command fetches it again.")
    half.rename(path)


def check(file: ModelFile, model: str) -> None:
    """Raises `Invalid` unless the path stays below the folder it is put into."""
    path = PurePosixPath(file.path)
    if (
        not path.parts
        or path.is_absolute()
        or str(path) != file.path
        or ".." in path.parts
        or set("\\\0") & set(file.path)
    ):
        raise Invalid(
            f"{model} has a file `{file.path}`, which would not stay in the folder", "Do not trust that server."
        )


def _progress(console: Console) -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
