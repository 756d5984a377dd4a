"""`understudy chat`: talk to a model on the endpoint, or ask it one thing from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer
from rich.console import Console

from understudy.errors import Invalid, UnderstudyError
from understudy_cli.client import Gateway, Unreachable
from understudy_cli.console import errors
from understudy_cli.options import DataOption, KeyOption, ServerOption
from understudy_cli.session import data_folder, interruptible, session

MAX_INPUT = 1 << 20
"""Characters taken from a pipe."""
TRIES = 5
"""Requests until we believe that a model does not answer; the gateway holds each for up to a minute."""
HELP = "Type your message. /clear forgets the conversation, /exit or Ctrl-D ends it."

Turn = dict[str, str]


def chat(
    model: Annotated[str, typer.Argument(help="Name of a model on the endpoint", show_default=False)],
    server: ServerOption = None,
    key: KeyOption = None,
    data: DataOption = None,
    system: Annotated[str | None, typer.Option(help="System message to begin with", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option(help="Of each answer", min=1)] = 128,
    temperature: Annotated[float, typer.Option(help="0 always gives the likeliest answer", min=0, max=2)] = 0.0,
) -> None:
    """Talk to a model; with text on standard input, answer that and exit.

    \b
    understudy chat seedling
    echo "How was the film?" | understudy chat quickstart:my-variant
    """
    err, opening = errors(), [{"role": "system", "content": system}] if system else []
    with interruptible(), session(server, data_folder(data), err, key) as at, Gateway(at.url, at.key) as gateway:
        known = gateway.models()
        if model not in known:
            raise Invalid(
                f"There is no model `{model}` at {at.url}",
                f"It serves: {', '.join(known) or 'none yet; a run brings its own'}.",
            )

        def answer(messages: list[Turn]) -> str:
            with err.status("waiting for the model …"):  # its engine may only be starting
                pieces = _patient(lambda: gateway.chat(model, messages, max_tokens, temperature), at.check)
                text = next(pieces, "")
            print(text, end="", flush=True)
            for piece in pieces:
                print(piece, end="", flush=True)
                text += piece
            print()
            return text

        if sys.stdin.isatty():
            _converse(answer, opening, err)
            return
        question = sys.stdin.read(MAX_INPUT + 1).strip()
        if not question or len(question) > MAX_INPUT:
            raise Invalid(
                "Standard input is empty" if not question else f"Standard input is longer than {MAX_INPUT} characters"
            )
        answer([*opening, {"role": "user", "content": question}])


def _patient(ask: Callable[[], Iterator[str]], check: Callable[[], None]) -> Iterator[str]:
    """The answer of a model whose engine may take longer to start than the gateway holds one request."""
    for attempt in range(TRIES):
        pieces = ask()
        try:
            first = next(pieces, "")
        except Unreachable:
            check()
            if attempt == TRIES - 1:
                raise
            continue
        yield first
        yield from pieces
        return


def _converse(answer: Callable[[list[Turn]], str], opening: list[Turn], err: Console) -> None:
    """Read, answer, remember, until /exit or the end of input. A refused message is forgotten, the conversation goes on."""
    err.print(HELP, style="dim")
    history = list(opening)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            return
        if line == "/exit":
            return
        if line == "/clear":
            history = list(opening)
        elif line:
            turn = {"role": "user", "content": line}
            try:
                history += [turn, {"role": "assistant", "content": answer([*history, turn])}]
            except UnderstudyError as error:  # e.g. the conversation no longer fits into the model
                err.print(f"{error}\n/clear starts over.", style="red")
