"""Fused operations: values with the signature of the reference, passed into models."""

from recipe_kernels.attention import (
    ShardedAttention,
    attention,
    attention_and_log_sum_exp,
    attention_on,
)

__all__ = ["ShardedAttention", "attention", "attention_and_log_sum_exp", "attention_on"]
