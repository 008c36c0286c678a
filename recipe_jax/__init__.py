"""Small generative models of structured things, in JAX."""
