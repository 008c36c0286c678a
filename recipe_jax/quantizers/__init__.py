"""Quantizers: vectors of a catalogue to a few codes each, and back."""
