"""An encoder-decoder learns to write one text for another, from a table of pairs."""
