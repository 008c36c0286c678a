"""Benchmarks: one file per thing measured."""
