"""The trainer: fine-tunes one LoRA adapter per variant.

takes   TrainingRequested     one variant: recipe, datasets
makes   runs/<run>/adapters/<variant>     PEFT folder with README.md, training.json and probe.json
emits   Progress while it trains, then ModelTrained; the base passes through with `adapter=None`
"""
