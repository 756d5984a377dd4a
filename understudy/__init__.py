"""The shared kernel: messages, topics, recipes, artifacts, the bus and the consumer loop. Imports no service and no torch."""

__version__ = "0.1.0"
