"""The GPU kernels of attention compiled and lowered for GPUs on a machine without one."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("triton")

from recipe_kernels import attention, op, triton_bridge

from benchmarks.kernel_resources import PROBLEMS, Options, compile_all
from recipe_jax.layers.masks import Mask

LONG_KERNELS = ("forward", "key_grads", "query_grads")


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("problem", [name for name in PROBLEMS if "short" not in name])
def test_long_tiles_do_not_spill_on_hopper_and_use_its_tensor_cores(problem, width):
    options = Options(archs=(90,), dtypes=("bfloat16",), widths=(width,), problems=(problem,))
    found = {row.kernel: row for row in compile_all(options)}
    for name in LONG_KERNELS:
        assert found[name].stack_bytes == 0 and not found[name].serialized, found[name]
        assert found[name].wgmma > 0 and found[name].mma == 0, found[name]
        assert found[name].shared_bytes <= 232448, found[name]


@pytest.mark.parametrize("arch", [80, 90])
def test_short_tiles_do_not_spill(arch):
    options = Options(
        archs=(arch,), dtypes=("bfloat16",), widths=(64,), problems=("short sets, lengths",)
    )
    found = list(compile_all(options))
    assert [row.kernel for row in found] == ["forward", "grads"]
    for row in found:
        assert row.stack_bytes == 0 and row.wgmma + row.mma > 0, row


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("problem", ["causal", "causal, segments"])
def test_kernels_compile_for_ampere(problem, dtype):
    options = Options(archs=(80,), dtypes=(dtype,), widths=(64,), problems=(problem,))
    found = {row.kernel: row for row in compile_all(options)}
    for name in LONG_KERNELS:
        # What a program may have on compute capability 8.6 and 8.9, which have least.
        assert found[name].mma > 0 and found[name].shared_bytes <= 101376, found[name]


def lowered(query, *, implementation=None, platform="cuda", key_heads=2, **options) -> str:
    key = query[:, :, :key_heads]

    def loss(query, key, value):
        out = attention(query, key, value, implementation=implementation, **options)
        return out.astype(jnp.float32).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(query, key, key)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("implementation", [None, "triton"])
def test_a_program_for_cuda_calls_the_kernels(implementation):
    query = jnp.zeros((2, 128, 4, 64), jnp.bfloat16)
    text = lowered(query, implementation=implementation, mask=Mask(causal=True))
    assert text.count("@triton_kernel_call") == 4  # forward, statistics, keys, queries


def test_short_sets_take_one_kernel_forward_and_one_backward():
    text = lowered(jnp.zeros((8, 20, 4, 32), jnp.bfloat16), mask=Mask(causal=True))
    assert text.count("@triton_kernel_call") == 2


def test_numbers_of_numpy_are_those_of_python(untyped):
    query = jnp.zeros((2, 128, 4, 64), jnp.bfloat16)
    key = jax.random.key(0)
    of_python = {"softcap": 2.0, "dropout_rate": 0.5, "scale": 0.25}
    of_numpy = {name: np.float64(x) for name, x in of_python.items()}
    texts = [
        lowered(query, mask=Mask(causal=True, window=window), dropout_key=key, **numbers)
        for window, numbers in ((100, of_python), (np.int64(100), of_numpy))
    ]
    assert texts[0] == texts[1]
    assert "triton_kernel_call" in texts[0]


def test_newer_gpus_get_code_that_their_assembler_knows_and_old_ones_are_refused(monkeypatch):
    query = jnp.zeros((1, 80, 2, 32), jnp.bfloat16)
    monkeypatch.setattr(triton_bridge, "cuda_arch", lambda: 103)
    assert lowered(query, implementation="triton").count("@triton_kernel_call") == 4
    monkeypatch.setattr(triton_bridge, "cuda_arch", lambda: 75)
    with pytest.raises(NotImplementedError, match=r"compute capability 7.5 is below 8.0"):
        lowered(query, implementation="triton")


def test_another_platform_is_refused():
    with pytest.raises(NotImplementedError, match=r"attention\(triton\): runs on cuda, not on cpu"):
        lowered(jnp.zeros((1, 16, 2, 16)), implementation="triton", platform="cpu")


def test_wide_heads_are_refused_by_name_and_left_to_tiles_by_default():
    query = jnp.zeros((1, 16, 2, 320))
    with pytest.raises(NotImplementedError, match=r"attention\(triton\): head width 320 is above"):
        lowered(query, implementation="triton")
    assert "triton_kernel_call" not in lowered(query)


def test_another_dtype_is_refused():
    with pytest.raises(NotImplementedError, match="dtype float8_e4m3fn is none of bfloat16"):
        lowered(jnp.zeros((1, 16, 2, 16), jnp.float8_e4m3fn), implementation="triton")


def test_without_the_package_tiles_compute_and_the_log_says_why(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    query = jnp.zeros((1, 16, 2, 48))
    with pytest.raises(
        NotImplementedError, match=r"attention\(triton\): the package triton is mis"
    ):
        lowered(query, implementation="triton")
    op._say_once.cache_clear()
    with caplog.at_level(logging.INFO):
        assert "triton_kernel_call" not in lowered(query)
    assert "attention_forward on cuda: tiled, not triton: the package triton" in caplog.text


def test_triton_is_imported_only_by_a_program_for_cuda():
    program = """
import sys
import jax.numpy as jnp
from recipe_kernels import attention, op
x = jnp.ones((1, 4, 1, 16))
attention(x, x, x)
assert "triton" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
