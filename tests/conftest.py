"""Every test sees eight CPU devices and strict array arithmetic."""

import gc
import os
import shutil
from collections.abc import Iterator

import quick_compilation

# Before the first import of jax: the device count is read once, when the backend starts.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
# Tests run side by side; scikit-learn's threads, which spin while they wait, would fight for cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Here and in processes that a test starts.  `make parity` compiles as users do.
os.environ.update(quick_compilation.environment())

import jax
import jaxtyping
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Traces are many small objects, and none of them garbage: looking for it took 6 % of the time.
gc.set_threshold(100_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deselect nothing: mark tests as skipped where what they need is not there.

    With `RECIPE_JAX_BROWSER=required` a browser that is not there fails the tests that need it.
    """
    missing = {}
    if not os.environ.get("RECIPE_JAX_DATA"):
        missing["real_data"] = pytest.mark.skip(reason="RECIPE_JAX_DATA is not set")
    if not shutil.which("chromium") and os.environ.get("RECIPE_JAX_BROWSER") != "required":
        missing["browser"] = pytest.mark.skip(reason="there is no chromium on the PATH")
    for item in items:
        for name in missing.keys() & item.keywords.keys():
            item.add_marker(missing[name])


@pytest.fixture(scope="module", autouse=True)
def programs_of_one_file() -> Iterator[None]:
    """Forget compiled programs after each file of tests.

    Each holds memory maps, of which Linux allows a process 65,530 by default, and memory: 416 tests
    came to 7,876 maps and 3.2 GB.  Where nothing was forgotten, a process that had run about half
    of all tests died of a segmentation fault.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def untyped() -> Iterator[None]:
    """As users call functions: without the checks of types that tests add."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
