"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ServerOption = Annotated[
    str | None, typer.Option(help="Gateway to use instead of a local one, e.g. http://gpu-box:8000")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="UNDERSTUDY_API_KEY",
        help="API key for that server; better in UNDERSTUDY_API_KEY, for others on this machine see what is typed",
        show_default=False,
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for everything a stack keeps (default: UNDERSTUDY_DATA, or .understudy here)", show_default=False
    ),
]
RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file", show_default=False)]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Your own table in place of the recipe's: FILE for its first `classify` dataset, NAME=FILE for another"
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option(help="Base model in place of the recipe's: bundled name, folder, or owner/name@revision"),
]
RunArgument = Annotated[str, typer.Argument(help="The run's id; `understudy runs` lists them", show_default=False)]
ItemArgument = Annotated[
    str | None, typer.Argument(help="One item of the run; `understudy watch` names them", show_default=False)
]
YesOption = Annotated[bool, typer.Option("--yes", help="Do it without asking")]
