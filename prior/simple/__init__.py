"""The simple priors over vectors: the standard normal, and a mixture of Gaussians fitted by EM."""
