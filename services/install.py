"""Fills an environment: the kernel's and the services' dependencies, those of some extras, and nothing else.

    .venv/bin/python services/install.py trainer,dev --torch cpu --here   # the environment of this Python, with the project itself
    python install.py trainer,s3 --torch cpu                              # /venv, in the build stage of an image

Runs beside pyproject.toml and constraints.txt, which name packages and versions. An image does not get the project: its
sources are copied in later, so that a change of code rebuilds in seconds. uv does the work, in seconds, told what pip's
configuration says, which it does not read; where it cannot be had, or fails, pip does it in minutes. Needs only the
standard library and pip.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

VENV = Path("/venv")
UV = "uv==0.13.9"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = [sys.executable, "-m", "pip"]

# pip's option, the variables that uv reads for it, and between what uv splits several values; None where there is one.
PIP_TO_UV: dict[str, tuple[tuple[str, ...], str | None]] = {
    "index-url": (("UV_DEFAULT_INDEX",), None),
    "extra-index-url": (("UV_INDEX",), " "),
    "find-links": (("UV_FIND_LINKS",), ","),
    "no-index": (("UV_NO_INDEX",), None),
    "constraint": (("UV_CONSTRAINT",), " "),
    "trusted-host": (("UV_INSECURE_HOST",), " "),
    "cert": (("SSL_CERT_FILE",), None),
    "proxy": (("HTTP_PROXY", "HTTPS_PROXY"), None),
    "timeout": (("UV_HTTP_TIMEOUT",), None),
}
SECTIONS = ("global", "install", ":env:")  # what a later one says replaces what an earlier one does

UNUSED_ON_CPU = (
    "triton",  # compiles for GPUs, a gigabyte; xgrammar names it, vLLM's CPU build switches it off
    "triton-*.dist-info",
    "bitsandbytes/libbitsandbytes_cuda*.so",
)
SLOWEST = ("vllm.entrypoints.openai.api_server", "trl, peft, bitsandbytes")
NO_TRITON = "triton ; python_version < '3'"
# Inside an image nothing is compiled, and no package tests itself.
UNUSED_IN_IMAGES = (
    "torch/include",
    "torch/bin/test_*",
    "torch/test",
    "pyarrow/include",
    "*/tests",
)

Install = Callable[..., int]
"""`pip install` of the arguments; the exit code. `quiet` also hides what went wrong."""


def main() -> None:
    """Parse the command line and fill the environment; exits with pip's code when that fails too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", help="names from pyproject.toml, separated by commas; `service` comes by itself")
    parser.add_argument("--torch", choices=("cpu", "cuda"), help="the build of torch, if the extras need it")
    parser.add_argument("--alone", help="one package more, without its dependencies")
    parser.add_argument("--here", action="store_true", help="into the environment that runs this, with the project")
    asked = parser.parse_args()
    names = ["service", *asked.extras.split(",")]
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras: dict[str, list[str]] = project["optional-dependencies"]
    if asked.here:
        python, wanted = Path(sys.executable), ["-e", f".[{','.join(names)}]"]
    else:  # the environment gets no pip of its own: an image never installs anything
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(VENV)], check=True)
        python, wanted = (
            VENV / "bin/python",
            project["dependencies"] + [each for name in names for each in extras[name]],
        )

    (torch,) = [package for package in extras["trainer"] if package.startswith("torch==")]

    def fill(install: Install, own_index: Sequence[str]) -> int:
        """The build of torch first: with it in place nothing pulls the other one."""
        code = 0
        if asked.torch == "cuda":
            code = install(torch)
        elif asked.torch and install(f"{torch}+cpu", quiet=True):  # where it is found; else PyTorch's own index has it
            code = install(*own_index, f"{torch}+cpu")
        code = code or install("-c", "constraints.txt", *wanted)
        return code or (install("--no-deps", asked.alone) if asked.alone else 0)

    with tempfile.TemporaryDirectory() as scratch:
        uv = with_uv(python, asked.here, Path(scratch, "overrides.txt") if asked.torch == "cpu" else None)
        if uv is None or fill(uv, ("--torch-backend", "cpu")):
            print("uv could not do it: installing with pip, which takes some minutes", file=sys.stderr)
            if code := fill(with_pip(python), ("--index-url", CPU_INDEX)):
                sys.exit(code)
    if asked.torch != "cuda":
        remove(UNUSED_ON_CPU, python)
    if asked.here:
        if sys.dont_write_bytecode:
            compile_slowest(python)
    else:
        remove(UNUSED_IN_IMAGES, python)
        command = VENV / "bin/understudy"  # the package itself is found by PYTHONPATH
        command.write_text(f"#!{VENV}/bin/python\nfrom understudy_cli import main\n\nmain()\n", encoding="utf-8")
        command.chmod(0o755)


