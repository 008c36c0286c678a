"""What torch's modules hold as our parameters, and the comparison of the two.

Every conversion takes named arrays and is linear: the same function maps torch's weights to our
parameters and torch's gradients to ours.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
import pytest
from flax import nnx
from tolerances import assert_close

from recipe_jax.functional import Params, PureModule, abstract

torch = pytest.importorskip("torch")

Arrays: TypeAlias = dict[str, np.ndarray]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomized(module: Any, seed: int = 0, deviation: float = 0.3) -> Any:
    """The torch module, its matrices drawn anew and its vectors, scales of one, disturbed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = deviation * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)
    return module


def padding(lengths: np.ndarray, size: int) -> Any:
    """Where torch's `key_padding_mask` forbids a key."""
    return torch.arange(size)[None] >= torch.tensor(lengths)[:, None]


def built(make: Callable[[nnx.Rngs], nnx.Module]) -> PureModule[Any]:
    """The structure of our module; its parameters come from torch."""
    return abstract(lambda: make(nnx.Rngs(0)))[0]


def without_parameters(arrays: Arrays) -> Params:
    assert not arrays
    return {}


def assert_parity(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *inputs: np.ndarray,
    module: Any = None,
    convert: Callable[[Arrays], Params] = without_parameters,
) -> None:
    """Equal outputs; equal gradients of a random sum of them by every input and parameter.

    Args:
        ours: function of our parameters and the inputs; gives one array or a tuple of them.
        theirs: function of the inputs.
        inputs: those that both differentiate by.
        module: holds torch's parameters; `theirs` if that is a module.
        convert: from arrays with the names of torch's parameters to ours.
    """
    if module is None and isinstance(theirs, torch.nn.Module):
        module = theirs
    named = {} if module is None else dict(module.named_parameters())
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    outputs = theirs(*tensors)
    expected = outputs if isinstance(outputs, tuple) else (outputs,)
    weights = tuple(normal(99 + i, *output.shape) for i, output in enumerate(expected))
    gradients = torch.autograd.grad(
        expected,
        [*tensors, *named.values()],
        [torch.tensor(weight) for weight in weights],
        allow_unused=True,
        materialize_grads=True,
    )
    by_input = tuple(gradient.numpy() for gradient in gradients[: len(inputs)])
    by_name = {
        name: gradient.numpy()
        for name, gradient in zip(named, gradients[len(inputs) :], strict=True)
    }

    @jax.jit
    def outputs_and_gradients(params, *inputs):
        outputs, pull_back = jax.vjp(ours, params, *inputs)
        return outputs, pull_back(weights if isinstance(outputs, tuple) else weights[0])

    params = convert({name: value.detach().numpy() for name, value in named.items()})
    found, (by_parameter, *by_inputs) = outputs_and_gradients(params, *inputs)
    assert all(output.dtype == np.float32 for output in jax.tree.leaves(found))
    found = found if isinstance(found, tuple) else (found,)
    assert_close(found, tuple(output.detach().numpy() for output in expected))
    assert_close(tuple(by_inputs), by_input, "gradient")
    assert_close(by_parameter, convert(by_name), "gradient")


def part(arrays: Arrays, name: str) -> Arrays:
    """The arrays of a submodule, under their names within it."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}


def linear(arrays: Arrays) -> Params:
    """`Linear`'s parameters, those of a `LowRankLinear` included."""
    if "base.weight" in arrays:
        down, up = arrays["down.weight"].T, arrays["up.weight"].T
        return linear(part(arrays, "base")) | {"kernel_adapter": {"down": down, "up": up}}
    bias = {"bias": arrays["bias"]} if "bias" in arrays else {}
    return {"kernel": arrays["weight"].T} | bias


def norm(arrays: Arrays) -> Params:
    """The parameters of `LayerNorm` or of `RMSNorm`."""
    bias = {"bias": arrays["bias"]} if "bias" in arrays else {}
    return {"scale": arrays["weight"]} | bias


def attention(maps: Sequence[Params], num_heads: int) -> Params:
    """`Attention`'s parameters from those of four linear maps: query, key, value and output."""
    output = maps[3]
    width = maps[0]["kernel"].shape[1] // num_heads

    def heads(matrix: np.ndarray) -> np.ndarray:
        return matrix.reshape(*matrix.shape[:-1], -1, width)

    params: Params = {"output": output["kernel"].reshape(num_heads, width, -1)}
    if "bias" in output:
        params["output_bias"] = output["bias"]
    if "kernel_adapter" in output:
        down, up = output["kernel_adapter"]["down"], output["kernel_adapter"]["up"]
        params["output_adapter"] = {"down": down.reshape(num_heads, width, -1), "up": up}
    for name, source in zip(("query", "key", "value"), maps[:3], strict=True):
        params[name] = heads(source["kernel"])
        if "bias" in source:
            params[f"{name}_bias"] = heads(source["bias"])
        if "kernel_adapter" in source:
            down, up = source["kernel_adapter"]["down"], source["kernel_adapter"]["up"]
            params[f"{name}_adapter"] = {"down": down, "up": heads(up)}
    return params


def multihead_attention(arrays: Arrays, num_heads: int) -> Params:
    """`Attention`'s parameters from those of `torch.nn.MultiheadAttention`."""
    if "in_proj_weight" in arrays:
        weights = np.split(arrays["in_proj_weight"], 3)
    else:  # with widths of keys and values of their own
        weights = [arrays[f"{name}_proj_weight"] for name in "qkv"]
    maps = [{"weight": weight} for weight in weights]
    if "in_proj_bias" in arrays:
        for one, bias in zip(maps, np.split(arrays["in_proj_bias"], 3), strict=True):
            one["bias"] = bias
    return attention([*map(linear, maps), linear(part(arrays, "out_proj"))], num_heads)


def block(arrays: Arrays, num_heads: int) -> Params:
    """`Block`'s parameters from those of torch's encoder or decoder layer."""
    reads_context = "norm3.weight" in arrays
    params: Params = {
        "attention_norm": norm(part(arrays, "norm1")),
        "attention": multihead_attention(part(arrays, "self_attn"), num_heads),
        "feed_forward_norm": norm(part(arrays, "norm3" if reads_context else "norm2")),
        "feed_forward": {
            "up": linear(part(arrays, "linear1")),
            "down": linear(part(arrays, "linear2")),
        },
    }
    if reads_context:
        params["cross_norm"] = norm(part(arrays, "norm2"))
        params["cross_attention"] = multihead_attention(part(arrays, "multihead_attn"), num_heads)
    return params


def stack(arrays: Arrays, num_heads: int) -> Params:
    """`Stack`'s parameters from those of torch's encoder or decoder."""
    count = 1 + max(int(name.split(".")[1]) for name in arrays if name.startswith("layers."))
    blocks = [block(part(arrays, f"layers.{i}"), num_heads) for i in range(count)]
    params: Params = {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}
    if "norm.weight" in arrays:
        params["final_norm"] = norm(part(arrays, "norm"))
    return params


class LowRankLinear(torch.nn.Module):
    """A linear map and its correction as the paper writes it (arXiv:2106.09685, eq. 3)."""

    def __init__(self, base: Any, rank: int, alpha: float):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.down = torch.nn.Linear(base.in_features, rank, bias=False)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Any) -> Any:
        return self.base(x) + self.scale * self.up(self.down(x))
