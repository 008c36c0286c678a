"""Models: one configuration, one module and per-example loss terms a file."""
