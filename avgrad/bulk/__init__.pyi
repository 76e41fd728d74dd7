from .find import Hit as Hit
from .find import find as find
from .localize import localize_all as localize_all
from .run import Run as Run
from .run import read_run as read_run
