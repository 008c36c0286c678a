"""From a catalogue to recommendations that exist, by semantic IDs and without them."""
