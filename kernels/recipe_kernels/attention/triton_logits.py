"""What the Triton kernels of attention share: loading, masking, capping, dropping.

Logits are in units of log 2, because a GPU exponentiates by powers of two.  Positions `i` of
queries and `j` of keys come as a column and a row, or as a row and a column: functions here work on
either.  What is absent is None when a kernel is compiled.
"""

# Triton's compiler checks the types of its language; to Python's they look wrong.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import inspect
from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)

PRECISION = tl.constexpr("tf32x3")
"""Of products of float32: three of TensorFloat-32, which together err about as float32 does."""


def jit(function: Any) -> Any:
    """`triton.jit` of the function itself, if tests wrapped it to check types."""
    return triton.jit(inspect.unwrap(function))


class Rules(NamedTuple):
    """What logits are, and which count, for one row of the batch and one head.

    Attributes:
        queries: all that meet any key are before this one.
        keys: all that meet any query are before this one.
        prefix: see `Mask.prefix_lengths`; or None.
        window: see `Mask`; or None.
        slope: of ALiBi; or None.
        seed: of the hash that drops weights; or None.
        scale: multiplies products.
        softcap: bound of logits; or None.
        causal: None if not; see `Mask`.  A field that is known when a kernel is compiled must be
            None or something else: other constants of a tuple become numbers of the kernel.
        threshold: hashes below it are dropped.
    """

    queries: Any
    keys: Any
    prefix: Any
    window: Any
    slope: Any
    seed: Any
    scale: Any
    softcap: Any
    causal: Any
    threshold: Any


@jit
def load_rows(
    pointer,
    start,
    real,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Rows `start … start + ROWS` of a matrix, padded to WIDTH.

    Zeros where `real`, a column, is not; all rows are read if it is None.
    """
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    places = pointer + start * tl.full((), STRIDE, tl.int64) + (rows * STRIDE + columns)
    if real is not None:
        found = tl.load(places, mask=real & (columns < D), other=0.0)
    elif D != WIDTH:
        found = tl.load(places, mask=columns < D, other=0.0)
    else:
        found = tl.load(places)
    return found


@jit
def store_rows(
    pointer,
    start,
    limit,
    found,
    STRIDE: tl.constexpr,
    D: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Write rows `start … start + ROWS` of a matrix, but none from `limit` on."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, WIDTH)[None, :]
    places = pointer + start * tl.full((), STRIDE, tl.int64) + (rows * STRIDE + columns)
    mask = (rows < limit - start) & (columns < D)
    tl.store(places, found.to(pointer.dtype.element_ty), mask=mask)


@jit
def limits(b, t, s, prefix, window, query_lengths, key_lengths, CAUSAL: tl.constexpr):
    """Before which query, and before which key, all lie that meet any."""
    queries = t
    keys = s
    if query_lengths is not None:
        queries = tl.minimum(queries, tl.load(query_lengths + b))
    if key_lengths is not None:
        keys = tl.minimum(keys, tl.load(key_lengths + b))
    if prefix is not None:
        keys = tl.minimum(keys, tl.maximum(queries, prefix))
    elif CAUSAL:
        keys = tl.minimum(keys, queries)
    if window is not None:
        queries = tl.minimum(queries, keys + window - 1)
        keys = tl.minimum(keys, queries + window - 1)
    if query_lengths is not None or key_lengths is not None:
        queries = tl.where(keys > 0, queries, 0)
        keys = tl.where(queries > 0, keys, 0)
    return queries, keys


@jit
def allowed(i, j, query_segment, key_segment, rules):
    """Whether query `i` may attend to key `j`; queries beyond their length are not looked at."""
    keep = j < rules.keys
    if rules.causal is not None:
        seen = j <= i
        if rules.prefix is not None:
            seen = seen | (j < rules.prefix)
        keep = keep & seen
    if rules.window is not None:
        keep = keep & (i - j < rules.window) & (j - i < rules.window)
    if key_segment is not None:
        keep = keep & (query_segment == key_segment)
    return keep


@jit
def logits_of(products, i, j, origin, rules):
    """Logits, but for `shift_of_query` of each query; and the derivative of the cap."""
    bend = 1.0
    if rules.softcap is None:
        logits = products * (rules.scale * LOG2_E)
    else:
        # tanh x = 1 - 2 / (1 + exp 2x), which overflows to 1 and underflows to -1.
        steep = 2.0 * LOG2_E * rules.scale / rules.softcap
        bent = 1.0 - 2.0 / (1.0 + tl.exp2(products * steep))
        bend = 1.0 - bent * bent
        logits = bent * (rules.softcap * LOG2_E)
    if rules.slope is not None:
        slope = rules.slope * LOG2_E
        if rules.causal is not None and rules.prefix is None:
            # -slope (i - j) = slope (j - origin) - slope (i - origin): the latter cancels out.
            logits += slope * (j - origin).to(tl.float32)
        else:
            logits -= slope * tl.abs(i - j).to(tl.float32)
    return logits, bend


@jit
def shift_of_query(i, origin, rules):
    """What is to be taken off the logits of query `i` that `logits_of` gives."""
    shift = 0.0
    if rules.slope is not None and rules.causal is not None and rules.prefix is None:
        shift = rules.slope * LOG2_E * (i - origin).to(tl.float32)
    return shift


@jit
def kept(i, j, rules):
    """The hash of `dropout.kept`, bit for bit."""
    of_query = mixed(rules.seed ^ (i.to(tl.uint32) * 0x9E3779B1))
    return mixed(of_query ^ (j.to(tl.uint32) * 0x85EBCA77)) >= rules.threshold


@jit
def mixed(x):
    """The finalizer of MurmurHash3 (Appleby 2011)."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35
    return x ^ (x >> 16)
