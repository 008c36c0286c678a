"""Triton kernels of attention in many short sets: all queries and all keys of a set are one tile.

A program does several sets, one after another; a set is a key head, with the GROUP query heads that
read it, of a row of the batch.  The softmax is done at once, and the backward needs neither outputs
nor log-sum-exps: it computes both again, and all three gradients while a set is in registers.  Rows
that meet nothing are not read.  Parameters are as in `triton_long_kernels`; of `num_sets` sets a
program does SETS.
"""

# Triton's compiler checks the types of its language; to Python's they look wrong.
# pyright: reportArgumentType=false, reportCallIssue=false, reportOperatorIssue=false

import triton.language as tl

from recipe_kernels.attention.triton_logits import (
    LN_2,
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
def pairs_of(
    b, t, s, prefix, window, query_lengths, key_lengths, query_segments, key_segments,
    CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Of a row of the batch: pairs that may meet; queries (column), keys (column) that meet any."""
    queries, keys = limits(b, t, s, prefix, window, query_lengths, key_lengths, CAUSAL)
    i, j = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    query_segment, key_segment, causal = None, None, None
    if CAUSAL:
        causal = True
    if key_segments is not None:
        query_segment = tl.load(query_segments + b * t + i, mask=i < queries, other=0)
        key_segment = tl.load(key_segments + b * s + j, mask=j < keys, other=0)
    rules = Rules(queries, keys, prefix, window, None, None, 1.0, None, causal, 0)
    keep = allowed(i, j, query_segment, key_segment, rules) & (i < queries)
    if key_segments is None:
        reads = i < queries
        is_read = tl.arange(0, BLOCK_N)[:, None] < keys
    else:
        reads = tl.max(keep.to(tl.int32), 1)[:, None] > 0
        is_read = tl.max(keep.to(tl.int32), 0)[:, None] > 0
    return keep, reads, is_read


@jit
def softmax_of(q, k, i, j, keep, rules):
    """Of a head: weights, log-sum-exps in units of log 2, the derivative of the cap."""
    products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    logits, bend = logits_of(products, i, j, 0, rules)
    logits = tl.where(keep, logits, float("-inf"))
    highest = tl.max(logits, 1)[:, None]
    shares = tl.exp2(logits - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(shares, 1)[:, None]
    total = tl.where(total == 0.0, 1.0, total)
    log2_sum = highest + tl.log2(total) - shift_of_query(i, 0, rules)
    return shares / total, log2_sum, bend


@jit
def forward(
    query, key, value, slopes, prefix_lengths, query_lengths, key_lengths, query_segments,
    key_segments, seeds, t, s, scale, softcap, window, keep_rate, num_sets,
    out, log_sums,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, THRESHOLD: tl.constexpr, SETS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Outputs, and log-sum-exps in nats, of SETS sets."""
    K: tl.constexpr = H // GROUP
    i, j = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    causal = None
    if CAUSAL:
        causal = True
    first = tl.program_id(0) * SETS
    for n in range(first, tl.minimum(first + SETS, num_sets)):
        b = n // K * tl.full((), 1, tl.int64)
        prefix = None
        if prefix_lengths is not None:
            prefix = tl.load(prefix_lengths + b)
        keep, reads, is_read = pairs_of(
            b, t, s, prefix, window, query_lengths, key_lengths, query_segments, key_segments,
            CAUSAL, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        of_set = b * s * K * D + n % K * D
        k = load_rows(key + of_set, 0, is_read, K * D, D, WIDTH, BLOCK_N)
        v = load_rows(value + of_set, 0, is_read, K * D, D, WIDTH, BLOCK_N)
        for g in range(0, GROUP):
            h = n % K * GROUP + g
            slope, seed = None, None
            if slopes is not None:
                slope = tl.load(slopes + b * H + h)
            if seeds is not None:
                seed = tl.load(seeds + b * H + h)
            rules = Rules(
                t, s, prefix, window, slope, seed, scale, softcap, causal,
                tl.full((), THRESHOLD, tl.uint32),
            )  # fmt: skip
            of_head = b * t * H * D + h * D
            q = load_rows(query + of_head, 0, reads, H * D, D, WIDTH, BLOCK_M)
            weights, log2_sum, _ = softmax_of(q, k, i, j, keep, rules)
            if seeds is not None:
                weights = tl.where(kept(i, j, rules), weights / keep_rate, 0.0)
            mean = tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
            store_rows(out + of_head, 0, t, mean, H * D, D, WIDTH, BLOCK_M)
            tl.store(log_sums + (b * H + h) * t + i, log2_sum * LN_2, mask=i < t)


@jit
def grads(
    query, key, value, slopes, prefix_lengths, query_lengths, key_lengths, query_segments,
    key_segments, seeds, out_grad, log_sum_grads, t, s, scale, softcap, window, keep_rate, num_sets,
    query_grad, key_grad, value_grad,
    H: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, WIDTH: tl.constexpr,
    CAUSAL: tl.constexpr, THRESHOLD: tl.constexpr, SETS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Gradients of the queries, keys and values of SETS sets."""
    K: tl.constexpr = H // GROUP
    i, j = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_N)[None, :]
    causal = None
    if CAUSAL:
        causal = True
    first = tl.program_id(0) * SETS
    for n in range(first, tl.minimum(first + SETS, num_sets)):
        b = n // K * tl.full((), 1, tl.int64)
        prefix = None
        if prefix_lengths is not None:
            prefix = tl.load(prefix_lengths + b)
        keep, reads, is_read = pairs_of(
            b, t, s, prefix, window, query_lengths, key_lengths, query_segments, key_segments,
            CAUSAL, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        of_set = b * s * K * D + n % K * D
        k = load_rows(key + of_set, 0, is_read, K * D, D, WIDTH, BLOCK_N)
        v = load_rows(value + of_set, 0, is_read, K * D, D, WIDTH, BLOCK_N)
        of_key = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        of_value = tl.zeros([BLOCK_N, WIDTH], tl.float32)
        for g in range(0, GROUP):
            h = n % K * GROUP + g
            slope, seed = None, None
            if slopes is not None:
                slope = tl.load(slopes + b * H + h)
            if seeds is not None:
                seed = tl.load(seeds + b * H + h)
            rules = Rules(
                t, s, prefix, window, slope, seed, scale, softcap, causal,
                tl.full((), THRESHOLD, tl.uint32),
            )  # fmt: skip
            of_head = b * t * H * D + h * D
            q = load_rows(query + of_head, 0, reads, H * D, D, WIDTH, BLOCK_M)
            do = load_rows(out_grad + of_head, 0, reads, H * D, D, WIDTH, BLOCK_M)
            shares, log2_sum, bend = softmax_of(q, k, i, j, keep, rules)
            weight_grads = tl.dot(do, tl.trans(v), input_precision=PRECISION)
            weights = shares
            if seeds is not None:
                remains = kept(i, j, rules)
                weights = tl.where(remains, shares / keep_rate, 0.0)
                weight_grads = tl.where(remains, weight_grads / keep_rate, 0.0)
            live = (i < t) & (log2_sum > float("-inf"))
            log_sum_grad = tl.load(log_sum_grads + (b * H + h) * t + i, mask=live, other=0.0)
            delta = tl.sum(shares * weight_grads, 1)[:, None] - log_sum_grad
            logit_grads = shares * (weight_grads - delta)
            if softcap is not None:
                logit_grads *= bend
            logit_grads = logit_grads.to(k.dtype)
            of_query = tl.dot(logit_grads, k, input_precision=PRECISION) * scale
            store_rows(query_grad + of_head, 0, t, of_query, H * D, D, WIDTH, BLOCK_M)
            of_key = tl.dot(tl.trans(logit_grads), q, of_key, input_precision=PRECISION)
            weights = tl.trans(weights.to(do.dtype))
            of_value = tl.dot(weights, do, of_value, input_precision=PRECISION)
        store_rows(key_grad + of_set, 0, s, of_key * scale, K * D, D, WIDTH, BLOCK_N)
        store_rows(value_grad + of_set, 0, s, of_value, K * D, D, WIDTH, BLOCK_N)
