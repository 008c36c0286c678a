"""`killed_command.py STEP COMMAND …`: a command that dies of `kill -9` as it begins a step."""

import itertools
import os
import signal
import sys

from experiments.recipes import train
from experiments.recipes.__main__ import main

if __name__ == "__main__":
    last, make_train_step = int(sys.argv[1]), train.make_train_step

    def make_deadly_step(*given, **options):
        step, calls = make_train_step(*given, **options), itertools.count(1)

        def run(state, batch):
            if next(calls) == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(state, batch)

        return run

    train.make_train_step = make_deadly_step
    sys.exit(main(sys.argv[2:]))
