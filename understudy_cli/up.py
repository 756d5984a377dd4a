"""`understudy up`: the four services on one port, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from understudy.embedded.stackfile import running
from understudy.errors import Invalid
from understudy_cli.console import errors
from understudy_cli.options import DataOption
from understudy_cli.session import data_folder, interruptible, started

BANNER = """
Understudy is up.

  endpoint   {url}/v1
  data       {data}
  logs       {data}/logs

Use it with any OpenAI client:

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="none")
  print([model.id for model in client.models.list()])

or from another terminal: understudy run RECIPE, understudy chat MODEL. Ctrl-C stops it; runs go on the next time.
"""


def up(
    port: Annotated[int, typer.Option(help="Of the endpoint", min=1, max=65535)] = 8000,
    base: Annotated[str | None, typer.Option(help="Base model to have ready at once", show_default=False)] = None,
    data: DataOption = None,
) -> None:
    """Start everything on this machine and serve until Ctrl-C.

    \b
    understudy up
    understudy up --port 9000 --data /big/disk/understudy
    """
    folder, err = data_folder(data), errors()
    if url := running(folder):
        raise Invalid(
            f"A stack is already up on {folder}, at {url}", "Use it, or start another with --data and --port."
        )
    with interruptible(code=0), started(folder, port, err, base) as stack:
        print(BANNER.format(url=stack.url, data=folder), flush=True)
        stack.wait()
