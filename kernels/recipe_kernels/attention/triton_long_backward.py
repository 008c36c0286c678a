"""Triton kernels of the backward pass; parameters are as in `triton_long_kernels`."""

# Triton's compiler checks the types of its language; to Python's they look wrong.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false
# pyright: reportAssignmentType=false

import triton.language as tl

from recipe_kernels.attention.triton_logits import (
    LOG2_E,
    PRECISION,
    Rules,
    allowed,
    jit,
    kept,
    limits,
    load_rows,
    logits_of,
    shift_of_query,
    store_rows,
)
from recipe_kernels.attention.triton_long_kernels import (
    pairs_of,
    tiles_of_keys,
    tiles_of_queries,
)


@jit
def statistics(
    out, out_grad, log_sums, log_sum_grads, t,
    log2_sums, deltas,
    H: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Of each query: its log-sum-exp in units of log 2, and by how much its logits' gradients sink.

    A query that may attend to nothing has infinity and 0.
    """
    num_tiles = tl.cdiv(t, BLOCK_M)
    row = tl.program_id(0) // num_tiles
    i = tl.program_id(0) % num_tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, WIDTH)[None, :]
    at = row.to(tl.int64) * t + i
    log_sum = tl.load(log_sums + at, mask=i < t, other=float("-inf"))
    live = log_sum > float("-inf")
    begin = (row // H).to(tl.int64) * t * H * D + row % H * D
    places = begin + i.to(tl.int64)[:, None] * (H * D) + columns
    mask = live[:, None] & (columns < D)
    product = tl.load(out + places, mask=mask, other=0.0).to(tl.float32)
    product *= tl.load(out_grad + places, mask=mask, other=0.0).to(tl.float32)
    delta = tl.sum(product, 1) - tl.load(log_sum_grads + at, mask=live, other=0.0)
    tl.store(log2_sums + at, tl.where(live, log_sum * LOG2_E, float("inf")), mask=i < t)
    tl.store(deltas + at, delta, mask=i < t)


@jit
def shares_and_grads(
    products, weight_grads, i, j, origin, log2_sum, delta, keep, keep_rate, rules,
    MASKED: tl.constexpr, SEGMENTED: tl.constexpr,
):  # fmt: skip
    """Weights but for the rate of dropout, and gradients of the products but for `scale`."""
    logits, bend = logits_of(products, i, j, origin, rules)
    if MASKED:
        logits = tl.where(keep, logits, float("-inf"))
    shares = tl.exp2(logits - (log2_sum + shift_of_query(i, origin, rules)))
    weights = shares
    if rules.seed is not None:
        remains = kept(i, j, rules)
        weights = tl.where(remains, shares, 0.0)
        weight_grads = tl.where(remains, weight_grads / keep_rate, 0.0)
    grads = shares * (weight_grads - delta)
    if rules.softcap is not None:
        grads *= bend
    if SEGMENTED:
        grads = tl.where(keep, grads, 0.0)
    return weights, grads


@jit
def key_tiles(
    state, begin, end, k, v, first, query, out_grad, log2_sums, deltas, key_segment,
    query_segments, keep_rate, rules,
    STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What tiles `begin … end` of queries add to the gradients of a tile of keys and values."""
    key_grad, value_grad = state
    j = first + tl.arange(0, BLOCK_N)[:, None]
    SEGMENTED: tl.constexpr = query_segments is not None
    for m in range(begin, end):
        i = m * BLOCK_M + tl.arange(0, BLOCK_M)
        query_segment, keep, real = None, None, None
        if MASKED:
            log2_sum = tl.load(log2_sums + i, mask=i < rules.queries, other=float("inf"))
            delta = tl.load(deltas + i, mask=i < rules.queries, other=0.0)
            real = m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None] < rules.queries
            if SEGMENTED:
                query_segment = tl.load(query_segments + i, mask=i < rules.queries, other=0)
                query_segment = query_segment[None, :]
                real = log2_sum[:, None] < float("inf")
            keep = allowed(i[None, :], j, query_segment, key_segment, rules)
        else:
            log2_sum = tl.load(log2_sums + i)
            delta = tl.load(deltas + i)
        q = load_rows(query, m * BLOCK_M, real, STRIDE, D, WIDTH, BLOCK_M)
        do = load_rows(out_grad, m * BLOCK_M, real, STRIDE, D, WIDTH, BLOCK_M)
        products = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weight_grads = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        weights, grads = shares_and_grads(
            products, weight_grads, i[None, :], j, first, log2_sum[None, :], delta[None, :], keep,
            keep_rate, rules, MASKED, SEGMENTED,
        )  # fmt: skip
        value_grad = tl.dot(weights.to(do.dtype), do, value_grad, input_precision=PRECISION)
        key_grad = tl.dot(grads.to(q.dtype), q, key_grad, input_precision=PRECISION)
    return key_grad, value_grad


