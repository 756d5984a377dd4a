"""What a light install lacks: which extra brings a module that is not there. Installs nothing."""

from __future__ import annotations

import importlib.util
import re
from importlib import metadata

from understudy.errors import Invalid
from understudy.terms import STATIONS


def lacking(module: str) -> Invalid:
    """The error of a command that needs `module`, which is not installed."""
    return Invalid(
        f"This needs {module}, which is not installed",
        f"In a clone of the repository: pip install '.[{extra_of(module)}]', or `make demo` for everything.",
    )


def need_services() -> None:
    """Raise `Invalid` where only the command line is installed."""
    if importlib.util.find_spec("fastapi") is None:
        raise Invalid(
            "Only the command line is installed here, without the services",
            "Name a server with --server, or let `make demo`, in a clone of the repository, install the rest.",
        )


def extra_of(module: str) -> str:
    """The extra whose packages bring `module`, going by their names: that of all services before that of one."""
    name = module.partition(".")[0].replace("_", "-")
    found = set()
    for line in metadata.requires("understudy") or []:
        package, extra = re.match(r"[\w.-]+", line), re.search(r"extra == ['\"]([\w-]+)['\"]", line)
        if package and extra and f"{package[0].replace('_', '-')}-".startswith(f"{name}-"):
            found.add(extra[1])
    return next((extra for extra in ("service", *STATIONS, *sorted(found)) if extra in found), "service")
