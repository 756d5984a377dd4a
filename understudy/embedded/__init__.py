"""The four services under one supervisor, on one machine."""
