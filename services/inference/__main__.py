"""`python -m services.inference`."""

from services.inference.bootstrap import build
from services.inference.settings import InferenceSettings
from understudy.service.host import serve

if __name__ == "__main__":
    serve("inference", InferenceSettings(), build)
