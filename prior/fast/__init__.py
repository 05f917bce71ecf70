"""Faster forms of a Transformer's blocks, which compute the same, for priors that keep keys and values."""
