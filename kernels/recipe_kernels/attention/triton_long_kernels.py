"""Triton kernels of attention over long sequences: a program for each tile, no atomics.

The forward is algorithm 1 of Dao 2023 (arXiv:2307.08691).  Its backward is in two kernels: one
keeps a tile of keys and goes through queries, one keeps a tile of queries and goes through keys.
Every sum then has one order, and gradients are the same bit for bit in every run.

Tiles that no pair meets in are in no loop.  A loop is cut into tiles before, within and behind the
range in which all pairs meet, and within it nothing is masked.  A query that may attend to nothing
has log-sum-exp infinity in the backward kernels, so that its weights vanish there unmasked.

Parameters: arrays are `b t h d` and `b s k d`, row by row; H query heads, GROUP of them to a key
head; D the head width, WIDTH that of a tile; FOLDED says that logits are products times a positive
number; RAGGED that the tokens that a loop goes through do not fill its tiles; `ranges` says for
each tile which tiles share a segment with it.
"""

# Triton's compiler checks the types of its language; to Python's they look wrong.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton.language as tl

from recipe_kernels.attention.triton_logits import (
    LN_2,
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


@jit
def tiles_of_keys(first, last, ranges, BLOCK: tl.constexpr, rules):
    """Tiles of keys that queries `first … last` meet: begin, begin and end of full ones, end."""
    begin = 0
    full_begin = 0
    reach = rules.keys
    full_reach = rules.keys
    if rules.causal is not None:
        reach = last + 1
        full_reach = first + 1
        if rules.prefix is not None:
            reach = tl.maximum(reach, rules.prefix)
            full_reach = tl.maximum(full_reach, rules.prefix)
    if rules.window is not None:
        begin = tl.maximum(first - rules.window + 1, 0) // BLOCK
        full_begin = tl.cdiv(tl.maximum(last - rules.window + 1, 0), BLOCK)
        reach = tl.minimum(reach, last + rules.window)
        full_reach = tl.minimum(full_reach, first + rules.window)
    end = tl.cdiv(tl.minimum(reach, rules.keys), BLOCK)
    end = tl.where(first < rules.queries, end, 0)
    full_end = tl.minimum(full_reach, rules.keys) // BLOCK
    return cut(begin, full_begin, full_end, end, ranges)


@jit
def tiles_of_queries(first, last, ranges, BLOCK: tl.constexpr, rules):
    """Tiles of queries that keys `first … last` meet; as `tiles_of_keys`."""
    begin = 0
    full_begin = 0
    reach = rules.queries
    full_reach = rules.queries
    if rules.causal is not None:
        begin = first // BLOCK
        full_begin = tl.cdiv(last, BLOCK)
        if rules.prefix is not None:
            begin = tl.where(first < rules.prefix, 0, begin)
            full_begin = tl.where(last < rules.prefix, 0, full_begin)
    if rules.window is not None:
        begin = tl.maximum(begin, tl.maximum(first - rules.window + 1, 0) // BLOCK)
        beyond = tl.cdiv(tl.maximum(last - rules.window + 1, 0), BLOCK)
        full_begin = tl.maximum(full_begin, beyond)
        reach = tl.minimum(reach, last + rules.window)
        full_reach = tl.minimum(full_reach, first + rules.window)
    end = tl.cdiv(tl.minimum(reach, rules.queries), BLOCK)
    end = tl.where(first < rules.keys, end, 0)
    full_end = tl.minimum(full_reach, rules.queries) // BLOCK
    return cut(begin, full_begin, full_end, end, ranges)


@jit
def cut(begin, full_begin, full_end, end, ranges):
    """The four, in order, within the range of the segments, of which no tile is full."""
    if ranges is not None:
        begin = tl.maximum(begin, tl.load(ranges))
        end = tl.minimum(end, tl.load(ranges + 1))
        full_begin = begin
        full_end = begin
    full_begin = tl.minimum(tl.maximum(full_begin, begin), end)
    full_end = tl.minimum(tl.maximum(full_end, full_begin), end)
    return begin, full_begin, full_end, end


@jit
def pairs_of(i, start, query_segment, key_segments, BLOCK_N: tl.constexpr, rules):
    """Which pairs may meet; and, as a column, keys that are read: others may hold NaN."""
    j = start + tl.arange(0, BLOCK_N)[None, :]
    if key_segments is None:
        keep = allowed(i, j, None, None, rules)
        real = start + tl.arange(0, BLOCK_N)[:, None] < rules.keys
    else:
        key_segment = tl.load(key_segments + j, mask=j < rules.keys, other=0)
        keep = allowed(i, j, query_segment, key_segment, rules) & (i < rules.queries)
        real = tl.max(keep.to(tl.int32), 0)[:, None] > 0
    return keep, real


@jit
def forward_tiles(
    state, begin, end, query_tile, first, key, value, query_segment, key_segments, rules,
    STRIDE: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, FOLDED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The online softmax over tiles `begin … end` of keys."""
    mean, highest, total = state
    i = first + tl.arange(0, BLOCK_M)[:, None]
    unit = 1.0
    if FOLDED:
        unit = rules.scale * LOG2_E
    for n in range(begin, end):
        j = n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        keep, real = None, None
        if MASKED:
            keep, real = pairs_of(i, n * BLOCK_N, query_segment, key_segments, BLOCK_N, rules)
        k = load_rows(key, n * BLOCK_N, real, STRIDE, D, WIDTH, BLOCK_N)
        v = load_rows(value, n * BLOCK_N, real, STRIDE, D, WIDTH, BLOCK_N)
        products = tl.dot(query_tile, tl.trans(k), input_precision=PRECISION)
        if FOLDED:
            logits = products
        else:
            logits, _ = logits_of(products, i, j, first, rules)
        if MASKED:
            logits = tl.where(keep, logits, float("-inf"))
        now = tl.maximum(highest, tl.max(logits, 1) * unit)
        finite = now
        if MASKED:
            finite = tl.where(now == float("-inf"), 0.0, now)
        shares = tl.exp2(logits * unit - finite[:, None])
        before = tl.exp2(highest - finite)
        total = total * before + tl.sum(shares, 1)
        if rules.seed is not None:
            shares = tl.where(kept(i, j, rules), shares, 0.0)
        mean = mean * before[:, None]
        mean = tl.dot(shares.to(v.dtype), v, mean, input_precision=PRECISION)
        highest = now
    return mean, highest, total


@jit
def forward(
    query, key, value, slopes, prefix_lengths, query_lengths, key_lengths, query_segments,
    key_segments, seeds, ranges, t, s, scale, softcap, window, keep_rate,
    out, log_sums,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, FOLDED: tl.constexpr, THRESHOLD: tl.constexpr, RAGGED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs, and log-sum-exps in nats, of a tile of queries."""
    num_tiles = tl.cdiv(t, BLOCK_M)
    m = num_tiles - 1 - tl.program_id(0) % num_tiles  # a causal tile at the end takes longest
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
    query += b * t * H * D + h * D
    STRIDE: tl.constexpr = H // GROUP * D
    key += b * s * STRIDE + h // GROUP * D
    value += b * s * STRIDE + h // GROUP * D
    query_tile = load_rows(query, first, i[:, None] < queries, H * D, D, WIDTH, BLOCK_M)
    last = tl.minimum(first + BLOCK_M, queries) - 1
    begin, full_begin, full_end, end = tiles_of_keys(first, last, ranges, BLOCK_N, rules)
    state = (
        tl.zeros([BLOCK_M, WIDTH], tl.float32),
        tl.full([BLOCK_M], float("-inf"), tl.float32),
        tl.zeros([BLOCK_M], tl.float32),
    )
    if window is not None and ranges is None:
        state = forward_tiles(
            state, begin, full_begin, query_tile, first, key, value, query_segment, key_segments,
            rules, STRIDE, D, WIDTH, BLOCK_M, BLOCK_N, FOLDED, True,
        )  # fmt: skip
    if ranges is None:
        state = forward_tiles(
            state, full_begin, full_end, query_tile, first, key, value, query_segment, key_segments,
            rules, STRIDE, D, WIDTH, BLOCK_M, BLOCK_N, FOLDED, False,
        )  # fmt: skip
    if RAGGED or CAUSAL or window is not None or key_lengths is not None or ranges is not None:
        state = forward_tiles(
            state, full_end, end, query_tile, first, key, value, query_segment, key_segments,
            rules, STRIDE, D, WIDTH, BLOCK_M, BLOCK_N, FOLDED, True,
        )  # fmt: skip
    mean, highest, total = state
    dead = (total == 0.0) | (i >= queries)
    total = tl.where(dead, 1.0, total)
    mean = tl.where(dead[:, None], 0.0, mean / (total * keep_rate)[:, None])
    log_sum = (highest + tl.log2(total) - shift_of_query(i, first, rules)) * LN_2
    out += b * t * H * D + h * D
    store_rows(out, first, t, mean, H * D, D, WIDTH, BLOCK_M)
    log_sums += row.to(tl.int64) * t
    tl.store(log_sums + i, tl.where(dead, float("-inf"), log_sum), mask=i < t)
