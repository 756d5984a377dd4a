"""Inference: serves bases and adapters on the one OpenAI-compatible endpoint.

takes   ServingRequested      an item: its adapter, or None for a base. Engines of open runs are started before it comes
makes   nothing
emits   Progress while the engine starts, then ModelServed once the model answers and passed the gate, and with it
        ItemServed when the item's ride ends there, else ScoringRequested
"""
