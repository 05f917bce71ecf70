"""The objectives of a VAE: what training minimises, made of −log p(x | z), log q(z | x) and log p(z).

reconstruction   E_q[−log p(x | z)]                         an autoencoder's
elbo             ... + β KL(q(z | x) || p(z))               the bound, β-VAE
iwae             −log 1/K Σ_k p(x, z_k) / q(z_k | x)        a tighter bound
infovae, wae     ... + MMD²(q(z), p(z))                     no bounds
"""
