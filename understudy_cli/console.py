"""Where the command line prints: what it says goes out as it is, without markup, colours for numbers, or emoji for words
between colons (a model called `ft:seedling:...` would come out with a plant in it).
"""

from __future__ import annotations

import sys

from rich.console import Console

WIDE = 1000
"""Columns when nobody looks at a terminal: a table row stays one line."""


def output() -> Console:
    """Results, on standard output."""
    width = None if sys.stdout.isatty() else WIDE
    return Console(width=width, emoji=False, markup=False, highlight=False)


def errors() -> Console:
    """Everything else, on standard error."""
    width = None if sys.stderr.isatty() else WIDE
    return Console(stderr=True, width=width, emoji=False, markup=False, highlight=False)


def size(count: int) -> str:
    """`1.4 MiB`."""
    value, unit = float(count), "bytes"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
