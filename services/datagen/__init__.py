"""datagen turns a labelled table into instruction datasets.

    takes   RunRequested
    makes   runs/<run>/datasets/<name>: train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, card.json
    emits   TrainingRequested for every variant, the base first; Progress

Its HTTP resources are /v1/files and /v1/runs.
"""
