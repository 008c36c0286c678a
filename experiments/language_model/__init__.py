"""Causal language models of the Llama family: fine-tuned, scored, and asked to write."""
