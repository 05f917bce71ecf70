"""The Gaussian VAE and its relatives: latents that are vectors."""
