"""`understudy up`: the four services on one port, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from understudy.embedded.stackfile import running
from understudy.errors import Invalid
from understudy.service.published import is_loopback
from understudy.settings import Settings
from understudy_cli.console import errors
from understudy_cli.options import DataOption
from understudy_cli.session import data_folder, interruptible, started

BANNER = """
Understudy is up.

  endpoint   {endpoint}/v1{who}
  data       {data}
  logs       {data}/logs

Use it with any OpenAI client:

  from openai import OpenAI
  client = OpenAI(base_url="{endpoint}/v1", api_key="{key}")
  print([model.id for model in client.models.list()])

or from another terminal: understudy run RECIPE, understudy chat MODEL. Ctrl-C stops it; runs go on the next time.
"""


def up(
    port: Annotated[int, typer.Option(help="Of the endpoint", min=1, max=65535)] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on, e.g. 0.0.0.0 for all; beyond this machine keys are required")
    ] = "127.0.0.1",
    base: Annotated[str | None, typer.Option(help="Base model to have ready at once", show_default=False)] = None,
    data: DataOption = None,
) -> None:
    """Start everything on this machine and serve until Ctrl-C.

    \b
    understudy up
    understudy up --port 9000 --data /big/disk/understudy
    understudy keys create --first; understudy up --host 0.0.0.0    # for others too; with TLS: UNDERSTUDY_TLS_CERT, UNDERSTUDY_TLS_KEY
    """
    folder, err = data_folder(data), errors()
    if url := running(folder):
        raise Invalid(
            f"A stack is already up on {folder}, at {url}", "Use it, or start another with --data and --port."
        )
    with interruptible(code=0), started(folder, port, err, base, host) as stack:
        alone = is_loopback(host) and Settings().keys != "required"
        who, key = ("", "none") if alone else (", for whoever has a key", "sk-understudy-...")
        print(BANNER.format(endpoint=stack.endpoint, who=who, key=key, data=folder), flush=True)
        stack.wait()
