"""`understudy doctor`: what this machine can and cannot do, and how to fix it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from understudy.settings import Settings
from understudy_cli.console import output
from understudy_cli.machine import machine
from understudy_cli.options import DataOption
from understudy_cli.session import data_folder
from understudy_cli.software import software

STYLE = {"ok": "green", "warn": "yellow", "fail": "red bold"}


def doctor(
    data: DataOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs: a list of {name, status, detail, remedy}")
    ] = False,
) -> None:
    """Check this machine; exit code 1 when the embedded demo cannot run here.

    \b
    understudy doctor
    understudy doctor --json | jq '.[] | select(.status != "ok")'
    """
    checks = [*software(), *machine(data_folder(data), Settings().models)]
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        out = output()
        for check in checks:
            out.print(
                Text(f"{check.status:4} ", style=STYLE[check.status]) + Text(f"{check.name}: {check.detail}"),
                soft_wrap=True,
            )
            if check.remedy:
                out.print(Text(f"     {check.remedy}", style="dim"))
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)
