"""The shared kernel: what every service and the command line stand on. Imports no service and no torch."""

__version__ = "0.3.0"
