"""Experiments: one runnable module or folder each."""
