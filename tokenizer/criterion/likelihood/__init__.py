"""The likelihoods p(x | z) of the decoder: distributions over 8-bit images, and so the reconstruction term in nats.

Shapes: images (B, C, H, W) in [-1, 1], of the 256 levels n / 127.5 − 1; output (B, P, H, W), of the decoder, P numbers
a pixel; probabilities (B, H, W, 256) of one channel.

Every likelihood sums to one over the levels, so that −log2 p(x | z) is a number of bits. Where the lecture has a
density p(x), a level has its mass between x − 1/255 and x + 1/255, and the first and last level what lies beyond
(Salimans et al. 2017, PixelCNN++, https://arxiv.org/abs/1701.05517, eq. 2): for a wide density that is the density
times the width of a level, and −log p(x | z) of the Gaussian the squared error over 2σ², plus a constant.

    gaussian          N(μ, σ²)                  squared error, L2; the VQ-VAE's and the lecture's
    laplace           Laplace(μ, b)             absolute error, L1
    bernoulli         p of white                cross-entropy; for black-and-white images
    logistic_mixture  Σ_k π_k Logistic(μ_k, s_k)   each pixel says how sure it is; later channels see the earlier ones
    categorical       256 numbers a pixel       any shape, and no notion that neighbouring levels are alike
"""
