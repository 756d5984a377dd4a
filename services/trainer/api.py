"""HTTP resources of the trainer: none of its own yet; health, readiness and metrics come from the kernel."""

from __future__ import annotations

from fastapi import APIRouter


def router() -> APIRouter:
    """The trainer's routes."""
    return APIRouter()
