"""Latent diffusion: a Transformer that takes noise from vectors, over all places at once."""
