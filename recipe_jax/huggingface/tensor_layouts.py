"""How the parameters of a causal language model lie in a checkpoint: names, axes and their order.

A layout is written like an einsum: our axes are letters in their order, and theirs are letters in
the order in which the checkpoint flattens them, one group per dimension.  Where `{layer}` is in
the name, there is one tensor per layer, and ours has a leading axis of layers.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One parameter and the tensors it is made of.

    Attributes:
        tensor: name in the checkpoint, with `{layer}` where there is one per layer.
        ours: letters of our axes, without that of layers.
        theirs: letters of the checkpoint's axes, grouped by dimension, such as `(h d) e`.
    """

    tensor: str
    ours: str
    theirs: str

    @property
    def per_layer(self) -> bool:
        """Whether there is one tensor per layer."""
        return "{layer}" in self.tensor

    def groups(self) -> list[list[str]]:
        """Letters of each dimension of the checkpoint's tensor."""
        groups: list[list[str]] = []
        inside = False
        for word in self.theirs.replace("(", "( ").replace(")", " )").split():
            if word in "()":
                inside = word == "("
                if inside:
                    groups.append([])
            elif inside:
                groups[-1].append(word)
            else:
                groups.append([word])
        return groups

    def their_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the checkpoint's tensor, given that of one layer of ours."""
        sizes = dict(zip(self.ours.split(), shape, strict=True))
        return tuple(math.prod(sizes[letter] for letter in group) for group in self.groups())

    def their_slice(self, index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
        """Where a block of one layer of ours lies in the checkpoint's tensor.

        Within a group only the first axis may be cut: heads are shared out whole.
        """
        sizes = dict(zip(self.ours.split(), shape, strict=True))
        cuts = dict(zip(self.ours.split(), index, strict=True))
        found = []
        for first, *rest in self.groups():
            inner = math.prod(sizes[letter] for letter in rest)
            start, stop, _ = cuts[first].indices(sizes[first])
            found.append(slice(start * inner, stop * inner))
        return tuple(found)

    def from_theirs(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """A block of the checkpoint's tensor as a view in the order of our axes."""
        letters = [letter for group in self.groups() for letter in group]
        sizes = dict(zip(self.ours.split(), shape, strict=True))
        split = tensor.reshape([sizes[letter] for letter in letters])
        return split.transpose([letters.index(letter) for letter in self.ours.split()])

    def to_theirs(self, array: np.ndarray) -> np.ndarray:
        """The inverse, for one layer of ours."""
        ours = self.ours.split()
        letters = [letter for group in self.groups() for letter in group]
        ordered = array.transpose([ours.index(letter) for letter in letters])
        return ordered.reshape(self.their_shape(array.shape))


_BLOCK: Mapping[Path, tuple[str, str, str]] = {
    ("attention_norm", "scale"): ("input_layernorm.weight", "e", "e"),
    ("attention", "query"): ("self_attn.q_proj.weight", "e h d", "(h d) e"),
    ("attention", "key"): ("self_attn.k_proj.weight", "e k d", "(k d) e"),
    ("attention", "value"): ("self_attn.v_proj.weight", "e k d", "(k d) e"),
    ("attention", "output"): ("self_attn.o_proj.weight", "h d e", "e (h d)"),
    ("attention", "query_bias"): ("self_attn.q_proj.bias", "h d", "(h d)"),
    ("attention", "key_bias"): ("self_attn.k_proj.bias", "k d", "(k d)"),
    ("attention", "value_bias"): ("self_attn.v_proj.bias", "k d", "(k d)"),
    ("attention", "output_bias"): ("self_attn.o_proj.bias", "e", "e"),
    ("attention", "query_norm", "scale"): ("self_attn.q_norm.weight", "d", "d"),
    ("attention", "key_norm", "scale"): ("self_attn.k_norm.weight", "d", "d"),
    ("feed_forward_norm", "scale"): ("post_attention_layernorm.weight", "e", "e"),
    ("feed_forward", "gate", "kernel"): ("mlp.gate_proj.weight", "e f", "f e"),
    ("feed_forward", "up", "kernel"): ("mlp.up_proj.weight", "e f", "f e"),
    ("feed_forward", "down", "kernel"): ("mlp.down_proj.weight", "f e", "e f"),
    ("feed_forward", "gate", "bias"): ("mlp.gate_proj.bias", "f", "f"),
    ("feed_forward", "up", "bias"): ("mlp.up_proj.bias", "f", "f"),
    ("feed_forward", "down", "bias"): ("mlp.down_proj.bias", "e", "e"),
}

LAYOUTS: Mapping[Path, Layout] = {
    ("embedding", "table"): Layout("model.embed_tokens.weight", "v e", "v e"),
    ("head", "kernel"): Layout("lm_head.weight", "e v", "v e"),
    ("stack", "final_norm", "scale"): Layout("model.norm.weight", "e", "e"),
    **{
        ("stack", "blocks", *path): Layout(f"model.layers.{{layer}}.{name}", ours, theirs)
        for path, (name, ours, theirs) in _BLOCK.items()
    },
}
"""Path of a parameter of `CausalLanguageModel` -> its place in a checkpoint."""

DERIVED = "rotary_emb.inv_freq"
"""Last part of the names of tensors in older checkpoints that follow from the configuration."""


def expected_tensors(
    layouts: Mapping[Path, Layout], shapes: Mapping[Path, tuple[int, ...]]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor of a checkpoint of parameters of these shapes."""
    for path, shape in shapes.items():
        layout = layouts[path]
        if not layout.per_layer:
            yield layout.tensor, layout.their_shape(shape)
            continue
        for layer in range(shape[0]):
            yield layout.tensor.format(layer=layer), layout.their_shape(shape[1:])
