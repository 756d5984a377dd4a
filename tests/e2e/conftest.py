"""A finished run of the whole belt, real in every part: bundled base model, real training, real engine. Made once."""

from belt import undisturbed

__all__ = ["undisturbed"]
