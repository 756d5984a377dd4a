"""What `understudy doctor` looks at on the machine: one small function per question, each an answer with its remedy.

Software is in `software.py`. Starts nothing and changes nothing.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from understudy.embedded.stackfile import running
from understudy.service.machine import available_memory, cores
from understudy.service.ports import holder, is_free
from understudy.service.published import beyond_loopback, is_loopback
from understudy.settings import Settings

Status = Literal["ok", "warn", "fail"]
GIB = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: Status
    """fail: the embedded demo cannot run. warn: something else cannot."""
    detail: str
    remedy: str = ""


def check(name: str, status: Status, detail: str, remedy: str) -> Check:
    """A line that has its remedy only where there is something to remedy."""
    return Check(name, status, detail, "" if status == "ok" else remedy)


def machine(data: Path, models: Path, port: int = 8000) -> Iterator[Check]:
    """Cores, memory, disk, data folder, port, who comes in, bundled model."""
    usable = cores()
    yield check("cores", "ok" if usable >= 2 else "warn", str(usable), "It works, slowly: two or more are better.")
    memory = available_memory() / GIB
    yield check("memory", _grade(memory, 6, 4), f"{memory:.1f} GiB free", "The demo wants 6 GiB: close something.")
    disk = shutil.disk_usage(_existing(data)).free / GIB
    yield check("disk", _grade(disk, 5, 1), f"{disk:.1f} GiB free under {data}", "Free some, or choose another --data.")
    yield _writable(data)
    yield _port(port)
    yield _published(data)
    yield _model(models)


def _grade(value: float, good: float, enough: float) -> Status:
    return "ok" if value >= good else "warn" if value >= enough else "fail"


def _writable(data: Path) -> Check:
    folder = _existing(data)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return Check("data folder", "fail", f"cannot write in {folder}: {error.strerror}", "Choose another --data.")
    return Check("data folder", "ok", f"{data} ({'there' if folder == data else 'will be made'})")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _port(port: int) -> Check:
    if is_free(port):
        return Check("port", "ok", f"{port} is free")
    who = holder(port)  # a warning only: `understudy run` takes any free port
    return Check("port", "warn", f"{port} is in use{f' by {who}' if who else ''}", "understudy up --port OTHER")


def _published(data: Path) -> Check:
    """Who comes in at the gateway: the one of the stack that is up, else the one that the environment speaks of."""
    settings = Settings()
    if endpoint := running(data, "endpoint"):
        at, tls, beyond = endpoint, endpoint.startswith("https"), not is_loopback(urlsplit(endpoint).hostname or "")
    else:
        at, tls, beyond = (
            settings.publish or f"{settings.host}, once it is up",
            bool(settings.tls_cert),
            beyond_loopback(settings),
        )
    required = beyond or settings.keys == "required"
    detail = f"{at}: {'keys are required' if required else 'for this machine alone, keys are optional'}, {'TLS' if tls else 'no TLS'}"
    remedy = "Whoever listens on the way reads keys and prompts: set UNDERSTUDY_TLS_CERT and UNDERSTUDY_TLS_KEY."
    return check("published", "warn" if beyond and not tls else "ok", detail, remedy)


def _model(models: Path) -> Check:
    weights = sorted((models / "seedling").glob("*.safetensors"))
    if not weights:
        remedy = "Set UNDERSTUDY_MODELS to the folder that has it."
        return Check("bundled model", "fail", f"no seedling in {models}", remedy)
    size = sum(path.stat().st_size for path in weights)
    if size < MIB:
        remedy = "If they are pointers of Git LFS: `git lfs pull`."
        return Check("bundled model", "fail", f"seedling's weights are {size} bytes", remedy)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    return Check("bundled model", "ok", f"seedling, {size / MIB:.1f} MiB, sha256 {digest[:16]}")
