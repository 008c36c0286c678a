"""Small problems that use every feature, alone and together, for tests here and on a device."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32

from recipe_jax.layers.attention import dot_product_attention
from recipe_jax.layers.masks import Mask
from recipe_kernels.attention.exact import Results, allowed_pairs, exact, who_meets
from recipe_kernels.attention.problem import Operands, Problem

FORWARD_BOUND = 2e-5
"""How far results in float32 may be off: numbers of about 1, sums of some hundred."""

GRADIENT_BOUND = 1e-4
"""How far gradients in float32 may be off."""


class Case(NamedTuple):
    """A problem to be drawn.

    Attributes:
        name: what it is about; seeds its numbers.
        b: rows of the batch.
        t: queries.
        s: keys.
        h: query heads.
        k: key heads.
        d: width of a head.
        dtype: of query, key and value.
        causal: see `Mask`.
        window: see `Mask`.
        prefix_lengths: see `Mask`, as the lengths below.
        query_lengths: of the rows.
        key_lengths: of the rows.
        segments: tokens of the packed sequences, one after another, in queries and in keys; what
            is left over is padding that nothing attends to or from.
        alibi: whether slopes are given.
        softcap: see `Problem`.
        dropout_rate: see `Problem`.
        scale: see `Problem`; `1 / sqrt(d)` if None.
    """

    name: str
    b: int = 1
    t: int = 80
    s: int = 80
    h: int = 2
    k: int = 2
    d: int = 16
    dtype: str = "float32"
    causal: bool = False
    window: int | None = None
    prefix_lengths: tuple[int, ...] | None = None
    query_lengths: tuple[int, ...] | None = None
    key_lengths: tuple[int, ...] | None = None
    segments: tuple[int, ...] | None = None
    alibi: bool = False
    softcap: float | None = None
    dropout_rate: float = 0.0
    scale: float | None = None


class Drawn(NamedTuple):
    """A case with its numbers.

    Attributes:
        problem: what is static.
        arrays: as `problem.names` say.
        out_grad: gradient of the outputs.
        log_sum_grad: gradient of the log-sum-exps.
    """

    problem: Problem
    arrays: tuple[np.ndarray, ...]
    out_grad: Float[np.ndarray, "b t h d"]
    log_sum_grad: Float32[np.ndarray, "b h t"]


_UNEVEN: dict[str, Any] = {"query_lengths": (80, 17), "key_lengths": (33, 80)}

LONG = (
    Case("plain"),
    Case("whole tiles", t=128, s=64),
    Case("uneven tiles", t=67, s=101, d=32),
    Case("causal", causal=True, t=130, s=130),
    Case("causal, more keys", causal=True, t=40, s=90),
    Case("causal, more queries", causal=True, t=90, s=40),
    Case("window", window=9),
    Case("causal window", window=33, causal=True, t=160, s=160, h=1, k=1),
    Case("window of more queries", window=4, t=90, s=40),
    Case("window of one", window=1, causal=True, t=70, s=70),
    Case("lengths", b=2, **_UNEVEN),
    Case("lengths, causal, window", b=2, causal=True, window=20, **_UNEVEN),
    Case("no tokens", b=3, t=70, s=70, query_lengths=(0, 70, 5), key_lengths=(70, 0, 70)),
    Case("prefix", b=3, causal=True, prefix_lengths=(0, 50, 80)),
    Case("prefix, window, lengths", b=2, causal=True, window=30, prefix_lengths=(70, 9), **_UNEVEN),
    Case("segments", segments=(30, 7, 33)),
    Case("segments, causal", segments=(30, 7, 43), causal=True, h=4, k=1),
    Case("segments, window, lengths", b=2, segments=(30, 40), window=20, **_UNEVEN),
    Case("grouped heads", b=2, h=6, k=2, causal=True, t=70, s=70),
    Case("one key head", h=3, k=1, d=20),
    Case("alibi", alibi=True, h=4, k=2),
    Case("alibi, causal", alibi=True, causal=True, t=150, s=150),
    Case("alibi, causal prefix", alibi=True, causal=True, b=2, prefix_lengths=(10, 66)),
    Case("softcap", softcap=2.0, scale=1.0),
    Case("softcap, alibi, causal", softcap=5.0, alibi=True, causal=True, scale=0.7),
    Case("dropout", dropout_rate=0.3),
    Case("dropout above half, causal", dropout_rate=0.6, causal=True, h=4, k=2),
    Case("negative scale", scale=-0.3),
    Case("zero scale", scale=0.0, window=9),
    Case("wide heads", t=33, s=40, d=256, h=1, k=1),
    Case("odd width", t=40, s=70, d=72, h=1, k=1, causal=True),
    Case("bfloat16", dtype="bfloat16", causal=True, d=64, t=130, s=130),
    Case("float16", dtype="float16", d=40, b=2, **_UNEVEN),
    Case(
        "everything", b=2, h=4, k=2, d=24, causal=True, window=60, prefix_lengths=(20, 70),
        segments=(50, 20), alibi=True, softcap=8.0, dropout_rate=0.2, **_UNEVEN,
    ),
    Case(
        "everything, bfloat16", b=2, h=4, k=2, d=24, dtype="bfloat16", causal=True, window=60,
        alibi=True, softcap=8.0, **_UNEVEN,
    ),
)  # fmt: skip
"""More than 64 tokens, and so more than one tile of some kernel, but for the widest heads."""

_SHORT_LENGTHS: dict[str, Any] = {
    "query_lengths": (12, 3, 0, 7, 1),
    "key_lengths": (3, 12, 9, 0, 1),
}

SHORT = (
    Case("sets of 16", b=5, t=16, s=16),
    Case("uneven sets", b=3, t=11, s=11, d=20),
    Case("sets of 64", b=2, t=64, s=64, d=64),
    Case("ragged sets", b=5, t=12, s=12, h=3, k=3, **_SHORT_LENGTHS),
    Case("cross", b=3, t=9, s=50, h=4, k=2),
    Case("cross, more queries", b=3, t=50, s=9, h=4, k=2),
    Case("grouped ragged sets", b=5, t=12, s=12, h=4, k=1, **_SHORT_LENGTHS),
    Case("short causal", b=2, t=30, s=30, causal=True),
    Case("short window", b=2, t=30, s=20, window=4),
    Case("short prefix", b=2, t=30, s=30, causal=True, prefix_lengths=(7, 0)),
    Case("short segments", b=2, t=30, s=30, segments=(3, 11, 5)),
    Case("short alibi", b=2, t=30, s=30, alibi=True, causal=True),
    Case("short softcap", b=2, t=30, s=30, softcap=2.0, scale=1.0),
    Case("short dropout", b=2, t=30, s=30, dropout_rate=0.4),
    Case("one token", b=2, t=1, s=1),
    Case("wide short heads", b=2, t=10, s=10, d=256),
    Case("short bfloat16", b=5, t=12, s=12, d=64, dtype="bfloat16", **_SHORT_LENGTHS),
    Case("short float16", b=2, t=33, s=33, d=32, dtype="float16", causal=True),
    Case(
        "everything, short", b=5, t=12, s=12, h=4, k=2, d=24, causal=True, window=9, alibi=True,
        prefix_lengths=(1, 2, 3, 4, 5), segments=(6, 4), softcap=8.0, dropout_rate=0.2,
        **_SHORT_LENGTHS,
    ),
)  # fmt: skip
"""At most 64 tokens: many small sets."""

LARGE = (
    *(
        Case(f"width {d}, {dtype}", b=2, t=700, s=900, h=4, k=2, d=d, dtype=dtype, causal=True,
             key_lengths=(900, 500), alibi=True)
        for dtype in ("bfloat16", "float16", "float32") for d in (16, 40, 64, 96, 128, 200, 256)
    ),
    *(
        Case(f"packed, width {d}", b=2, t=1500, s=1500, h=4, k=4, d=d, dtype="bfloat16",
             causal=True, segments=(300, 512, 17, 400, 200)) for d in (64, 128)
    ),
    Case("windows", b=2, t=2000, s=2000, h=2, k=1, d=64, dtype="bfloat16", causal=True, window=256),
    Case("dropout, softcap", b=2, t=600, s=600, h=2, k=2, d=64, softcap=5.0, dropout_rate=0.2),
    Case("many sets", b=2100, t=30, s=30, h=4, k=4, d=64, dtype="bfloat16",
         query_lengths=tuple(1 + n % 30 for n in range(2100)),
         key_lengths=tuple(1 + n % 30 for n in range(2100))),
    Case("many sets, cross", b=1100, t=20, s=64, h=16, k=8, d=32, alibi=True,
         key_lengths=tuple(n % 65 for n in range(1100))),
)  # fmt: skip
"""For devices: sizes at which an interpreter is too slow, and every tile of the tables is used."""


def draw(case: Case) -> Drawn:
    """The numbers of a case, the same in every call; what no pair uses holds NaN."""
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    b, t, s, h, d = case.b, case.t, case.s, case.h, case.d

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(jnp.dtype(case.dtype))

    query, key, value = normal(b, t, h, d), normal(b, s, case.k, d), normal(b, s, case.k, d)
    out_grad, log_sum_grad = normal(b, t, h, d), rng.normal(size=(b, h, t)).astype(np.float32)
    found: dict[str, Any] = {
        "query": query,
        "key": key,
        "value": value,
        "slopes": rng.uniform(0.02, 0.7, (b, h)).astype(np.float32) if case.alibi else None,
        "prefix_lengths": _whole(case.prefix_lengths),
        "query_lengths": _whole(case.query_lengths),
        "key_lengths": _whole(case.key_lengths),
        "query_segments": _segments(case.segments, b, t, -1),
        "key_segments": _segments(case.segments, b, s, -2),
        "seeds": rng.integers(0, 2**32, (b, h), np.uint32) if case.dropout_rate > 0 else None,
    }
    operands = Operands(**found)
    given = {name: x for name, x in found.items() if x is not None}
    problem = Problem(
        names=tuple(given),
        scale=d**-0.5 if case.scale is None else case.scale,
        causal=case.causal,
        window=case.window,
        softcap=case.softcap,
        dropout_rate=case.dropout_rate,
    )
    reads, is_read = who_meets(allowed_pairs(problem, operands))
    for x, used in ((query, reads), (out_grad, reads), (key, is_read), (value, is_read)):
        x[~used] = np.nan
    return Drawn(problem, tuple(given.values()), out_grad, log_sum_grad)


def _whole(lengths: tuple[int, ...] | None) -> Any:
    return None if lengths is None else np.array(lengths, np.int32)


def _segments(sizes: tuple[int, ...] | None, b: int, tokens: int, padding: int) -> Any:
    if sizes is None:
        return None
    packed = np.repeat(np.arange(len(sizes)), sizes)[:tokens]
    row = np.concatenate([packed, np.full(tokens - len(packed), padding)])
    return np.tile(row.astype(np.int32), (b, 1))


def naive(drawn: Drawn) -> Results:
    """What `dot_product_attention` gives in the dtype of the case, row by row: it errs, too.

    A kernel is allowed twice its errors.  It has no log-sum-exps: they are left at zero.
    """
    problem, operands = drawn.problem, drawn.problem.operands(drawn.arrays)
    allowed = allowed_pairs(problem, operands)
    reads, is_read = who_meets(allowed)

    def blank(x: Any, used: Bool[np.ndarray, "b n"]) -> jax.Array:
        return jnp.asarray(np.where(used[:, :, None, None], x, np.zeros_like(x)))

    heads = blank(operands.query, reads), *(blank(x, is_read) for x in operands[1:3])
    slopes = np.zeros(drawn.log_sum_grad.shape[:2]) if operands.slopes is None else operands.slopes

    @jax.jit
    def both(allowed: Any, slopes: Any, out_grad: jax.Array, *heads: jax.Array) -> Any:
        def attend(*heads: jax.Array) -> jax.Array:
            return dot_product_attention(
                *heads,
                mask=Mask(dense=allowed[None, None]),
                alibi_slopes=slopes,
                scale=problem.scale,
                softcap=problem.softcap,
            )

        out, transpose = jax.vjp(attend, *heads)
        return out, *transpose(out_grad)

    out_grad = blank(drawn.out_grad, reads)
    rows = [
        both(allowed[row], slopes[row], *(x[row : row + 1] for x in (out_grad, *heads)))
        for row in range(len(allowed))
    ]
    out, *grads = (np.asarray(jnp.concatenate(x), np.float64) for x in zip(*rows, strict=True))
    return Results(out, np.zeros_like(drawn.log_sum_grad), *grads)


class Verdict(NamedTuple):
    """How far a result is off.

    Attributes:
        error: the largest difference to `exact`; infinity where one is NaN or only one infinite.
        bound: what it may be.
    """

    error: float
    bound: float


def judge(drawn: Drawn, found: Results) -> dict[str, Verdict]:
    """Every result of a kernel beside what it may err by.

    In float32, and for log-sum-exps, which are float32 in every kernel, `FORWARD_BOUND` and
    `GRADIENT_BOUND`; in other dtypes twice what `naive` errs by.
    """
    wanted = exact(*drawn)
    low = drawn.problem.operands(drawn.arrays).query.dtype != np.float32
    of_naive = _errors(naive(drawn), wanted) if low else {}
    bounds = dict.fromkeys(Results._fields, GRADIENT_BOUND)
    bounds |= {"out": FORWARD_BOUND}
    bounds |= {name: 2 * error for name, error in of_naive.items()}
    bounds |= {"log_sums": FORWARD_BOUND}
    errors = _errors(found, wanted)
    return {name: Verdict(errors[name], bounds[name]) for name in Results._fields}


def _errors(found: Results, wanted: Results) -> dict[str, float]:
    errors = {}
    for name, a, b in zip(Results._fields, found, wanted, strict=True):
        a = np.asarray(a, np.float64)
        same = a == b
        difference = np.abs(np.where(same, 0.0, a) - np.where(same, 0.0, b))
        errors[name] = float(np.nan_to_num(difference, nan=np.inf).max())
    return errors
