"""Train by the Triton kernels in their interpreter; print the losses as one JSON object.

TRITON_INTERPRET=1 PYTHONPATH=tests:tests/kernels python tests/kernels/train_interpreted.py
"""

import functools
import json

import triton_interpreter
from recipe_kernels import attention, triton_bridge
from recipe_kernels.attention import fused
from tiny_trainings import TRAININGS


def main() -> None:
    triton_bridge.launch = triton_interpreter.launch
    fused._MADE_FOR["triton"] = "cpu"
    attend = functools.partial(attention, implementation="triton")
    print(json.dumps({name: train(attend).tolist() for name, train in TRAININGS.items()}))


if __name__ == "__main__":
    main()
