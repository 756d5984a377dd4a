"""`python -m services.evaluator`."""

from services.evaluator.bootstrap import build
from services.evaluator.settings import EvaluatorSettings
from understudy.service.host import serve

if __name__ == "__main__":
    serve("evaluator", EvaluatorSettings(), build)
