"""Settings of datagen, on top of those every service has."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from understudy.llm.providers import Endpoints
from understudy.plan import WINDOW
from understudy.settings import Settings


class DatagenSettings(Settings):
    """Bounds of what datagen accepts: everything a user can send has one."""

    # A key may have been pasted where its variable's name belongs.
    model_config = SettingsConfigDict(hide_input_in_errors=True)

    max_upload_bytes: int = Field(default=512 * 1024**2, gt=0)
    """Of one uploaded file."""
    max_source_bytes: int = Field(default=512 * 1024**2, gt=0)
    """Of one source table, on disk and, for Parquet, unpacked. Its usable rows are held in memory, of four runs at once."""
    max_field_bytes: int = Field(default=1024**2, gt=0)
    """Of one line of text, or one row of a Parquet file or JSON array: longer means that the file is not what its name says."""
    max_text_chars: int = Field(default=20_000, gt=0)
    """Of one text or answer; longer rows are rejected, never cut."""
    max_labels: int = Field(default=100, ge=2)
    """Classes of one dataset: the instruction names them all."""
    window: int = Field(default=WINDOW, ge=1, le=1000)
    """Items of one run on the belt at once, for runs that begin now. More keep more trainers busy; another run's first item
    waits behind at most so many."""
    providers: Endpoints = Field(default_factory=dict)
    """Endpoints that recipes may name besides `openai`."""
    bases: str = ""
    """Bases beside the bundled ones that recipes may name: patterns with commas, as `mistralai/*@*`; `*` allows folders too."""
    engine_url: str = ""
    """Set where the engine runs elsewhere: then it serves `base` alone. This and the next three as inference has them."""
    base: str = ""
    max_lora_rank: int = Field(default=16, ge=1)
    max_model_len: int = Field(default=1024, ge=16)
    llm_tries: int = Field(default=3, ge=1)
    """Requests per row until the model's answer passes the checks."""
