"""`python -m services.trainer`."""

from services.trainer.bootstrap import build
from services.trainer.settings import TrainerSettings
from understudy.service.host import serve

if __name__ == "__main__":
    serve("trainer", TrainerSettings(), build)
