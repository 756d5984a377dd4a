"""The trainer: fine-tunes one LoRA adapter per item that is trained on something.

takes   TrainingRequested     one item of a plan
makes   runs/<run>/adapters/<item>     PEFT folder with README.md, training.json and probe.json
        runs/<run>/logs/<item>.<n>     the end of what its training said when it ended for the nth time
emits   Progress while it trains, then ServingRequested
"""