def with_pip(python: Path) -> Install:
    """Installs with pip into the environment of `python`."""
    return lambda *arguments, quiet=False: run(
        [*PIP, "--python", str(python), "install", "--quiet", *arguments], os.environ, quiet
    )


def with_uv(python: Path, here: bool, overrides: Path | None) -> Install | None:
    """Installs with uv into the environment of `python`, as pip's configuration says; None where uv cannot be had."""
    if run([*PIP, "install", "--quiet", UV], os.environ, quiet=True):
        return None
    configured = uv_settings(subprocess.run([*PIP, "config", "list"], capture_output=True, text=True).stdout)
    env = configured | os.environ  # who sets uv's own variables means them
    env |= {name: value for name, value in configured.items() if not name.startswith("UV_")}  # the others pip overrules
    uv = [sys.executable, "-m", "uv"]
    cache = subprocess.run([*uv, "cache", "dir"], capture_output=True, text=True, env=env).stdout.strip()
    env.setdefault("UV_LINK_MODE", "hardlink" if can_link(Path(cache), python.parent) else "copy")
    command = [*uv, "pip", "install", "--python", str(python), "--index-strategy", "unsafe-best-match"]
    if not here:
        command.append("--compile-bytecode")  # nobody may write in an image later
    if overrides:
        overrides.write_text(NO_TRITON, encoding="utf-8")
        command += ["--overrides", str(overrides)]
    if not sys.stderr.isatty():
        command.append("--quiet")  # in a terminal it shows how far it is
    return lambda *arguments, quiet=False: run([*command, *arguments], env, quiet)


def uv_settings(listed: str) -> dict[str, str]:
    """What `pip config list` printed, as variables that uv reads."""
    found = {}
    lines = [line.partition("=") for line in listed.splitlines()]
    for section in SECTIONS:
        for key, _, value in lines:
            option = key.removeprefix(f"{section}.")
            if option != key and option in PIP_TO_UV and (said := str(ast.literal_eval(value)).strip()):
                found[option] = said  # pip, too, passes over what is empty
    settings: dict[str, str] = {}
    for option, said in found.items():
        names, separator = PIP_TO_UV[option]
        settings |= dict.fromkeys(names, separator.join(said.split()) if separator else said)
    return settings


def can_link(cache: Path, environment: Path) -> bool:
    """Whether a file can lie in both folders at once, which costs neither time nor disk."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache) as probe, tempfile.TemporaryDirectory(dir=environment) as there:
            os.link(probe.name, Path(there) / "probe")
    except OSError:
        return False
    return True


def compile_slowest(python: Path) -> None:
    """Import what takes longest, so that its bytecode is there; where Python is told to write none, each start would compile it.

    uv compiles all or nothing, and all takes longer than the programs that follow.
    """
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    programs = [
        subprocess.Popen(
            [str(python), "-c", f"import {modules}"], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for modules in SLOWEST
    ]
    for program in programs:
        program.wait()


def run(command: Sequence[str], env: dict[str, str] | os._Environ[str], quiet: bool) -> int:
    """The exit code of a command; with `quiet` it says nothing, not even when it fails."""
    hidden = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, env=env, stdout=hidden, stderr=hidden).returncode


def remove(patterns: Sequence[str], python: Path) -> None:
    """Remove files that match, from the packages of the environment of `python`."""
    # Asked, not searched for: an environment that was made again with another version has the packages of both.
    where = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = subprocess.run(where, check=True, capture_output=True, text=True).stdout.strip()
    for pattern in patterns:
        for path in Path(packages).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


if __name__ == "__main__":
    main()
