"""`understudy delete`: a run is forgotten, with everything it made."""

from __future__ import annotations

import sys

import typer

from understudy.errors import Invalid
from understudy_cli.client import Deleted
from understudy_cli.console import output, size
from understudy_cli.options import DataOption, KeyOption, RunArgument, ServerOption, YesOption
from understudy_cli.run import report_page
from understudy_cli.session import data_folder, lookup
from understudy_cli.watch import counts


def delete(
    run: RunArgument,
    yes: YesOption = False,
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
) -> None:
    """Delete a run with its datasets, adapters, answers and reports; asks first.

    \b
    understudy delete quickstart-0123456789
    understudy delete quickstart-0123456789 --yes

    Its models no longer answer on the endpoint, and work that goes on is stopped. Uploaded files stay, and so does what
    another run made as well, byte for byte. The command that began the run makes it anew. A deletion that failed half-way
    is finished by the same command.
    """
    folder = data_folder(data)
    with lookup(server, folder, key) as source:
        try:
            state = source.run(run)
        except Deleted:
            pass  # perhaps the store was away then: what is left goes now
        else:
            confirm(f"Delete run {run} ({state.status}: {counts(state)}) and all that it made?", yes)
        freed = source.delete(run)
    for page in (report_page(folder, run), *folder.glob(f"reports/{run}.against-*.html")):
        page.unlink(missing_ok=True)
    output().print(f"Run {run} is deleted; {size(freed)} were freed.")


def confirm(question: str, yes: bool) -> None:
    """Return when the answer is yes, or was given beforehand; raises `Invalid` where nobody can be asked."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid(f"{question} Standard input is no terminal, so nobody can be asked", "Add --yes.")
    typer.confirm(question, abort=True, err=True)
