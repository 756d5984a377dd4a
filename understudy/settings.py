"""Settings every service shares, read from `UNDERSTUDY_*` environment variables. Each service adds its own in its
settings.py.

Holds no logic beyond defaults; keys of others (OPENAI_API_KEY) are read where they are used and never stored here.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """What a service needs to find the others."""

    model_config = SettingsConfigDict(
        env_prefix="UNDERSTUDY_",
        env_ignore_empty=True,  # a parent takes a variable from its child by emptying it
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # it may be a secret
    )

    data: Path = Path(".understudy")
    """This process's folder: bus, artifacts (embedded), cache, work, logs."""
    bus: str = ""
    """Empty: the embedded bus in `data`. Otherwise Kafka's bootstrap servers, `host:port[,host:port]`. What its clients need
    for SASL and TLS is read from `UNDERSTUDY_KAFKA_*`, see `bus/connect.py`."""
    bus_prefix: str = Field(default="", pattern=r"^[a-zA-Z0-9._-]*$")
    """Before every topic and group on Kafka, so that several installations can share a cluster."""
    artifacts: str = ""
    """fsspec URL of the artifact store, `file:///...` or `s3://...`. Empty: `data/artifacts`."""
    models: Path = PROJECT / "models"
    """Folder of bundled base models, each a folder by its name."""
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    """Port of this service's HTTP API."""
    internal_port: int = Field(default=0, ge=0, le=65535)
    """Where the platform and the other services find this one, if not at `port`: probes, metrics and all the rest, without TLS.
    Then `port` has none that are internal. 0: one port for all."""
    internal_host: str = ""
    """What `internal_port` listens on. Empty: as `host`."""
    publish: str = ""
    """Where the gateway's `port` is published, `[address:]port` as Docker writes it. Empty: at `host`. See `service/published.py`."""
    keys: Literal["auto", "required"] = "auto"
    """Whether every request to the gateway needs an API key. `auto`: as soon as it is published beyond this machine."""
    internal_token: SecretStr | None = Field(default=None, min_length=16)
    """What services know each other by. None: a file in `data` (`service/token.py`)."""
    tls_cert: Path | None = None
    """Certificate chain (PEM) of `port`; with `tls_key`."""
    tls_key: Path | None = None
    member: str = Field(default_factory=socket.gethostname, pattern=r"^[a-zA-Z0-9._-]{1,200}$")
    """Name of this replica, unique within its service; restarted under the same name it takes its work back at once."""
    gateway: str = "http://127.0.0.1:8000"
    """The one endpoint, as other services reach it."""
    log_level: str = "INFO"

    def artifact_url(self) -> str:
        """Where the artifact store is."""
        return self.artifacts or (self.data / "artifacts").resolve().as_uri()

    def cache(self) -> Path:
        """Local copies of artifacts."""
        return self.data.resolve() / "cache"

    def work(self, station: str) -> Path:
        """This replica's folder for unfinished work, which survives a crash; see `belt/scratch.py`."""
        path = self.data.resolve() / "work" / station / self.member
        path.mkdir(parents=True, exist_ok=True)
        return path
