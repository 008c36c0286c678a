"""Generation of sets in a few passes: all foods at once, then the doubtful ones again.

Mask-predict (Ghazvininejad et al. 2019, arXiv:1904.09324, section 3) for sets.  The size is drawn
first and stays.  The first pass draws all foods that are missing, without replacement, from one
distribution; each further pass takes back those it is least sure of and draws them anew, given all
others.  A food once drawn may be revised; the prompt may not.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray

from recipe_jax.batches import Molecules
from recipe_jax.decoding import Sampling, SetConstraint, choose, filter_logits
from recipe_jax.models.masked_set_generator import MaskedSetGenerator, members_of

_NEVER = jnp.finfo(jnp.float32).min
_PLAIN = Sampling()


class MaskedSets(NamedTuple):
    """Sets drawn in passes.  Their probability has no closed form; what is known is confidence.

    Attributes:
        foods: prompt first, then what was drawn, then padding (index `v`).
        lengths: foods per row.
        confidence: log of the expected number of times each food was to be drawn when it was:
            of the hidden foods' count times its probability, 0 at best for a sharp model; infinite
            for the prompt, zero at padding.
    """

    foods: Int[Array, "b m"]
    lengths: Int[Array, "b"]
    confidence: Float32[Array, "b m"]


@functools.partial(jax.jit, static_argnames=("fn", "num_passes", "sampling"))
def sample_masked_sets(
    fn: Any,
    params: Any,
    molecules: Molecules,
    prompt: Int[Array, "b p"],
    prompt_lengths: Int[Array, "b"],
    key: PRNGKeyArray,
    *,
    num_passes: int,
    constraint: SetConstraint,
    sampling: Sampling = _PLAIN,
) -> MaskedSets:
    """Complete sets of foods in a fixed number of passes.

    Pass `i` of `k` takes back the least confident `floor(n (k - i) / k)` of `n` drawn foods
    (section 3.1; `i` from 0).  Confidence is comparable between passes that draw different numbers
    of foods, since it is relative to the `1 / n` that a sharp model gives each of them: there the
    paper, whose tokens have distributions of their own, uses the probability itself.

    Args:
        fn: a pure `MaskedSetGenerator`.
        params: its parameters.
        molecules: of the `v` foods.
        prompt: distinct required foods, then padding (index `v`); `p` may be 0.
        prompt_lengths: foods in each prompt; may be 0.
        key: random key.
        num_passes: 1 draws all foods at once and revises none.
        constraint: what every set must obey; where too few foods are allowed, all of them are used.
        sampling: how foods are drawn; where top-k and top-p leave fewer than are needed, the most
            probable of the others follow.  The size is drawn at the temperature alone.

    Returns:
        Sets in rows of the model's `max_foods`.

    Raises:
        ValueError: if `num_passes` is below 1, or `p` above the model's `max_foods`.
    """
    model: MaskedSetGenerator = fn.bind(params)
    p, m = prompt.shape[1], model.cfg.max_foods
    if num_passes < 1:
        raise ValueError(f"num_passes={num_passes} must be at least 1")
    if p > m:
        raise ValueError(f"prompt has {p} places, the model holds at most max_foods={m} foods")
    table = model.embedding(molecules)
    v, place = table.shape[0], jnp.arange(m)[None]
    foods = jnp.pad(prompt, ((0, 0), (0, m - p)), constant_values=v)
    given = place < prompt_lengths[:, None]
    size_key, key = jax.random.split(key)
    found = model.predict(table, foods, given, jnp.zeros_like(prompt_lengths))
    free = constraint.allowed[None] & ~members_of(foods, given, v)
    sizes = constrain_sizes(found.sizes, prompt_lengths, free.sum(axis=1), constraint)
    missing = choose(sizes, Sampling(temperature=sampling.temperature), size_key)
    drawn = ~given & (place < (prompt_lengths + missing)[:, None])

    def one_pass(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        foods, confidence, key = carry
        here, key = jax.random.split(key)
        hidden = missing * (num_passes - i) // num_passes
        doubt = jnp.argsort(jnp.where(drawn, confidence, jnp.inf), axis=1)
        masked = drawn & (jnp.argsort(doubt, axis=1) < hidden[:, None])
        visible = (given | drawn) & ~masked
        logits = model.predict(table, foods, visible, hidden).foods
        allowed = constraint.allowed[None] & ~members_of(foods, visible, v)
        logits = jnp.where(allowed, logits, _NEVER)
        ranked = rank_draws(logits, allowed, sampling, here)
        # The r-th masked place takes the r-th drawn food.
        rank = jnp.clip(jnp.cumsum(masked, axis=1) - 1, 0, v - 1)
        new = jnp.take_along_axis(ranked, rank, axis=1).astype(foods.dtype)
        sure = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=1), new, axis=1)
        sure += jnp.log(jnp.maximum(hidden, 1).astype(jnp.float32))[:, None]
        return jnp.where(masked, new, foods), jnp.where(masked, sure, confidence), key

    start = jnp.where(given, jnp.inf, 0.0)
    foods, confidence, _ = jax.lax.fori_loop(0, num_passes, one_pass, (foods, start, key))
    return MaskedSets(foods, prompt_lengths + missing, confidence)


def constrain_sizes(
    logits: Float[Array, "b sizes"],
    lengths: Int[Array, "b"],
    num_free: Int[Array, "b"],
    constraint: SetConstraint,
) -> Float[Array, "b sizes"]:
    """Mask the numbers of further foods that break a rule; what cannot be had is not asked for.

    Args:
        logits: of 0, 1, … further foods.
        lengths: foods that each set has.
        num_free: foods that may still be chosen.
        constraint: its smallest and largest set; the largest wins over the smallest.
    """
    further = jnp.arange(logits.shape[1])[None]
    room = jnp.minimum(constraint.max_foods, logits.shape[1] - 1) - lengths
    most = jnp.clip(jnp.minimum(num_free, room), 0)
    least = jnp.clip(constraint.min_foods - lengths, 0, most)
    possible = (further >= least[:, None]) & (further <= most[:, None])
    return jnp.where(possible, logits, _NEVER)


def rank_draws(
    logits: Float[Array, "b v"], allowed: Bool[Array, "b v"], sampling: Sampling, key: PRNGKeyArray
) -> Int[Array, "b v"]:
    """Foods in the order in which they are drawn without replacement.

    Adding Gumbel noise and sorting draws all of them (Kool et al. 2019, arXiv:1903.06059,
    section 2.3).  Foods that `sampling` drops come after those it keeps, most probable first, and
    foods that are not allowed after all others.
    """
    kept = filter_logits(logits, sampling)
    noise = jax.random.gumbel(key, logits.shape) if sampling.temperature > 0 else 0.0
    is_kept = allowed & (kept > _NEVER)
    group = jnp.where(is_kept, 0, jnp.where(allowed, 1, 2))
    value = jnp.where(is_kept, -(kept + noise), -logits)
    foods = jnp.broadcast_to(jnp.arange(logits.shape[1])[None], logits.shape)
    return jax.lax.sort((group, value, foods), dimension=1, num_keys=2)[2]
