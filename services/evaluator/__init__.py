"""The evaluator: asks every item the same questions through the endpoint, and says what was gained and what was lost.

Three lanes, each a group of its own, so that none waits for another:

    evaluator  takes   ScoringRequested                 one item that answers on the endpoint (`handlers.py`)
               makes   runs/<run>/answers/<item>        answers-<panel>.jsonl, answers.json
                       runs/<run>/measures/<item>       measures-<panel>.npz, measures.json, training.json of an adapter
               emits   Progress while it asks, then ItemScored

    closer     takes   what is said about runs: datasets made, ends of items, wishes (`closer.py`)
               emits   TrainingRequested, ServingRequested or ScoringRequested of the items whose turn it is;
                       ReportRequested once nothing of the run will move any more

    reporter   takes   ReportRequested (`reporter.py`)
               makes   runs/<run>/reports/<inputs>      report.json
               emits   RunClosed

Its HTTP resources are /v1/reports: the reports as data and as pages, also ones against another item than the plan says.
"""
