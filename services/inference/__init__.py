"""Inference: serves base and adapters on the one OpenAI-compatible endpoint.

takes   RunRequested          starts the engine of its base, so that it is warm when the first model comes
        ModelTrained          one variant: its adapter, or None for the base
makes   nothing
emits   Progress while the engine starts, then ModelServed once the adapter is loaded and passed the gate
"""
