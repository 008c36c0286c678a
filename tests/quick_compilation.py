"""What makes JAX compile quickly: tests compile more than they compute.

`eval "$(python tests/quick_compilation.py)"` does it for the commands of a shell that follow.
"""

import importlib.metadata
import os
import shlex

_KNOWN_TO = "0.10."
"""Versions of jaxlib that know these flags: XLA ends a process that gives it another."""

_ONE_THREAD = "--xla_cpu_parallel_codegen_split_count=1"
"""Tests run side by side, and threads of a compiler would get in each other's way."""

_OLDER = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_experimental_ynn_fusion_type=")
"""Ways of generating code by which tests of cached decoding take three fifths of the time."""


def environment() -> dict[str, str]:
    """Variables to set before jax is imported.

    With JAX_DISABLE_MOST_OPTIMIZATIONS=0 what is compiled is what users get.
    """
    as_users = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "0"
    known = importlib.metadata.version("jaxlib").startswith(_KNOWN_TO)
    flags = (_ONE_THREAD, *(() if as_users else _OLDER)) if known else ()
    given = os.environ.get("XLA_FLAGS", "").split()
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0" if as_users else "1",
        "XLA_FLAGS": " ".join([*given, *(flag for flag in flags if flag not in given)]),
    }


if __name__ == "__main__":
    for name, value in environment().items():
        print(f"export {name}={shlex.quote(value)}")
