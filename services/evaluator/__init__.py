"""The evaluator: asks every variant the same questions through the endpoint, and says what was gained and what was lost.

    takes   ModelServed                       one variant that answers on the endpoint
    makes   runs/<run>/scores/<variant>       predictions-<panel>.jsonl, scores.json, training.json of an adapter
    emits   Progress while it asks, then VariantScored

    takes   VariantScored, VariantFailed      the join: the last one of a run closes it
    makes   runs/<run>/reports/<outcome>      report.html, report.json
    emits   ReportPublished; RunFailed when no variant was scored

Its HTTP resources are /v1/reports.
"""
