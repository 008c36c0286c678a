"""Cases that Hypothesis draws: shapes, masks, dtypes, features, alone and together."""

from hypothesis import strategies as st
from recipe_kernels.attention.cases import Case


@st.composite
def cases(draw: st.DrawFn, *, dtypes: tuple[str, ...] = ("float32", "bfloat16", "float16")) -> Case:
    """Small problems; few heads and widths, of which the kernels know little."""

    def number(low: int, high: int) -> int:
        return draw(st.integers(low, high))

    def maybe(value):
        return value if draw(st.booleans()) else None

    b, t, s, k, group = number(1, 3), number(1, 90), number(1, 90), number(1, 2), number(1, 3)
    dtype = draw(st.sampled_from(dtypes))

    def lengths(most: int) -> tuple[int, ...]:
        return tuple(number(0, most) for _ in range(b))

    causal = draw(st.booleans())
    return Case(
        "random",
        b=b,
        t=t,
        s=s,
        h=k * group,
        k=k,
        d=draw(st.sampled_from([8, 16, 20, 64])),
        dtype=dtype,
        causal=causal,
        window=maybe(number(1, 60)),
        prefix_lengths=maybe(lengths(s)) if causal else None,
        query_lengths=maybe(lengths(t)),
        key_lengths=maybe(lengths(s)),
        segments=maybe(tuple(number(1, 40) for _ in range(3))),
        alibi=draw(st.booleans()),
        softcap=maybe(3.0),
        # Naive code in few bits, which a kernel is measured by, drops other weights.
        dropout_rate=draw(st.sampled_from([0.0, 0.3])) if dtype == "float32" else 0.0,
    )
