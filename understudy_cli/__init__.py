"""The command line: `understudy plan | run | up | watch | report | runs | logs | cancel | delete | chat | pull | clean |
doctor | topics | deadletters | keys`.

This module ties the commands together and decides how problems look: an expected one is a paragraph on stderr and exit
code 1, wrong usage is exit code 2, everything else is a bug and shows its trace. Does no work itself.
"""

from __future__ import annotations

import sys
import traceback
from typing import Annotated

import typer

from understudy import __version__
from understudy.errors import UnderstudyError, disk_full
from understudy_cli import (
    cancel,
    chat,
    clean,
    deadletters,
    delete,
    doctor,
    keys,
    logs,
    look,
    plan,
    pull,
    run,
    topics,
    up,
)
from understudy_cli.extras import lacking

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
OURS = ("understudy", "services")
WITH_ARGUMENTS = (
    plan.plan,
    run.run,
    look.watch,
    look.report,
    logs.logs,
    cancel.cancel,
    delete.delete,
    chat.chat,
    pull.pull,
)
WITHOUT = (up.up, look.runs, clean.clean, doctor.doctor, topics.topics)
for command in (*WITH_ARGUMENTS, *WITHOUT):
    app.command(no_args_is_help=command in WITH_ARGUMENTS)(command)
app.add_typer(deadletters.app, name="deadletters")
app.add_typer(keys.app, name="keys")


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def understudy(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error; anywhere on the line")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Train an understudy of a language model on your own table, serve both, and see what was gained and lost.

    \b
    understudy doctor                        can this machine do it?
    understudy plan recipes/quickstart.yaml  what will it take?
    understudy run recipes/quickstart.yaml   the whole loop, in minutes
    understudy up                            serve; any OpenAI client works
    """


def main(arguments: list[str] | None = None) -> None:
    """Entry point; ends in SystemExit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    try:
        app(args=[argument for argument in arguments if argument != "--debug"], prog_name="understudy")
    except (UnderstudyError, OSError, ModuleNotFoundError) as error:
        expected: UnderstudyError | None
        if isinstance(error, ModuleNotFoundError):
            expected = lacking(error.name) if error.name and not error.name.startswith(OURS) else None
        elif isinstance(error, OSError):
            expected = disk_full(error, error.filename or "the data folder")
        else:
            expected = error
        if debug or expected is None:
            traceback.print_exc()
        print(f"understudy: {expected or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
