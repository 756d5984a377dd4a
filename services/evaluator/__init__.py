"""The evaluator: asks every item the same questions through the endpoint, and says what was gained and what was lost.

Three lanes, each a group of its own, so that none waits for another:

    evaluator  takes   ScoringRequested                 one item that answers on the endpoint (`handlers.py`)
               makes   runs/<run>/scores/<item>         predictions-<panel>.jsonl, scores.json, training.json of an adapter
               emits   Progress while it asks, then ItemScored

    closer     takes   what is said about runs: datasets made, ends of items, wishes (`closer.py`)
               emits   TrainingRequested, ServingRequested or ScoringRequested of the items whose turn it is;
                       ReportRequested once nothing of the run will move any more

    reporter   takes   ReportRequested (`reporter.py`)
               makes   runs/<run>/reports/<outcome>     report.html, report.json
               emits   RunClosed

Its HTTP resources are /v1/reports.
"""
