"""datagen turns a labelled table into instruction datasets.

    takes   RunRequested
    makes   runs/<run>/datasets/<name>: train.jsonl, validation.jsonl, test.jsonl, rejected.jsonl, card.json
    emits   DatasetsMade, once all are there; Progress

Its HTTP resources are /v1/files and /v1/runs: here runs are asked for, cancelled, deleted and looked at.
"""
