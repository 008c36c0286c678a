"""What makes JAX compile quickly: tests compile more than they compute.

`eval "$(python tests/quick_compilation.py)"` does it for the commands of a shell that follow.
"""

import importlib.metadata
import os
import shlex

_FLAGS = {
    "0.10.": (
        # Older ways of generating code, by which tests of cached decoding take about three fifths
        # of the processor time; and one thread, since tests run side by side.
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_experimental_ynn_fusion_type=",
        "--xla_cpu_parallel_codegen_split_count=1",
    )
}
"""By version of jaxlib: XLA ends a process that gives it a flag it does not know."""


def environment() -> dict[str, str]:
    """Variables to set before jax is imported; none if JAX_DISABLE_MOST_OPTIMIZATIONS is 0."""
    if os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") != "1":
        return {}
    flags = _FLAGS.get(importlib.metadata.version("jaxlib")[:5], ())
    given = os.environ.get("XLA_FLAGS", "").split()
    return {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": " ".join([*given, *(flag for flag in flags if flag not in given)]),
    }


if __name__ == "__main__":
    for name, value in environment().items():
        print(f"export {name}={shlex.quote(value)}")
