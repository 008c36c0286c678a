"""A pickle that shows whether anybody loads it."""

from pathlib import Path


class Trap:
    """Whoever unpickles it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)