@jit
def key_grads(
    query, key, value, slopes, prefix_lengths, query_lengths, key_lengths, query_segments,
    key_segments, seeds, ranges, out_grad, log2_sums, deltas, t, s, scale, softcap, window,
    keep_rate,
    key_grad, value_grad,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, THRESHOLD: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of a tile of keys and values, over all query heads that read it."""
    num_tiles = tl.cdiv(s, BLOCK_N)
    n = tl.program_id(0) % num_tiles
    row = tl.program_id(0) // num_tiles
    K: tl.constexpr = H // GROUP
    b = (row // K).to(tl.int64)
    prefix, causal = None, None
    if CAUSAL:
        causal = True
    if prefix_lengths is not None:
        prefix = tl.load(prefix_lengths + b)
    queries, keys = limits(b, t, s, prefix, window, query_lengths, key_lengths, CAUSAL)
    first = n * BLOCK_N
    j = first + tl.arange(0, BLOCK_N)
    key_segment = None
    if key_segments is not None:
        key_segment = tl.load(key_segments + b * s + j, mask=j < keys, other=0)[:, None]
        query_segments += b * t
        ranges += (b * num_tiles + n) * 2
    begin_of_row = b * s * K * D + row % K * D
    k = load_rows(key + begin_of_row, first, j[:, None] < keys, K * D, D, WIDTH, BLOCK_N)
    v = load_rows(value + begin_of_row, first, j[:, None] < keys, K * D, D, WIDTH, BLOCK_N)
    state = (tl.zeros([BLOCK_N, WIDTH], tl.float32), tl.zeros([BLOCK_N, WIDTH], tl.float32))
    for g in range(0, GROUP):
        h = row % K * GROUP + g
        slope, seed = None, None
        if slopes is not None:
            slope = tl.load(slopes + b * H + h)
        if seeds is not None:
            seed = tl.load(seeds + b * H + h)
        rules = Rules(
            queries, keys, prefix, window, slope, seed, scale, softcap, causal,
            tl.full((), THRESHOLD, tl.uint32),
        )  # fmt: skip
        last = tl.minimum(first + BLOCK_N, keys) - 1
        begin, full_begin, full_end, end = tiles_of_queries(first, last, ranges, BLOCK_M, rules)
        of_head = b * t * H * D + h * D
        of_row = (b * H + h) * t
        if (CAUSAL or window is not None) and ranges is None:
            state = key_tiles(
                state, begin, full_begin, k, v, first, query + of_head, out_grad + of_head,
                log2_sums + of_row, deltas + of_row, key_segment, query_segments, keep_rate, rules,
                H * D, D, WIDTH, BLOCK_M, BLOCK_N, True,
            )  # fmt: skip
        if ranges is None:
            state = key_tiles(
                state, full_begin, full_end, k, v, first, query + of_head, out_grad + of_head,
                log2_sums + of_row, deltas + of_row, key_segment, query_segments, keep_rate, rules,
                H * D, D, WIDTH, BLOCK_M, BLOCK_N, False,
            )  # fmt: skip
        if RAGGED or window is not None or query_lengths is not None or ranges is not None:
            state = key_tiles(
                state, full_end, end, k, v, first, query + of_head, out_grad + of_head,
                log2_sums + of_row, deltas + of_row, key_segment, query_segments, keep_rate, rules,
                H * D, D, WIDTH, BLOCK_M, BLOCK_N, True,
            )  # fmt: skip
    of_key, of_value = state
    read = j[:, None] < keys
    of_key = tl.where(read, of_key * scale, 0.0)
    of_value = tl.where(read, of_value / keep_rate, 0.0)
    store_rows(key_grad + begin_of_row, first, s, of_key, K * D, D, WIDTH, BLOCK_N)
    store_rows(value_grad + begin_of_row, first, s, of_value, K * D, D, WIDTH, BLOCK_N)


@jit
def query_tiles(
    query_grad, begin, end, q, do, log2_sum, delta, first, key, value, query_segment,
    key_segments, keep_rate, rules,
    STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What tiles `begin … end` of keys add to the gradient of a tile of queries."""
    i = first + tl.arange(0, BLOCK_M)[:, None]
    SEGMENTED: tl.constexpr = key_segments is not None
    for n in range(begin, end):
        j = n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        keep, real = None, None
        if MASKED:
            keep, real = pairs_of(i, n * BLOCK_N, query_segment, key_segments, BLOCK_N, rules)
        k = load_rows(key, n * BLOCK_N, real, STRIDE, D, WIDTH, BLOCK_N)
        v = load_rows(value, n * BLOCK_N, real, STRIDE, D, WIDTH, BLOCK_N)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        weight_grads = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        _, grads = shares_and_grads(
            products, weight_grads, i, j, first, log2_sum, delta, keep, keep_rate, rules, MASKED,
            SEGMENTED,
        )  # fmt: skip
        query_grad = tl.dot(grads.to(k.dtype), k, query_grad, input_precision=PRECISION)
    return query_grad


@jit
def query_grads(
    query, key, value, slopes, prefix_lengths, query_lengths, key_lengths, query_segments,
    key_segments, seeds, ranges, out_grad, log2_sums, deltas, t, s, scale, softcap, window,
    keep_rate,
    query_grad,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, THRESHOLD: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradient of a tile of queries."""
    num_tiles = tl.cdiv(t, BLOCK_M)
    m = num_tiles - 1 - tl.program_id(0) % num_tiles
    row = tl.program_id(0) // num_tiles
    b = (row // H).to(tl.int64)
    h = row % H
    prefix, slope, seed, causal = None, None, None, None
    if CAUSAL:
        causal = True
    if prefix_lengths is not None:
        prefix = tl.load(prefix_lengths + b)
    if slopes is not None:
        slope = tl.load(slopes + row)
    if seeds is not None:
        seed = tl.load(seeds + row)
    queries, keys = limits(b, t, s, prefix, window, query_lengths, key_lengths, CAUSAL)
    rules = Rules(
        queries, keys, prefix, window, slope, seed, scale, softcap, causal,
        tl.full((), THRESHOLD, tl.uint32),
    )  # fmt: skip
    first = m * BLOCK_M
    i = first + tl.arange(0, BLOCK_M)
    query_segment = None
    if query_segments is not None:
        query_segment = tl.load(query_segments + b * t + i, mask=i < t, other=0)[:, None]
        key_segments += b * s
        ranges += (b * num_tiles + m) * 2
    of_head = b * t * H * D + h * D
    STRIDE: tl.constexpr = H // GROUP * D
    key += b * s * STRIDE + h // GROUP * D
    value += b * s * STRIDE + h // GROUP * D
    q = load_rows(query + of_head, first, i[:, None] < queries, H * D, D, WIDTH, BLOCK_M)
    do = load_rows(out_grad + of_head, first, i[:, None] < queries, H * D, D, WIDTH, BLOCK_M)
    at = row.to(tl.int64) * t + i
    log2_sum = tl.load(log2_sums + at, mask=i < queries, other=float("inf"))[:, None]
    delta = tl.load(deltas + at, mask=i < queries, other=0.0)[:, None]
    last = tl.minimum(first + BLOCK_M, queries) - 1
    begin, full_begin, full_end, end = tiles_of_keys(first, last, ranges, BLOCK_N, rules)
    found = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    if window is not None and ranges is None:
        found = query_tiles(
            found, begin, full_begin, q, do, log2_sum, delta, first, key, value, query_segment,
            key_segments, keep_rate, rules, STRIDE, D, WIDTH, BLOCK_M, BLOCK_N, True,
        )  # fmt: skip
    if ranges is None:
        found = query_tiles(
            found, full_begin, full_end, q, do, log2_sum, delta, first, key, value, query_segment,
            key_segments, keep_rate, rules, STRIDE, D, WIDTH, BLOCK_M, BLOCK_N, False,
        )  # fmt: skip
    if RAGGED or CAUSAL or window is not None or key_lengths is not None or ranges is not None:
        found = query_tiles(
            found, full_end, end, q, do, log2_sum, delta, first, key, value, query_segment,
            key_segments, keep_rate, rules, STRIDE, D, WIDTH, BLOCK_M, BLOCK_N, True,
        )  # fmt: skip
    found = tl.where(log2_sum < float("inf"), found * scale, 0.0)
    store_rows(query_grad + of_head, first, t, found, H * D, D, WIDTH, BLOCK_M)
