"""The endpoints that the operator lets language models be asked at, by name: an address, and where its key is found.

    providers = Providers({"local": Endpoint(base_url="http://10.0.0.5:8000/v1", key="LOCAL_API_KEY")})
    ChatClient(*providers.of(generator))

`openai` is always there: OPENAI_BASE_URL, else OpenAI's own address, with the key in OPENAI_API_KEY. Whoever asks for something
names a provider and never an address, so that no key goes where its owner did not send it, and nobody has us knock at an
address of his choice. Settings hold the name of a key's environment variable; the key itself is read when it is used, and
stored nowhere. Asks nobody (`chat.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode

from understudy.errors import Invalid
from understudy.hints import nearest
from understudy.llm.wire import address
from understudy.recipe import OPENAI, Generator, Name

OPENAI_URL = "https://api.openai.com/v1"


def _checked(url: str) -> str:
    try:
        address(url)
    except Invalid as error:
        raise ValueError(str(error)) from None
    return url


class Endpoint(BaseModel):
    """One provider, as a setting says it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: Annotated[str, AfterValidator(_checked)]
    """Up to and with `/v1`."""
    key: str = Field(default="", pattern=r"^([A-Za-z_][A-Za-z0-9_]{0,99})?$")
    """NAME of the environment variable that has the key; empty: it is asked without one."""


def _parsed(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        found = json.loads(value) if value.strip() else {}
    except ValueError as error:
        raise ValueError(f"it is not JSON ({error})") from None
    if isinstance(found, dict) and OPENAI in found:
        raise ValueError(f"`{OPENAI}` is set by OPENAI_BASE_URL and OPENAI_API_KEY")
    return found


Endpoints = Annotated[dict[Name, Endpoint], NoDecode, BeforeValidator(_parsed)]
"""A setting: {name: {"base_url": ..., "key": NAME OF A VARIABLE}} as JSON."""


class Provider(NamedTuple):
    """Where to ask, and with which key."""

    url: str
    key: str | None


@dataclass(frozen=True)
class Providers:
    """Those of one process."""

    named: Mapping[str, Endpoint] = field(default_factory=dict)
    """Beside `openai`."""

    def of(self, generator: Generator) -> Provider:
        """The one that a plan's generator names. Raises `Invalid` as `get`, and where it comes from a time when recipes named addresses."""
        if generator.base_url is not None:
            raise Invalid(
                "The plan has its instructions written at an address that the recipe named (`generator.base_url`), which is no longer done",
                "Write `provider: NAME` instead, of a provider that the operator has set, and start the run anew.",
            )
        return self.get(generator.provider)

    def get(self, name: str) -> Provider:
        """The provider of this name. Raises `Invalid` when there is none, or its address or key is not set as it must be."""
        if name == OPENAI:
            url = os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
            try:
                address(url)
            except Invalid:
                raise Invalid(
                    f"Provider `{OPENAI}`: OPENAI_BASE_URL is no address of the form http[s]://host[:port]/path",
                    "Its operator sets it.",
                ) from None
            return Provider(url, os.environ.get("OPENAI_API_KEY"))
        endpoint = self.named.get(name)
        if endpoint is None:
            raise Invalid(
                f"There is no provider `{name}`{nearest(name, [OPENAI, *self.named])}",
                "The operator names providers in UNDERSTUDY_PROVIDERS.",
            )
        if endpoint.key and not os.environ.get(endpoint.key):
            raise Invalid(
                f"Provider `{name}` has no key: {endpoint.key} is not set", "The operator sets it where datagen runs."
            )
        return Provider(endpoint.base_url, os.environ.get(endpoint.key) if endpoint.key else None)
