"""The simple priors: of codes the uniform and independent ones, of vectors N(0, I) and a mixture of Gaussians."""
