"""Transformer layers: arrays in, arrays out."""
