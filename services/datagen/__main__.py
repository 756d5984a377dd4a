"""`python -m services.datagen`."""

from services.datagen.bootstrap import build
from services.datagen.settings import DatagenSettings
from understudy.service.host import serve

if __name__ == "__main__":
    serve("datagen", DatagenSettings(), build)
