"""Tile sizes of the Triton kernels: looked up, never tuned when a program runs.

`python -m benchmarks.kernel_resources` shows what registers and memory each takes.
"""

from typing import Literal, NamedTuple, TypeAlias

Kernel: TypeAlias = Literal["forward", "key_grads", "query_grads", "short_forward", "short_grads"]


class Tile(NamedTuple):
    """How a kernel cuts its work.

    Attributes:
        block_m: queries of a tile.
        block_n: keys of a tile.
        num_warps: warps of a program.
        num_stages: loads that are under way while a loop computes.
        max_registers: of a thread, so that more programs share a multiprocessor; None for no limit.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    max_registers: int | None = None


_LONG: dict[tuple[Kernel, int, int], dict[int, Tile]] = {
    # kernel, architecture from which on, bytes of a number: by padded head width up to which
    ("forward", 90, 2): {
        64: Tile(128, 64, 8, 3, 128),
        128: Tile(128, 64, 8, 3),
        256: Tile(64, 32, 8, 2),
    },
    ("key_grads", 90, 2): {
        64: Tile(64, 128, 8, 2),
        128: Tile(32, 64, 4, 2),
        256: Tile(32, 32, 8, 1),
    },
    ("query_grads", 90, 2): {
        64: Tile(64, 64, 4, 2),
        128: Tile(128, 64, 8, 2),
        256: Tile(128, 16, 8, 1),
    },
    ("forward", 0, 2): {64: Tile(128, 64, 4, 2), 128: Tile(128, 32, 4, 2), 256: Tile(64, 32, 4, 1)},
    ("key_grads", 0, 2): {
        64: Tile(32, 64, 4, 2),
        128: Tile(32, 64, 8, 1),
        256: Tile(16, 32, 8, 1),
    },
    ("query_grads", 0, 2): {
        64: Tile(64, 32, 4, 2),
        128: Tile(64, 32, 4, 1),
        256: Tile(32, 32, 8, 1),
    },
    ("forward", 0, 4): {64: Tile(64, 32, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(16, 32, 8, 1)},
    ("key_grads", 0, 4): {64: Tile(32, 32, 4, 1), 128: Tile(16, 16, 8, 1), 256: Tile(16, 16, 8, 1)},
    ("query_grads", 0, 4): {
        64: Tile(32, 32, 4, 1),
        128: Tile(32, 16, 8, 1),
        256: Tile(16, 16, 8, 1),
    },
}

_NEEDY: dict[tuple[Kernel, int, int], dict[int, Tile]] = {
    ("forward", 90, 2): {64: Tile(128, 64, 8, 3)},
    ("key_grads", 90, 2): {64: Tile(64, 64, 4, 1), 128: Tile(32, 128, 8, 1)},
    ("query_grads", 90, 2): {128: Tile(128, 32, 8, 2)},
}
"""Of problems whose masks take more registers: what `_LONG` has would spill."""

MANY_SETS = 8192
"""From so many short sets on, a program does several and every multiprocessor still has enough."""

_SETS_OF_PROGRAM = 4


def tile_of(
    kernel: Kernel, arch: int, itemsize: int, width: int, t: int, s: int, *, needy: bool = False
) -> Tile:
    """The tile that a kernel takes.

    Args:
        kernel: which one.
        arch: compute capability times ten.
        itemsize: bytes of a number of query, key and value.
        width: padded head width.
        t: queries.
        s: keys.
        needy: whether the mask takes more registers than `causal` and ALiBi.
    """
    if kernel in ("short_forward", "short_grads"):
        return _short_tile(kernel, itemsize, width, padded(t), padded(s))
    # From 12.0 on there are small multiprocessors again, with the memory of 8.6.
    known = 90 if 90 <= arch < 120 and (kernel, 90, itemsize) in _LONG else 0
    row = _LONG[kernel, known, itemsize]
    row = row | _NEEDY.get((kernel, known, itemsize), {}) if needy else row
    tile = row[min(most for most in row if width <= most)]
    return tile._replace(block_m=min(tile.block_m, padded(t)), block_n=min(tile.block_n, padded(s)))


def padded(size: int) -> int:
    """The power of two, at least 16, that a tile of so many tokens or numbers has."""
    return max(16, 1 << (size - 1).bit_length())


def sets_of_program(num_sets: int) -> int:
    """How many short sets a program does."""
    return _SETS_OF_PROGRAM if num_sets >= MANY_SETS else 1


def _short_tile(kernel: Kernel, itemsize: int, width: int, m: int, n: int) -> Tile:
    """As many warps as hold a set in their registers."""
    numbers = max(m, n) * width * itemsize // 2
    room = 2048 if kernel == "short_forward" else 1024
    return Tile(m, n, min(8, max(1, numbers // room)), 1)
