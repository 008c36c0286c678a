"""Programs for Triton's interpreter: triton reads TRITON_INTERPRET when it is imported."""

import os
import subprocess
import sys
from pathlib import Path


def run_interpreted(program: Path, *arguments: str) -> list[str]:
    """Lines that a program printed in a process of its own."""
    folders = (program.parents[1], program.parent)
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(
            [*map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
    }
    done = subprocess.run(
        [sys.executable, str(program), *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
