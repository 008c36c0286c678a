"""Fused attention with the signature of `recipe_jax.layers.attention.dot_product_attention`."""

from recipe_kernels.attention.fused import attention, attention_and_log_sum_exp
from recipe_kernels.attention.sharded import ShardedAttention, attention_on

__all__ = ["ShardedAttention", "attention", "attention_and_log_sum_exp", "attention_on"]
